"""What a worker says on its pipe: the structured part of each kind of report, and how a failure is written down."""

import json
import struct
from enum import IntEnum
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from batchd.errors import FormatError
from batchd.settings import MESSAGE_CHARS_MAX


class Report(IntEnum):
    """The kinds of frames a worker sends."""

    READY = 1
    """meta: nothing."""
    ACK = 2
    """meta: ACK; body: an outcome block."""
    ENDED = 3
    """meta: ENDED."""
    EXPLAINED = 4
    """meta: ACK; body: the text of a traceback."""
    REFUSED = 5
    """body: the traceback of the initializer. The worker ends."""
    CHECKPOINT = 6
    """meta: ENDED; body: what a running job wants its next attempt to find."""


ACK: Final = struct.Struct("<QQ8s")
"""lease, busy nanoseconds, fingerprint (zeros: none)."""
ENDED: Final = struct.Struct("<QQ")
"""lease, the index behind the last job that was run."""
LEASE: Final = struct.Struct("<QQ")
"""What goes the other way: lease number, lane of the recorder slot that describes it."""
FINGERPRINT_BYTES: Final = 8
NO_FINGERPRINT: Final = bytes(FINGERPRINT_BYTES)


def fingerprint(*parts: str) -> bytes:
    """Return what makes two failures the same: a digest of their type and place."""
    return blake2b("\0".join(parts).encode(errors="replace"), digest_size=FINGERPRINT_BYTES).digest()


class Failure(NamedTuple):
    """Why one job failed, as text that anybody may read, with the exception itself for those who ask.

    >>> Failure.decode(Failure("ValueError", "no", b"12345678").encode()).message
    'no'
    """

    type: str
    message: str
    fingerprint: bytes
    output: str = ""
    """The last lines the job printed."""
    details: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    """Numbers for people and programs: signal, exit code, attempt, memory, CPU seconds."""
    exception: bytes = b""
    """The pickled exception, when it can be pickled and read back."""

    def encode(self) -> bytes:
        """Return the bytes `decode` takes."""
        text = json.dumps(
            {
                "type": self.type,
                "message": self.message[:MESSAGE_CHARS_MAX],
                **({"output": self.output} if self.output else {}),
                **({"details": self.details} if self.details else {}),
            }
        ).encode(errors="replace")
        return b"".join((self.fingerprint, struct.pack("<I", len(text)), text, self.exception))

    @classmethod
    def decode(cls, data: bytes | memoryview) -> "Failure":
        """Return the failure; its exception stays pickled. Raises FormatError."""
        data = bytes(data)
        try:
            (length,) = struct.unpack_from("<I", data, FINGERPRINT_BYTES)
            start = FINGERPRINT_BYTES + 4
            fields = json.loads(data[start : start + length])
            return cls(
                type=str(fields["type"]),
                message=str(fields["message"]),
                fingerprint=data[:FINGERPRINT_BYTES],
                output=str(fields.get("output", "")),
                details=dict(fields.get("details", {})),
                exception=data[start + length :],
            )
        except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"failure record: {error}") from None
