"""Pickling of the user's values: what may run code when it is decoded, and what cannot.

Plain values (numbers, text, bytes, None and tuples of them) are safe to decode and cannot be changed by a job, so
many of them are pickled as one vector. Everything else is pickled one by one, so that a value that cannot be
encoded or decoded costs its own job only.
"""

import pickle
from collections.abc import Iterable
from typing import Any, Final

from batchd.errors import InputUnreadable, ResultUnreadable
from batchd.formats.buffers import dump_apart, join
from batchd.formats.reference import Filed, Keep, Payload, Reference
from batchd.settings import VALUE_FILE_BYTES_MIN

PLAIN_TYPES: Final[frozenset[type]] = frozenset({int, float, str, bytes, bool, type(None)})
_MAIN: Final = b"__main__"
_STACK_GLOBAL: Final = b"\x93"
"""The opcode by which a protocol 5 pickle names code; without this byte decoding can run none.

For one byte `find` takes half as long as `in`, which takes it for a number first.
"""


def is_plain(value: object) -> bool:
    """Whether decoding the value can neither run code nor fail.

    >>> is_plain((1, "a")), is_plain([1]), is_plain(True)
    (True, False, True)
    """
    kind = type(value)
    return kind in PLAIN_TYPES or (kind is tuple and are_plain(value))  # type: ignore[arg-type]


def are_plain(values: Iterable[object]) -> bool:
    """Whether every value is plain."""
    return (
        isinstance(values, range)
        or all(kind in PLAIN_TYPES for kind in set(map(type, values)))
        or all(map(is_plain, values))
    )


def may_be_large(value: Any) -> bool:
    """Whether the pickle of a plain value may be large enough for a file, as far as a look tells.

    >>> may_be_large("x" * VALUE_FILE_BYTES_MIN), may_be_large((b"x" * VALUE_FILE_BYTES_MIN, 1)), may_be_large(1)
    (True, True, False)
    """
    kind = type(value)
    if kind is str:
        return len(value) >= (VALUE_FILE_BYTES_MIN if value.isascii() else VALUE_FILE_BYTES_MIN // 4)
    if kind is bytes:
        return len(value) >= VALUE_FILE_BYTES_MIN
    return kind is tuple and (len(value) >= VALUE_FILE_BYTES_MIN // 8 or any(map(may_be_large, value)))


def dump(value: Any) -> bytes:
    """Pickle one value, through cloudpickle what the standard pickle cannot name. Raises what pickling raises."""
    return _joined(value, *_apart(value))


def dump_kept(value: Any, keep: Keep) -> bytes | Reference:
    """Pickle one value; if it is large, `keep` may give a reference to it instead. Raises what pickling raises."""
    return _kept(value, *_apart(value), keep)


def dump_checked(value: Any) -> bytes:
    """Pickle one value and make sure that it can be read back. Raises what pickling raises, and ResultUnreadable."""
    return _joined(value, *_checked(value))


def dump_kept_checked(value: Any, keep: Keep) -> bytes | Reference:
    """Do what `dump_kept` and `dump_checked` do."""
    return _kept(value, *_checked(value), keep)


def _checked(value: Any) -> tuple[bytes, list[memoryview]]:
    head, buffers = _apart(value)
    if head.find(_STACK_GLOBAL) >= 0 and not _is_array_of_numbers(value):
        try:
            pickle.loads(head, buffers=buffers)
        except Exception as error:
            raise ResultUnreadable(f"could not unpickle the result: {type(error).__name__}: {error}") from error
    return head, buffers


def _apart(value: Any) -> tuple[bytes, list[memoryview]]:
    """Pickle one value and leave its large buffers out."""
    try:
        head, buffers = dump_apart(value)
        if head.find(_STACK_GLOBAL) < 0 or _MAIN not in head:
            return head, buffers  # Another process has another __main__: what is defined there goes by value.
    except Exception:  # noqa: S110  (tried again below)
        pass
    from batchd.formats import byvalue  # noqa: PLC0415  (30 ms, needed by few)

    return byvalue.dumps(value), []


def _kept(value: Any, head: bytes, buffers: list[memoryview], keep: Keep) -> bytes | Reference:
    if not buffers and len(head) < VALUE_FILE_BYTES_MIN:
        return head  # Most are as small as that, and nobody is asked.
    return keep([head, *buffers]) or _joined(value, head, buffers)


def _joined(value: Any, head: bytes, buffers: list[memoryview]) -> bytes:
    return join(value, head, buffers) if buffers else head


def _is_array_of_numbers(value: Any) -> bool:
    """Whether it is a numpy array that holds no Python objects: reading it back would cost a copy and cannot fail."""
    return type(value).__module__ == "numpy" and not getattr(getattr(value, "dtype", None), "hasobject", True)


def runs_code(payload: bytes | memoryview) -> bool:
    """Whether unpickling what `dump` made may run code: only what names some can.

    >>> runs_code(dump([1, {"a": (2.5, None)}])), runs_code(dump(print))
    (False, True)
    """
    return _STACK_GLOBAL in bytes(payload)


def load_input(payload: Payload) -> Any:
    """Unpickle a job's input, in its worker. Raises InputUnreadable, or PicklingError for one that was never sent."""
    try:
        return load(payload)
    except pickle.PicklingError:
        raise
    except Exception as error:
        raise InputUnreadable(f"could not unpickle the input: {type(error).__name__}: {error}") from error


def load(payload: Payload) -> Any:
    """Unpickle one value: in workers and in clients, never in the supervisor."""
    return payload.load() if isinstance(payload, Filed) else pickle.loads(payload)
