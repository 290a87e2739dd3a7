"""Files of input as they are named and opened: plain, compressed by gzip, standard input.

Nothing here looks at what they hold. The one idea: what is read of a file that ends in .gz is what was compressed, so
that whoever counts and hashes bytes need not know.
"""

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from batchd.errors import InputError, UsageError

STDIN: Final = "-"
GZIP: Final = ".gz"
UNREADABLE: Final = (OSError, EOFError, zlib.error)
"""What reading an opened file may raise: see `unreadable`."""


def absolute(name: str) -> str:
    """The name as the batch keeps it. A link that is pointed elsewhere is still the same input by name."""
    return name if name == STDIN else os.path.abspath(name)  # noqa: PTH100  (Path.resolve follows links)


def refuse_unreadable(names: Sequence[str]) -> None:
    """Refuse, before anything is read, what cannot be read. Raises UsageError and InputError."""
    if names.count(STDIN) > 1:
        raise UsageError("Standard input (-) was named twice, but it can be read only once: name it once.")
    for name in names:
        if name == STDIN:
            if sys.stdin is None:  # Its number is some other file's by now.
                raise InputError("standard input is closed: give it something to read, or name a file.")
            continue
        try:
            mode = os.stat(name).st_mode  # noqa: PTH116
            if stat.S_ISDIR(mode):
                raise IsADirectoryError
            if not os.access(name, os.R_OK):
                raise PermissionError
        except OSError as error:
            raise unreadable(name, error) from None


def opened(name: str, stdin_fd: int = 0) -> io.RawIOBase | gzip.GzipFile:
    """Open an input; standard input stays open when this is closed. Raises InputError."""
    try:
        if name == STDIN:
            return open(stdin_fd, "rb", buffering=0, closefd=False)
        if has_suffix(name, (GZIP,)):
            return gzip.open(name, "rb")
        return open(name, "rb", buffering=0)
    except OSError as error:
        raise unreadable(name, error) from None


def has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a name ends so, in letters of any case, compressed or not.

    >>> has_suffix("rows.JSONL.gz", (".jsonl",)), has_suffix("rows.txt", (".jsonl",))
    (True, False)
    """
    lower = name.lower()
    return lower.endswith(suffixes) or lower.removesuffix(GZIP).endswith(suffixes)


def title(name: str) -> str:
    """The input as a sentence names it."""
    return "standard input" if name == STDIN else name


def unreadable(name: str, error: BaseException) -> InputError:
    """Return what is raised when an input cannot be opened or read."""
    named = title(name)
    match error:
        case FileNotFoundError():
            return InputError(f"{named} does not exist. Check the name; relative names start at {Path.cwd()}.")
        case IsADirectoryError():
            return InputError(
                f"{named} is a folder. Name its files, or take them as items with --paths '{named}/**'."
            )
        case PermissionError():
            return InputError(f"{named} may not be read by this user. Check its permissions with ls -l.")
        case EOFError() | zlib.error() | gzip.BadGzipFile():
            return InputError(f"{named} cannot be unpacked: {error}. Check it with gzip -t.")
        case OSError():
            return InputError(f"{named} could not be read: {error.strerror}. Check the file and its disk.")
    raise error
