"""The connection to a journal's supervisor: found, or started when there is none; requests and their replies.

What a batch is and how it outlives its supervisor is not known here: see session.py.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from batchd import __version__, errors
from batchd.client.blame import blame
from batchd.edge import control, lock
from batchd.errors import BatchdError, SupervisorError, SupervisorMismatch
from batchd.formats.frame import FrameReader
from batchd.settings import READ_BYTES, START_WAIT_S, SUPERVISOR_RESTARTS_MAX
from batchd.worker.template import TAG

_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = f"import sys; sys.path.insert(0, {_ROOT!r}); from batchd.supervisor.__main__ import main; sys.exit(main())"
THROWAWAY: Final = "throw-away"
"""Third argument of a supervisor: its journal is deleted when it leaves. Then come two descriptors for output."""
LOG_NAME: Final = "supervisor.log"
_LOG_BYTES_MAX = 1 << 20
_STDERR: Final = 2
_JOINED_BYTES_MAX = 1 << 16
Note = Callable[[str], None]


def _say_nothing(_: str) -> None:
    pass


class SupervisorGone(Exception):
    """The connection to the supervisor ended."""


class Connection:
    """A connection to a supervisor."""

    def __init__(self, line: socket.socket) -> None:
        self.socket = line
        self._pid = os.getpid()
        self._reader = FrameReader()
        self._number = 0
        self._inbox: deque[control.Message] = deque()
        self.has_left = False
        """Whether the supervisor said that it leaves, because the disk has no room for what it was to do."""
        self.waits_for = ""
        """What an `ask` that is under way waits for, when that is a full disk."""

    def tell(self, do: str, body: bytes = b"", /, **fields: Any) -> int:
        """Send a request and return its number, without waiting. Raises SupervisorGone."""
        self._number += 1
        head = control.encode(control.REQUEST, {"do": do, "number": self._number, **fields}, len(body))
        try:
            if len(body) < _JOINED_BYTES_MAX:  # In one piece, or the supervisor wakes up twice.
                self.socket.sendall(head + body)
            else:
                self.socket.sendall(head)
                self.socket.sendall(body)
        except OSError as error:
            with suppress(SupervisorGone, BlockingIOError):
                while True:  # Its last words may be here, unread.
                    self._read(socket.MSG_DONTWAIT)
            raise SupervisorGone(str(error)) from None
        return self._number

    def ask(self, do: str, body: bytes = b"", /, *, note: Note = _say_nothing, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its reply; `note` hears of what it waits for, when that is a full disk.

        Raises SupervisorGone, or the error the supervisor answered.
        """
        number = self.tell(do, body, **fields)
        later: list[control.Message] = []
        self.waits_for = ""
        while True:
            for message in self._receive():
                if message.kind == control.REPLY and message.fields.get("number") == number:
                    self._inbox.extendleft(reversed(later))
                    self.waits_for = ""
                    return checked(message.fields)
                trouble = str(message.fields.get("trouble", ""))
                if message.kind == control.NEWS and trouble != self.waits_for:
                    self.waits_for = trouble
                    note(trouble or "going on")
                later.append(message)

    def messages(self) -> list[control.Message]:
        """Return what arrived since the last call, without waiting. Raises SupervisorGone at the end."""
        try:
            while self._read(socket.MSG_DONTWAIT) >= READ_BYTES:
                pass
        except BlockingIOError:
            pass
        except SupervisorGone:
            if not self._inbox:  # Its last words are heard first; the next call says that it is gone.
                raise
        found = list(self._inbox)
        self._inbox.clear()
        return found

    def hang_up(self) -> None:
        """Have it end, also when a child that was forked meanwhile holds a copy of the line. Any thread may do so."""
        if self._pid == os.getpid():
            with suppress(OSError):  # The other side was faster.
                self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up, and let go of the line."""
        self.hang_up()
        self.socket.close()

    def _receive(self) -> Iterator[control.Message]:
        if not self._inbox:
            self._read()
        while self._inbox:
            yield self._inbox.popleft()

    def _read(self, flags: int = 0) -> int:
        """Take in what is there; return how many bytes that were."""
        try:
            data = self.socket.recv(READ_BYTES, flags)
        except BlockingIOError:
            raise
        except OSError as error:
            raise SupervisorGone(str(error)) from None
        if not data:
            raise SupervisorGone("it hung up")
        self._inbox.extend(control.decode(self._reader.feed(data)))
        if self._inbox:
            self.has_left = "is_leaving" in self._inbox[-1].fields
        return len(data)


def checked(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply, or raise the error it tells of."""
    if "error" not in reply:
        return reply
    kind = getattr(errors, str(reply["error"]), SupervisorError)
    raise kind(reply["message"]) if issubclass(kind, BatchdError) else SupervisorError(reply["message"])


def connect(folder: Path, *, is_throwaway: bool = False) -> Connection:
    """Return a connection to the supervisor of the journal in `folder`, started if there is none.

    The supervisor of a throw-away journal deletes it when it leaves.
    Raises SupervisorError, SupervisorMismatch, or what made the supervisor refuse to start.
    """
    deadline = time.monotonic() + START_WAIT_S
    trouble, pause_s = None, 0.005
    while (connection := _try_connect(folder)) is None:
        if trouble is not None:
            if time.monotonic() > deadline:
                why = f"supervisors start and leave at once; their last words are in {folder / LOG_NAME}"
                raise SupervisorError(trouble or why)
            time.sleep(pause_s)
            pause_s = min(0.2, 2 * pause_s)
        trouble = _started(folder, is_throwaway=is_throwaway)
    return connection


def _try_connect(folder: Path) -> Connection | None:
    try:
        line = control.connect(folder)
    except OSError:
        return None
    connection = Connection(line)
    try:
        hello = connection.ask("hello")
    except SupervisorGone:
        connection.close()
        return None
    if hello["version"] != __version__:
        connection.close()
        raise SupervisorMismatch(
            f"a supervisor of another version holds {folder}: {lock.describe(folder)}; this is batchd {__version__}. "
            f"It leaves when its runs have ended; `kill {hello['pid']}` makes it finish what runs and leave"
        )
    return connection


def _started(folder: Path, *, is_throwaway: bool) -> str:
    """Start a supervisor, as `start_supervisor`; whatever prevents it is raised in words."""
    try:
        return start_supervisor(folder, is_throwaway=is_throwaway)
    except (OSError, BatchdError) as error:
        if folder.exists():
            if isinstance(error, BatchdError):
                raise
            raise SupervisorError(f"cannot start a supervisor for {folder}: {error}") from error
        raise SupervisorError(
            f"the journal {folder} is gone: it was moved or deleted, or is the one of a program that names none, "
            "which goes when its supervisor is told to leave (SIGTERM): with `journal=` or `name=` it stays"
        ) from error


def start_supervisor(folder: Path, *, is_throwaway: bool = False) -> str:
    """Start a supervisor and wait until it listens; return '' or why another try may help.

    Raises what made it refuse to start: that would be the same a moment later.
    """
    with _standard_streams_held():
        return _start_supervisor(folder, is_throwaway=is_throwaway)


def _start_supervisor(folder: Path, *, is_throwaway: bool) -> str:
    log = folder / LOG_NAME
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    log_fd = os.open(log, flags, 0o600)
    if os.fstat(log_fd).st_size > _LOG_BYTES_MAX:
        os.ftruncate(log_fd, 0)
    ready, its_ready = os.pipe()
    echo = [os.dup(1), os.dup(_STDERR)] if is_throwaway else []  # For what its jobs print.
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(folder), str(its_ready), *(THROWAWAY,) * is_throwaway, *map(str, echo)],
            pass_fds=(its_ready, *echo),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            cwd="/",
            # Not the tag of the worker this may run in: whoever ends that worker would end the supervisor with it.
            env={name: value for name, value in os.environ.items() if name != TAG},
            start_new_session=True,
        )
        os.close(its_ready)
        its_ready = -1
        said = b""
        # Not to its end: a process that another thread forked just now holds it open as well.
        while said != b"ready" and (data := os.read(ready, 4096)):
            said += data
    finally:
        for fd in (ready, its_ready, log_fd, *echo):
            if fd >= 0:
                os.close(fd)
    if said == b"ready":
        _watch(process)
        return ""
    process.wait()
    if not said:
        return f"the supervisor died at its start; its last words are in {log}"
    try:
        checked(json.loads(said))
    except SupervisorError as error:  # Another one is starting, or the last one is still leaving.
        return str(error)
    raise SupervisorError(f"the supervisor said something unreadable at its start: {said[:200]!r}")


@contextmanager
def _standard_streams_held() -> Iterator[None]:
    """Keep what is opened meanwhile from getting the numbers of closed standard streams: a child would lose it."""
    held = [os.open(os.devnull, os.O_RDWR)]
    while held[-1] <= _STDERR:
        held.append(os.open(os.devnull, os.O_RDWR))
    try:
        yield
    finally:
        for fd in held:
            os.close(fd)


def _watch(process: "subprocess.Popen[bytes]") -> None:
    """Collect the supervisor's exit whenever it comes, so that no zombie of it stays with this process."""
    threading.Thread(target=process.wait, name="supervisor-exit", daemon=True).start()


def request(folder: Path, do: str, *, note: Note = _say_nothing, **fields: Any) -> dict[str, Any]:
    """Ask the journal's supervisor one thing, starting it when there is none. Raises BatchdError."""
    for _ in range(SUPERVISOR_RESTARTS_MAX):
        connection = connect(folder)
        try:
            return connection.ask(do, note=note, **fields)
        except SupervisorGone:
            continue  # It was just leaving.
        finally:
            connection.close()
    why = f"the supervisor of {folder} keeps leaving; see {folder / LOG_NAME}"
    raise blame(folder, fields["batch"], why) if "batch" in fields else SupervisorError(why)
