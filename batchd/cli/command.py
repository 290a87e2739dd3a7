"""`batchd exec`: a command over inputs. It is `batchd run` with a task of batchd's own, which starts processes."""

import argparse
import shlex
import shutil
from pathlib import Path
from typing import Final

from batchd.cli.run import start
from batchd.errors import UsageError
from batchd.worker.command import TASK

_OF_A_SHELL: Final = frozenset({"|", "||", "&&", "&", ";", "<", ">", ">>", "2>", "2>&1"})


def run_command(args: argparse.Namespace) -> int:
    """`batchd exec`: start or continue the batch this command means."""
    words = words_of(args.command)
    if args.memory_per_job:
        raise UsageError(
            "--memory-per-job sees a worker's own memory, not that of the programs it starts: limit them themselves, "
            """as in `sh -c 'ulimit -v 2000000; ... "$1"' sh {}` (KiB)"""
        )
    args.accept_code = False
    return start(args, TASK, {"words": words}, name=words[0])


def words_of(text: str) -> list[str]:
    """Return the words of a command as a shell would split them. Raises UsageError when it could not be run.

    >>> words_of("printf '%s %s' {} end")
    ['printf', '%s %s', '{}', 'end']
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no command: {error}") from None
    if not words:
        raise UsageError("the command is empty: write the program and its arguments in quotes")
    special = next((word for word in words if word in _OF_A_SHELL), None)
    if special is not None:
        raise UsageError(
            f"no shell reads the command, so {special} would be an argument: write "
            """`sh -c '... "$1" ...' sh {}` as the command, where "$1" is the item"""
        )
    if "{" not in words[0] and shutil.which(words[0]) is None:
        if Path(words[0]).is_file():
            raise UsageError(f"{words[0]} may not be executed: chmod +x {shlex.quote(words[0])}")
        raise UsageError(f"there is no program {words[0]!r} here or on the PATH: check its name")
    return words
