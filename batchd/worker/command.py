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
from typing import Any, Final

from batchd.errors import CommandFailed, InputError
from batchd.worker.output import StampedWriter
from batchd.worker.task import Task

TASK: Final = Task(__name__, "run")
_PLACE: Final = re.compile(r"\{(/?\.?|//|[A-Za-z_]\w*)\}")
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
    try:
        with _stderr() as stderr:
            ended = subprocess.run(
                filled, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, check=False
            )
    except OSError as error:
        raise CommandFailed(f"{filled[0]} cannot be run: {error.strerror}") from None
    text = _text_of(ended.stdout.removesuffix(b"\n"))
    if ended.returncode:
        if text:
            sys.stdout.write(f"{text if isinstance(text, str) else text.decode(errors='backslashreplace')}\n")
        raise CommandFailed(f"{filled[0]} {_end_of(ended.returncode)}")
    return text


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
        if name not in _PARTS and fields is None:
            return match[0]  # Such as awk's {print}.
        is_placed = True
        if name in _PARTS:
            return _PARTS[name](_word(item))
        if fields is None or name not in fields:
            raise InputError(f"the input has no field {name!r}; it has {', '.join(map(str, fields or ()))}")
        return _word(fields[name])

    filled = [_PLACE.sub(put, word) for word in words]
    return filled if is_placed else [*filled, _word(item)]


def command_words(spec: Mapping[str, Any]) -> list[str]:
    """Return the words of the command that a batch runs, none when it runs another task."""
    return list(spec["args"]["words"]) if list(spec.get("task", ())) == list(TASK) else []


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
