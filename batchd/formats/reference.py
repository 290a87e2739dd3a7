"""References: what a record holds of a large value, which lies in a file of its own beside the records.

    reference   little endian: writer (u64), number (u32), CRC32 of the file (u32), then a u64 for each part: its
                length, and the topmost bit when it may not be changed; of the first one the next bit when the file
                has no checksum
    file        the parts one behind the other: the pickle without its large buffers, then these

The one idea: a file's name is made of numbers, so that no reference leads anywhere but into its batch's folder. And a
result's tells its job, so that whether a record names it is found in that job's record.
"""

import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Final, NamedTuple

from batchd.errors import FormatError
from batchd.formats.buffers import put_back
from batchd.settings import VALUE_BYTES_MAX

_HEAD: Final = struct.Struct("<QII")
_FIXED: Final = 1 << 63
_UNCHECKED: Final = 1 << 62
OF_WORKER: Final = 1 << 63
"""A worker has this bit in its number as a writer; what it writes is numbered by the job."""
NUMBERS: Final = 1 << 32
"""So many there are: jobs beyond take theirs once more."""


class Part(NamedTuple):
    """One stretch of a file."""

    nbytes: int
    is_fixed: bool
    """Whether whoever has the value may not change it."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Names a file, and tells what it is like.

    >>> made = Reference(10, 7, 0, (Part(5, True), Part(1 << 20, False)))
    >>> made.name, made.nbytes, Reference.decode(made.encode()) == made
    ('000000000000000a-7', 1048581, True)
    """

    writer: int
    """Drawn anew for each worker, and by each client for each batch."""
    number: int
    crc: int | None
    """None in a throw-away journal, whose files live no longer than what is in memory, and are not checked either."""
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.writer:016x}-{self.number}"

    @property
    def nbytes(self) -> int:
        """The file's length."""
        return sum(part.nbytes for part in self.parts)

    def encode(self) -> bytes:
        """Return the bytes that `decode` takes."""
        words = [part.nbytes | (_FIXED if part.is_fixed else 0) for part in self.parts]
        words[0] |= _UNCHECKED if self.crc is None else 0
        return _HEAD.pack(self.writer, self.number, self.crc or 0) + struct.pack(f"<{len(words)}Q", *words)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> "Reference":
        """Return the reference. Raises FormatError."""
        count, rest = divmod(len(data) - _HEAD.size, 8)
        if count < 1 or rest:
            raise FormatError(f"a reference of {len(data)} bytes")
        words = struct.unpack_from(f"<{count}Q", data, _HEAD.size)
        writer, number, crc = _HEAD.unpack_from(data)
        if is_unchecked := words[0] & _UNCHECKED:
            words = (words[0] ^ _UNCHECKED, *words[1:])
        parts = tuple(starmap(Part, ((word & ~_FIXED, bool(word & _FIXED)) for word in words)))
        made = cls(writer, number, None if is_unchecked else crc, parts)
        if made.nbytes > VALUE_BYTES_MAX:
            raise FormatError(f"a reference to {made.nbytes:,} bytes, which is more than a value may take")
        return made


Buffer = bytes | bytearray | memoryview
Read = Callable[[Reference], list[Buffer]]
"""Reads the parts of a file. Raises FormatError when it is not as it was written."""
Keep = Callable[[Sequence[Buffer]], Reference | None]
"""Writes a value's parts to a file, unless it is too small or the file cannot be written."""


def keep_nothing(_: Sequence[Buffer]) -> None:
    """Keep a value in its record, however large it is.

    >>> keep_nothing([bytes(1 << 20)])
    """


class Filed:
    """A value in a file of its own. It stands where others have their pickle, and is read when it is loaded."""

    __slots__ = ("_read", "_reference")

    def __init__(self, reference: Reference, read: Read) -> None:
        self._reference, self._read = reference, read

    def __len__(self) -> int:
        return self._reference.nbytes

    def load(self) -> Any:
        """Unpickle it, without copying its buffers. Raises FormatError, and what unpickling raises."""
        head, *buffers = self._read(self._reference)
        return pickle.loads(head, buffers=buffers)

    def whole(self) -> bytes:
        """Return its pickle, as it would be without a file."""
        head, *buffers = self._read(self._reference)
        return put_back(bytes(head), buffers) if buffers else bytes(head)


Payload = bytes | memoryview | Filed
"""A value that can be loaded by itself."""


def whole(payload: Payload) -> bytes | memoryview:
    """Return the pickle of a payload."""
    return payload.whole() if isinstance(payload, Filed) else payload
