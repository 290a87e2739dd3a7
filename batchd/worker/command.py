"""A command as a task: its words, with the item filled in, run as a process of its own.

No shell reads the words, so whatever stands in an item is data. What the command writes to stdout is the result;
what it writes to stderr is what the job prints.

    {}  the item      {/}  without its folders      {.}  without its suffix      {/.}  without both
    {//}  its folder      {field}  a field of an item that is a row
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import sleep
from typing import Any, Final

from batchd.errors import CommandFailed, InputError
from batchd.settings import COMMAND_OUTPUT_BYTES_MAX, TERM_WAIT_S
from batchd.units import format_size
from batchd.worker.output import StampedWriter
from batchd.worker.task import Task

TASK: Final = Task(__name__, "run")
_PLACE: Final = re.compile(r"\{([^{}]*)\}")
_FIELD: Final = re.compile(r"\w(?:[\w .-]*\w)?")
"""What is meant for the name of a field, where there is none of that name."""
_TOLD_BYTES: Final = 1024
"""Of what a command that failed wrote to stdout: less than is kept, for stderr has the reason."""
_READ_BYTES: Final = 1 << 16
_PARTS: Final[dict[str, Callable[[str], str]]] = {
    "": lambda path: path,
    "/": os.path.basename,
    ".": lambda path: os.path.splitext(path)[0],  # noqa: PTH122  (a path as it was given, not as pathlib has it)
    "/.": lambda path: os.path.splitext(os.path.basename(path))[0],  # noqa: PTH119, PTH122
    "//": lambda path: os.path.dirname(path) or ".",  # noqa: PTH120
}


def run(item: Any, *, words: Sequence[str]) -> str | bytes:
    """Run the command on the item; return what it wrote to stdout, without the last line end, as `$(...)` does.

    That is text, or bytes if it is no UTF-8. Raises CommandFailed when it ends with anything but 0.

    >>> run("a b", words=["printf", "<%s>", "{}"])
    '<a b>'
    """
    filled = fill(words, item)
    with _stderr() as stderr:
        try:
            process = subprocess.Popen(filled, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)
        except (OSError, ValueError) as error:  # Such as an item that holds NUL.
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise CommandFailed(f"{filled[0]} cannot be run: {why}") from None
        written = _read(process)
    if len(written) > COMMAND_OUTPUT_BYTES_MAX:
        limit = format_size(COMMAND_OUTPUT_BYTES_MAX)
        raise CommandFailed(f"{filled[0]} wrote more than {limit} to stdout: have it write a file")
    written = written.removesuffix(b"\n")
    if process.returncode:
        if process.returncode == -signal.SIGTERM:
            sleep(TERM_WAIT_S)  # Whoever stops a unit sends it to this worker as well, and no job is to fail by that.
        if written:
            sys.stdout.write(f"{written[-_TOLD_BYTES:].decode(errors='backslashreplace')}\n")
        raise CommandFailed(f"{filled[0]} {_end_of(process.returncode)}")
    return _text_of(written)


def fill(words: Sequence[str], item: Any) -> list[str]:
    """Return the words with the item in its places; without any place it is the last word. Raises InputError.

    >>> fill(["convert", "{}", "small/{/.}.png"], "photos/cat.jpg")
    ['convert', 'photos/cat.jpg', 'small/cat.png']
    >>> fill(["curl", "-o", "{name}.html", "{url}"], {"name": "home", "url": "http://localhost"})
    ['curl', '-o', 'home.html', 'http://localhost']
    >>> fill(["gzip", "-k"], "a.log")
    ['gzip', '-k', 'a.log']
    """
    fields = item if isinstance(item, Mapping) else None
    is_placed = False

    def put(match: re.Match[str]) -> str:
        nonlocal is_placed
        name = match[1]
        if name in _PARTS:
            is_placed = True
            return _PARTS[name](_word(item))
        if fields is not None and name in fields:
            is_placed = True
            return _word(fields[name])
        if fields is not None and _FIELD.fullmatch(name):
            raise InputError(f"the input has no field {name!r}; it has {', '.join(map(str, fields))}")
        return match[0]  # Such as awk's {print}.

    filled = [_PLACE.sub(put, word) for word in words]
    return filled if is_placed else [*filled, _word(item)]


def command_words(spec: Mapping[str, Any]) -> list[str]:
    """Return the words of the command that a batch runs, none when it runs another task."""
    return list(spec["args"]["words"]) if list(spec.get("task", ())) == list(TASK) else []


def _read(process: "subprocess.Popen[bytes]") -> bytes:
    """Return what the process writes to stdout until it ends, or has written too much: that ends it."""
    assert process.stdout is not None
    parts, nbytes = [], 0
    with process:
        while nbytes <= COMMAND_OUTPUT_BYTES_MAX and (part := os.read(process.stdout.fileno(), _READ_BYTES)):
            parts.append(part)
            nbytes += len(part)
        if nbytes > COMMAND_OUTPUT_BYTES_MAX:
            process.kill()
    return b"".join(parts)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _text_of(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _end_of(code: int) -> str:
    if code > 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _stderr() -> AbstractContextManager[int]:
    """Lend the command what the job's own stderr goes to: a worker's file, or the terminal of a rerun."""
    raw = getattr(sys.stderr, "buffer", None)
    return raw.lent() if isinstance(raw, StampedWriter) else nullcontext(sys.stderr.fileno())
