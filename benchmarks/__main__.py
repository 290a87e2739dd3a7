"""`python -m benchmarks`, which `scripts/bench` calls: choose numbers, measure, print, write what is kept."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import anatomy, machine, outside, page, table, trip
from benchmarks.contest import Setting
from benchmarks.peers.roster import ROSTER, UnknownPeer, chosen, versions
from benchmarks.registry import NUMBERS
from benchmarks.rounds import measure, stored

_HOME = Path(__file__).resolve().parent
_ROUNDS, _ROUNDS_QUICK = 5, 2
_LONG = (
    "What takes long, each once however many rounds: N5 runs batches of up to 100 million jobs (about a minute, "
    "1.2 GB of disk), N6 half of ten million jobs of 1 ms and half of such batches (three to ten minutes), N9 plays "
    "up to 1,000 workers in simulated time (about two minutes)."
)


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 when every contender's results were right, whatever the goals."""
    args = _parser().parse_args(argv)
    numbers = [name.strip().upper() for name in args.only.split(",")] if args.only else list(NUMBERS)
    if unknown := [name for name in numbers if name not in NUMBERS]:
        print(f"bench: there is no {unknown[0]}; known are {', '.join(NUMBERS)}", file=sys.stderr)
        return 2
    try:
        peers = chosen(args.peers)
    except UnknownPeer as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    scratch = Path(tempfile.mkdtemp(prefix="batchd-bench-", dir=args.journal or _disk()))
    try:
        setting = Setting(args.workers, args.quick, scratch, args.scale, peers)
        rounds = args.rounds or (_ROUNDS_QUICK if args.quick else _ROUNDS)
        made = {"command": machine.command(), "rounds": rounds, "workers": args.workers, **machine.moment()}
        contests = [] if args.profile else [each for name in numbers for each in _measured(made, name, setting)]
        run = {
            "machine": machine.describe(scratch, versions(peers)),
            "contests": contests,
            **(_profiled(setting, made) if args.profile else {}),
        }
        out = args.out or (None if args.quick else _HOME)
        if out is not None:
            print("written: {} and {}".format(*page.write(run, out)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 3 if any(each["refused"] for contest in contests for each in contest["contenders"]) else 0


def _measured(made: dict[str, Any], name: str, setting: Setting) -> Iterator[dict[str, Any]]:
    for contest in NUMBERS[name](setting):
        kept = stored(measure(contest, made["rounds"], _tell)) | {"made": made}
        table.show(kept)
        yield kept


def _profiled(setting: Setting, made: dict[str, Any]) -> dict[str, Any]:
    """Where the time goes, number by number."""
    found = anatomy.dissect(setting)
    table.draw("Where the time of N1 goes", anatomy.rows(found))
    print("\n".join(found["explained"]))
    profiles = [dissect(setting) | {"made": made} for dissect in (trip.dissect, outside.dissect)]
    for profile in profiles:
        table.draw(profile["title"], [profile["columns"], *profile["rows"]])
        print("\n".join(profile["explained"]))
    return {"anatomy": found | {"made": made}, "profiles": profiles}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, epilog=_LONG)
    parser.add_argument("--quick", action="store_true", help="fewer jobs and rounds, no batch above a million jobs")
    parser.add_argument("--only", metavar="N1,N4", help=f"measure only these of {', '.join(NUMBERS)}")
    parser.add_argument(
        "--peers",
        metavar="a,b|all|none",
        default="none",
        help=f"who else competes, beside whom the goals name: {', '.join(ROSTER)} (default none)",
    )
    parser.add_argument("--rounds", type=int, help=f"rounds (default {_ROUNDS}, with --quick {_ROUNDS_QUICK})")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of every contender (default 2)")
    parser.add_argument("--profile", action="store_true", help="instead, tell where the time of N1, N3 and N4 goes")
    parser.add_argument(
        "--journal", type=Path, metavar="FOLDER", help="where journals are made: on the disk to measure"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where results are written (default: benchmarks; with --quick nowhere)",
    )
    parser.add_argument("--scale", type=float, default=1.0, help=argparse.SUPPRESS)
    return parser


def _disk() -> Path:
    """A temporary folder on a real disk: what is durable in memory only would be measured for nothing."""
    chosen = Path(tempfile.gettempdir())
    return chosen if machine.file_system(chosen) not in {"tmpfs", "ramfs"} else Path("/var/tmp")  # noqa: S108


def _tell(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
