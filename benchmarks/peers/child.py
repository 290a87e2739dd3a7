"""The process a peer runs in: reads a request, answers with a sample or with what went wrong.

Loopback is all the network it sees, where the system allows that: some peers listen on every address they find.
"""

import ctypes
import os
import pickle
import socket
import struct
import sys
from fcntl import ioctl
from importlib import import_module
from typing import Any

from benchmarks.contest import Absent
from benchmarks.peers import ways
from benchmarks.peers.peer import Request
from benchmarks.peers.place import ANSWER

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP_RUNNING = 0x8914, 0x41


def main() -> None:
    """Carry out one request."""
    request: Request = pickle.load(sys.stdin.buffer)
    answer: Any
    try:
        answer = _carried_out(request, is_alone=shut_in())
    except Exception as error:
        answer = error
    partial = request.folder / "partial"
    try:
        partial.write_bytes(pickle.dumps(answer))
    except Exception:  # An error of a peer's own that does not pickle.
        partial.write_bytes(pickle.dumps(RuntimeError(f"{type(answer).__name__}: {answer}")))
    partial.rename(request.folder / ANSWER)
    # Threads and exit handlers of peers may hang; whoever asked ends what is left.
    os._exit(0)


def _carried_out(request: Request, *, is_alone: bool) -> Any:
    module, _, name = request.home.partition(":")
    peer = getattr(import_module(module), name)(request.workers, request.folder)
    if peer.needs_shutting_in and not is_alone:
        raise Absent("not run: it listens on every address, and this system allows no network of its own")
    ways.refuse(request.way, peer)
    with peer:
        return getattr(ways, request.way)(peer, request)


def shut_in() -> bool:
    """Leave every network but a loopback of one's own. Returns whether that went well."""
    flags = _CLONE_NEWNET | (0 if os.geteuid() == 0 else _CLONE_NEWUSER)
    if ctypes.CDLL(None).unshare(flags) != 0:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", _IFF_UP_RUNNING, b""))
    return True


if __name__ == "__main__":
    main()
