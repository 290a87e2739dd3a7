"""Results as JSON lines: one job a line, and a file that appears under its name only when it is complete.

No order is made here and no result is read from the journal: lines come in, in order. The one idea: JSON's own types
go straight through its C encoder, and only a value that it refuses is converted, by the fixed rules of `to_json`.
"""

import base64
import dataclasses
import datetime as dt
import decimal
import enum
import fcntl
import io
import json
import math
import os
import pathlib
import reprlib
import stat
import uuid
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any, Final

from batchd.edge.folder import sync
from batchd.errors import BatchdError, ResultError, UsageError

STDOUT: Final = "-"
BUFFER_BYTES: Final = 1 << 20

_Place = tuple[Any, str, Any]
"""Where in a value: the place around it, the form of the step and the step; text only when an error needs it."""

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def encode_line(index: int, state: str, value: Any) -> str:
    """One job as one line without its end: `value` is the result, or the error's fields of a job that has none.

    >>> encode_line(0, "succeeded", {"lines": 12})
    '{"index": 0, "state": "succeeded", "result": {"lines": 12}}'
    >>> encode_line(8, "failed", {"type": "ValueError", "message": "9 is odd"})
    '{"index": 8, "state": "failed", "error": {"type": "ValueError", "message": "9 is odd"}}'
    """
    name = "result" if state == "succeeded" else "error"
    try:
        text = _encode(value)
    except (TypeError, ValueError, RecursionError):
        text = _encode_converted(index, name, value)
    return f'{{"index": {index}, "state": "{state}", "{name}": {text}}}'


def _encode_converted(index: int, name: str, value: Any) -> str:
    remedy = "Return JSON types from the task, or read the value from Python."
    try:
        return _encode(to_json(value, name))
    except ResultError as error:
        raise ResultError(f"Job {index}: {error} {remedy}") from None
    except RecursionError:
        what = "contains itself or is nested too deeply"
    except ValueError as error:
        what = f"cannot be written as JSON ({error})"
    raise ResultError(f"Job {index}: {name} of type {_type_name(value)} {what}. {remedy}")


def to_json(value: Any, name: str = "result") -> Any:
    """The value in JSON's types; `ResultError` names the place inside it that has none.

    NaN and infinities become null, times ISO 8601, a timedelta its seconds, bytes their text when they are UTF-8
    and base64 otherwise, a set a sorted list, Decimal, UUID and paths strings, numpy's values Python's.

    >>> to_json({"when": dt.date(2024, 2, 29), "took": dt.timedelta(minutes=1), "tags": {"b", "a"}})
    {'when': '2024-02-29', 'took': 60.0, 'tags': ['a', 'b']}
    """
    return _convert(value, (None, "%s", name))


def _convert(value: Any, place: _Place) -> Any:
    match value:
        case enum.Enum():
            return _convert(value.value, place)
        case None | bool() | str() | int():
            return value
        case float():
            return float(value) if math.isfinite(value) else None
        case bytes() | bytearray() | memoryview():
            return _text(bytes(value))
        case Mapping():
            return {_key(key): _convert(item, (place, "[%s]", key)) for key, item in value.items()}
        case AbstractSet():
            return _sorted([_convert(item, (place, "{%s}", item)) for item in value])
        case Sequence():
            return [_convert(item, (place, "[%s]", at)) for at, item in enumerate(value)]
        case dt.date() | dt.time():  # A datetime is a date.
            return value.isoformat()
        case dt.timedelta():
            return value.total_seconds()
        case uuid.UUID() | decimal.Decimal() | pathlib.PurePath():
            return str(value)
    return _convert_object(value, place)


def _convert_object(value: Any, place: _Place) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _convert(getattr(value, name), (place, ".%s", name)) for name in names}
    if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        kind = str(getattr(value, "dtype", ""))
        if kind.endswith("64[ns]"):  # Python knows no nanoseconds: tolist() would give bare integers.
            value = value.astype(kind.replace("[ns]", "[us]"))
        plain = value.tolist()
        if type(plain) is not type(value):  # What Python has no type for, numpy hands back as it is.
            return _convert(plain, place)
    raise ResultError(f"{_place_text(place)} is of type {_type_name(value)}, which JSON cannot hold.")


def _place_text(place: _Place) -> str:
    steps = []
    at: _Place | None = place
    while at is not None:
        at, form, step = at
        steps.append(form % (step if form in {"%s", ".%s"} else reprlib.repr(step)))
    return "".join(reversed(steps))


def _key(key: Any) -> str:
    """The key as json writes it; where json refuses, the text of its conversion."""
    if isinstance(key, float) and not math.isfinite(key):
        return str(float(key))
    try:
        plain = to_json(key)
    except ResultError:
        return str(key)
    if isinstance(plain, str):
        return plain
    return json.dumps(plain) if plain is None or isinstance(plain, bool | int | float) else str(key)


def _sorted(items: list[Any]) -> list[Any]:
    """In an order that does not depend on hashing, so that two runs write the same line."""
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=json.dumps)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode("ascii")


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class JsonlFile:
    """Lines on their way into a file; nobody sees it under its name before `finish`.

    Until then it is called NAME.partial, and stays so when something goes wrong. `-` is standard output; it and
    what else is no plain file (pipes, /dev/null) is written to directly. `BrokenPipeError` is the caller's.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._target = os.path.realpath(self.name)  # A link to the results stays a link.
        self._partial: str | None = None
        self._whole = 0
        """Bytes of whole lines."""
        self._file: io.FileIO | io.BufferedWriter
        try:
            if self.name == STDOUT:
                self._file = io.FileIO(1, "w", closefd=False)
            elif _is_special(self.name):  # By its own name: of a pipe under /dev/fd no other leads to it.
                self._file = io.FileIO(self.name, "w")
            else:
                partial = f"{self._target}.partial"
                self._file = io.BufferedWriter(io.FileIO(_open_partial(partial), "w"), BUFFER_BYTES)
                self._partial = partial
        except OSError as error:
            raise _unopenable(self.name, error) from None

    def write(self, lines: Iterable[str]) -> None:
        """Append lines; on standard output they are visible at once."""
        # A lone surrogate has no UTF-8; its backslash form is exactly what JSON would write for it.
        text = "".join([f"{line}\n" for line in lines]).encode("utf-8", "backslashreplace")
        rest = memoryview(text)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            self._whole += len(text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(self._partial or self.name, error) from error

    def restart(self) -> bool:
        """Empty the file, to be written again; return whether that was possible (not for a pipe)."""
        if self._partial is None:
            return False
        self._file.seek(0)
        self._file.truncate()
        self._whole = 0
        return True

    def finish(self) -> None:
        """Make the file complete, durable and visible under its name."""
        try:
            self._file.flush()
            if self._partial is not None:
                os.fsync(self._file.fileno())
                os.replace(self._partial, self._target)  # noqa: PTH105
                sync(os.path.dirname(self._target))  # noqa: PTH120
            self._file.close()
        except OSError as error:
            raise _unwritable(self._partial or self.name, error) from error

    @property
    def would_replace(self) -> bool:
        """Whether `finish` puts the lines in the place of others."""
        try:
            return self._partial is not None and os.stat(self.name).st_size > 0  # noqa: PTH116
        except OSError:
            return False

    def abandon(self) -> str:
        """Close without finishing, behind the last whole line, and the name of what was kept."""
        with suppress(OSError):
            self._file.flush()
            if self._partial is not None:
                self._file.truncate(self._whole)  # A signal may have come in the middle of a line.
        with suppress(OSError):  # A full disk was already reported by the write that met it.
            self._file.close()
        return self._partial or self.name


def _is_special(name: str) -> bool:
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError
    return not stat.S_ISREG(mode)


def _open_partial(partial: str) -> int:
    """The file, empty and locked, so that two runs with one --out do not write into each other."""
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between open and lock the other run may have finished: then this is its file of results, not to be cut.
        if not os.path.samestat(os.fstat(descriptor), os.stat(partial)):  # noqa: PTH116
            raise BlockingIOError
        os.ftruncate(descriptor, 0)
    except FileNotFoundError:
        os.close(descriptor)
        raise BlockingIOError from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _unopenable(name: str, error: OSError) -> UsageError:
    folder = os.path.dirname(os.path.realpath(name))  # noqa: PTH120
    match error:
        case BlockingIOError():
            return UsageError(f"{name} is being written by another run. Wait for it, or choose another name.")
        case IsADirectoryError():
            return UsageError(f"{name} is a folder. Name a file in it.")
        case FileNotFoundError() | NotADirectoryError():
            return UsageError(f"The folder {folder} for {name} does not exist. Create it with mkdir -p.")
        case PermissionError():
            return UsageError(
                f"{name} cannot be written: the folder {folder} is closed to this user. Choose another."
            )
        case _:
            return UsageError(f"{name} cannot be written: {error.strerror}. Choose another name.")


def _unwritable(name: str, error: OSError) -> BatchdError:
    return BatchdError(
        f"{name} could not be written: {error.strerror}. No result is lost: they stand in the journal. "
        "Make room and give the same command again."
    )
