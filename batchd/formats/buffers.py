"""Pickles of values that hold large buffers (arrays), made with one copy of each buffer.

The standard pickler copies a buffer twice or more on its way into the pickle. Here it leaves large ones out, and they
are put where it left them out, so that a pickle like any other comes of it: nobody who reads it needs to know.
"""

import pickle
from collections.abc import Sequence
from typing import Any, Final

_BUFFER_BYTES_MIN: Final = 65_536
_HEAD_BYTES_MAX: Final = 1 << 20
"""Taking a longer pickle apart costs more than the copies."""
_OPCODE_BYTES: Final = 1
_FRAME_BYTES: Final = 9
_BYTES: Final = b"\x8e"
_BYTEARRAY: Final = b"\x96"


def dump_apart(value: Any) -> tuple[bytes, list[memoryview]]:
    """Pickle a value without its large buffers. Raises what pickling raises.

    >>> dump_apart(1)[1]
    []
    """
    buffers: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _BUFFER_BYTES_MIN:
            return True
        buffers.append(raw)
        return False

    return pickle.dumps(value, 5, buffer_callback=is_small), buffers


def join(value: Any, head: bytes, buffers: list[memoryview]) -> bytes:
    """Return the whole pickle of a value that `dump_apart` took apart.

    >>> data = bytearray(100_000)
    >>> pickle.loads(join(None, *dump_apart([pickle.PickleBuffer(data), 7]))) == [data, 7]
    True
    """
    return pickle.dumps(value, 5) if len(head) > _HEAD_BYTES_MAX else put_back(head, buffers)


def put_back(head: bytes, buffers: Sequence[bytes | bytearray | memoryview]) -> bytes:
    """Return a whole pickle: buffers are put where `dump_apart` left them out."""
    import pickletools  # noqa: PLC0415  (10 ms, needed by few)

    parts: list[bytes | memoryview] = []
    at, waiting = 0, iter(buffers)
    for opcode, _, place in pickletools.genops(head):
        if place is None or opcode.name not in {"FRAME", "NEXT_BUFFER"}:
            continue
        parts.append(head[at:place])
        if opcode.name == "FRAME":  # Its length would be wrong; a pickle needs no frames.
            at = place + _FRAME_BYTES
            continue
        raw = memoryview(next(waiting))
        parts += (_BYTES if raw.readonly else _BYTEARRAY, raw.nbytes.to_bytes(8, "little"), raw)
        at = place + _OPCODE_BYTES
    return b"".join((*parts, head[at:]))
