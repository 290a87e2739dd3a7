"""`python -m tests.fuzz`: what scripts/fuzz and the tests run, in a process whose memory is bounded."""

import argparse
import resource
import sys
from typing import Final

from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.targets import TARGETS

MEMORY_BYTES_MAX: Final = 2 << 30


def main() -> int:
    """Fuzz, print a line a target and every finding; return 1 when there is one."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz the decoders, guided by coverage.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together (%(default)s)")
    parser.add_argument("--count", type=int, help="executions a target, instead of a time")
    parser.add_argument("--seed", type=int, default=0, help="another seed tries other inputs (%(default)s)")
    parser.add_argument("--target", action="append", choices=names, help="only this one; may be repeated")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    chosen = [target for target in TARGETS if target.name in (args.target or names)]
    limits = {"count": args.count} if args.count else {"seconds": args.seconds / len(chosen)}
    broken = 0
    for target in chosen:
        outcome = Fuzzer(target, args.seed).run(**limits)
        print(outcome, flush=True)
        for finding in outcome.findings:
            print(f"  {finding}", flush=True)
        broken += len(outcome.findings)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
