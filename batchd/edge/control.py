"""The control socket: requests of clients to the supervisor, JSON in frames, nothing pickled.

A unix socket in the journal's folder, mode 0600. Both sides check that the other runs under the same user.
"""

import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchd.errors import FormatError, SupervisorError
from batchd.formats import frame
from batchd.settings import READ_BYTES

SOCKET_NAME: Final = "control.sock"
REQUEST: Final = 16
REPLY: Final = 17
NEWS: Final = 18
_ADDRESS_BYTES_MAX: Final = 100
_CREDENTIALS: Final = struct.Struct("=iII")


class Message(NamedTuple):
    """A request, a reply or news: its fields, and opaque bytes."""

    kind: int
    fields: dict[str, Any]
    body: bytes


def listen(folder: Path) -> socket.socket:
    """Return a listening socket in the folder, in place of a dead supervisor's."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    (folder / SOCKET_NAME).unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        with _Address(folder) as address:
            door.bind(address)
    finally:
        os.umask(mask)
    door.listen(64)
    door.setblocking(False)
    return door


def connect(folder: Path) -> socket.socket:
    """Return a connection to the journal's supervisor. Raises OSError when there is none."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with _Address(folder) as address:
            line.connect(address)
        check_peer(line)
    except BaseException:
        line.close()
        raise
    return line


class _Address:
    """The socket's address; through a descriptor of the folder where the path is too long for the kernel."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = -1

    def __enter__(self) -> str:
        path = str(self._folder / SOCKET_NAME)
        if len(os.fsencode(path)) <= _ADDRESS_BYTES_MAX:
            return path
        self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{SOCKET_NAME}"

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def check_peer(line: socket.socket) -> int:
    """Return the peer's pid. Raises SupervisorError when it is another user."""
    data = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    if uid != os.geteuid():
        raise SupervisorError(f"the control socket's other end is process {pid} of user {uid}: refused")
    return int(pid)


def encode(kind: int, fields: dict[str, Any], body_bytes: int = 0) -> bytes:
    """Return a message up to its body."""
    return frame.encode(kind, json.dumps(fields).encode(), body_bytes)


def decode(frames: Iterator[frame.Frame]) -> Iterator[Message]:
    """Give the messages of frames. Raises FormatError."""
    for kind, meta, body in frames:
        try:
            fields = json.loads(meta)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"message of kind {kind}: {error}") from None
        if not isinstance(fields, dict):
            raise FormatError(f"message of kind {kind}: no JSON object")
        yield Message(kind, fields, body)


class Line:
    """One client's connection on the supervisor's side: never blocks."""

    def __init__(self, line: socket.socket) -> None:
        self.socket = line
        self.pid = check_peer(line)
        line.setblocking(False)
        self._reader = frame.FrameReader()
        self._unsent = bytearray()

    @property
    def has_unsent(self) -> bool:
        """Whether the client is slow to read."""
        return bool(self._unsent)

    def read(self) -> list[Message] | None:
        """Return what came in, None at the end. Raises FormatError."""
        room = self._reader.room
        try:
            if room is not None:
                size = self.socket.recv_into(room)
                return list(decode(self._reader.filled(size))) if size else None
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return list(decode(self._reader.feed(data))) if data else None

    def send(self, kind: int, fields: dict[str, Any]) -> None:
        """Queue a message and send what the socket takes."""
        self._unsent += encode(kind, fields)
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes now."""
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # Its end is seen by reading.

    def close(self) -> None:
        """Hang up."""
        self.socket.close()
