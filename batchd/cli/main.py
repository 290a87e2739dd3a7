"""The command line: arguments in, exit code out. Nothing is loaded before it is needed, not even argparse.

Exit codes: 0 all succeeded, 1 some jobs failed, 2 usage, 3 journal or supervisor error, 4 interrupted and resumable,
130 aborted.
"""

import errno
import os
import sys
from io import TextIOWrapper

from batchd import __version__
from batchd.cli.verbs import VERBS, overview
from batchd.errors import BatchdError, JournalDamaged

TYPE_CHECKING = False  # Importing typing takes a fifth of what `batchd --help` may take.
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one verb and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if sys.stderr is None:  # Closed: print would take standard output instead.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (for as long as this runs)
    try:
        return _carry_out(words, is_process=argv is None)
    except BatchdError as error:
        from batchd.units import visible  # noqa: PLC0415

        damage = "; `batchd journal check` names all that is damaged, `batchd journal salvage` brings out the rest"
        hint = damage if isinstance(error, JournalDamaged) else ""
        print(f"batchd: {visible(str(error))}{hint if 'journal check' not in str(error) else ''}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        _close_stdout()
        if words[0] not in {"run", "exec", "retry"}:
            return 0  # The reader has what it wanted.
        print("batchd: the reader of the results left; run the same command again to continue", file=sys.stderr)
        return 4
    except OSError as error:
        print(f"batchd: {_outside(error)}", file=sys.stderr)
        _close_stdout()
        return BatchdError.exit_code
    except KeyboardInterrupt:
        return 130


def _carry_out(words: "Sequence[str]", *, is_process: bool) -> int:
    for stream in (sys.stdout, sys.stderr):  # A name that the terminal's encoding lacks is shown all the same.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is None and words and (words[0] in _ANSWERING or list(words[:2]) == ["journal", "check"]):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if words and words[0] in _TOLD:
        print(_TOLD[words[0]]())
        code = 0
    else:
        from importlib import import_module  # noqa: PLC0415  (as late as possible, like the next)

        from batchd.cli.arguments import parse  # noqa: PLC0415

        args = parse(words)
        if is_process:
            _be_a_command()
        module, _, name = VERBS[args.verb][0].partition(":")
        code = getattr(import_module(module), name)(args)
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


def _be_a_command() -> None:
    """Let children try what may be deadly: this process is nobody's program."""
    import signal  # noqa: PLC0415

    from batchd.edge.isolation import IS_COMMAND  # noqa: PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Where it is ignored nobody learns how a child ended.
    IS_COMMAND.set(True)


def _close_stdout() -> None:
    """Let what is still buffered go nowhere at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _outside(error: OSError) -> str:
    """Return in words what the system refused: a file, the folder this runs in, or to take the answer."""
    if error.filename:
        return f"{error.filename} cannot be used: {error.strerror}"
    try:
        os.getcwd()  # noqa: PTH109  (so that `batchd --help` need not load pathlib)
    except FileNotFoundError:
        return "the current folder does not exist any more: change to another"
    what = "standard output could not be written: " if error.errno in _UNWRITABLE else ""
    return f"{what}{error.strerror or error}"


def _version() -> str:
    return f"batchd {__version__}"


_TOLD = {"-h": overview, "--help": overview, "--version": _version}
_ANSWERING = {"ls", "show", "results", "failures", "logs", "status"}
_UNWRITABLE = {errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC}
