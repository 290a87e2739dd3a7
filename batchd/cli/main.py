"""The command line: arguments in, exit code out. Nothing is loaded before it is needed, not even argparse.

Exit codes: 0 all succeeded, 1 some jobs failed, 2 usage, 3 journal or supervisor error, 4 interrupted and resumable,
130 aborted.
"""

import os
import sys

from batchd import __version__
from batchd.cli.verbs import VERBS, overview
from batchd.errors import BatchdError, JournalDamaged

TYPE_CHECKING = False  # Importing typing takes a fifth of what `batchd --help` may take.
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one verb and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in _TOLD:
        print(_TOLD[words[0]]())
        return 0
    from importlib import import_module  # noqa: PLC0415  (as late as possible, like the next)

    from batchd.cli.arguments import parse  # noqa: PLC0415

    args = parse(words)
    module, _, name = VERBS[args.verb][0].partition(":")
    try:
        code: int = getattr(import_module(module), name)(args)
    except BatchdError as error:
        hint = "; `batchd journal check` names all that is damaged" if isinstance(error, JournalDamaged) else ""
        print(f"batchd: {error}{hint if 'journal check' not in str(error) else ''}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if args.verb not in {"run", "exec", "retry"}:
            return 0  # The reader has what it wanted.
        print("batchd: the reader of the results left; run the same command again to continue", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130
    return code


def _version() -> str:
    return f"batchd {__version__}"


_TOLD = {"-h": overview, "--help": overview, "--version": _version}
