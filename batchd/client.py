"""The client: finds or starts the journal's supervisor, hands it a batch, feeds it input, follows its progress.

Reading, encoding and drawing happen on this side; the supervisor moves bytes. A session outlives its supervisor: when
that dies, another is started, what was not acknowledged is sent again, and the batch goes on.
"""

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from batchd import __version__, errors
from batchd.core.events import Options
from batchd.edge import control, lock
from batchd.edge.template import KeySpec
from batchd.errors import BatchdError, SupervisorError, SupervisorMismatch
from batchd.formats.frame import FrameReader
from batchd.formats.segment import input_blocks
from batchd.settings import START_WAIT_S, SUBMIT_WINDOW_BYTES, SUPERVISOR_RESTARTS_MAX
from batchd.worker.template import TAG

_ROOT = str(Path(__file__).resolve().parents[1])
_BOOT = f"import sys; sys.path.insert(0, {_ROOT!r}); from batchd.supervisor.__main__ import main; sys.exit(main())"
_LOG_NAME = "supervisor.log"
_LOG_BYTES_MAX = 1 << 20


class SupervisorGone(Exception):
    """The connection to the supervisor ended."""


class Connection:
    """A connection to a supervisor."""

    def __init__(self, line: socket.socket) -> None:
        self.socket = line
        self._reader = FrameReader()
        self._number = 0
        self._inbox: deque[control.Message] = deque()

    def tell(self, do: str, body: bytes = b"", /, **fields: Any) -> int:
        """Send a request and return its number, without waiting. Raises SupervisorGone."""
        self._number += 1
        head = control.encode(control.REQUEST, {"do": do, "number": self._number, **fields}, len(body))
        try:
            self.socket.sendall(head)
            if body:
                self.socket.sendall(body)
        except OSError as error:
            raise SupervisorGone(str(error)) from None
        return self._number

    def ask(self, do: str, body: bytes = b"", /, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its reply. Raises SupervisorGone, or the error the supervisor answered."""
        number = self.tell(do, body, **fields)
        later: list[control.Message] = []
        while True:
            for message in self._receive():
                if message.kind == control.REPLY and message.fields.get("number") == number:
                    self._inbox.extendleft(reversed(later))
                    return checked(message.fields)
                later.append(message)

    def messages(self) -> list[control.Message]:
        """Return what arrived since the last call, without waiting. Raises SupervisorGone at the end."""
        try:
            while select.select([self.socket], [], [], 0)[0]:
                self._inbox.extend(self._read())
        except SupervisorGone:
            if not self._inbox:  # Its last words are heard first; the next call says that it is gone.
                raise
        found = list(self._inbox)
        self._inbox.clear()
        return found

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def _receive(self) -> Iterator[control.Message]:
        if not self._inbox:
            self._inbox.extend(self._read())
        while self._inbox:
            yield self._inbox.popleft()

    def _read(self) -> list[control.Message]:
        try:
            data = self.socket.recv(1 << 20)
        except OSError as error:
            raise SupervisorGone(str(error)) from None
        if not data:
            raise SupervisorGone("it hung up")
        return list(control.decode(self._reader.feed(data)))


def checked(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply, or raise the error it tells of."""
    if "error" not in reply:
        return reply
    kind = getattr(errors, str(reply["error"]), SupervisorError)
    raise kind(reply["message"]) if issubclass(kind, BatchdError) else SupervisorError(reply["message"])


def connect(folder: Path) -> Connection:
    """Return a connection to the supervisor of the journal in `folder`, started if there is none.

    Raises SupervisorError, SupervisorMismatch, or what made the supervisor refuse to start.
    """
    deadline = time.monotonic() + START_WAIT_S
    pause_s = 0.005
    while True:
        connection = _try_connect(folder)
        if connection is not None:
            return connection
        trouble = start_supervisor(folder)
        if trouble and time.monotonic() > deadline:
            raise SupervisorError(trouble)
        if trouble:
            time.sleep(pause_s)
            pause_s = min(0.2, 2 * pause_s)


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


def start_supervisor(folder: Path) -> str:
    """Start a supervisor and wait until it listens; return '' or why another try may help.

    Raises what made it refuse to start: that would be the same a moment later.
    """
    log = folder / _LOG_NAME
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    log_fd = os.open(log, flags, 0o600)
    if os.fstat(log_fd).st_size > _LOG_BYTES_MAX:
        os.ftruncate(log_fd, 0)
    ready, its_ready = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(folder), str(its_ready)],
            pass_fds=(its_ready,),
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
        while data := os.read(ready, 4096):
            said += data
    finally:
        for fd in (ready, its_ready, log_fd):
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


def _watch(process: "subprocess.Popen[bytes]") -> None:
    """Collect the supervisor's exit whenever it comes, so that no zombie of it stays with this process."""
    threading.Thread(target=process.wait, name="supervisor-exit", daemon=True).start()


def batch_id(identity: Any) -> str:
    """Return the id that a batch of this identity has: the same command finds its batch again.

    >>> batch_id("nightly") == batch_id("nightly") != batch_id("weekly")
    True
    """
    digest = blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    letters = "0123456789abcdefghjkmnpqrstvwxyz"
    return "".join(letters[(number >> (5 * place)) & 31] for place in range(8))


def key_of(spec: KeySpec, digest: str) -> str:
    """Return what workers must share to serve the same batch."""
    fields = {**asdict(spec), "payload": blake2b(spec.payload).hexdigest()}
    return blake2b(json.dumps([fields, digest], sort_keys=True).encode(), digest_size=12).hexdigest()


class Checkpointed(Protocol):
    """A block of input: items, and how far the reader is behind them (sources.Block)."""

    @property
    def items(self) -> list[Any]:
        """The items."""

    @property
    def checkpoint(self) -> Any:
        """An object with to_json()."""


@dataclass(frozen=True, slots=True)
class Submission:
    """Input on its way: sent, and kept until it is acknowledged."""

    sequence: int
    checkpoint: str
    body: bytes


class Feed:
    """Reads and encodes input in a thread of its own, so that a slow source never delays anything else."""

    def __init__(self, blocks: Iterator[Checkpointed]) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.error: BaseException | None = None
        self.is_over = False
        self._queue: deque[Submission] = deque()
        self._room = threading.BoundedSemaphore(4)
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, args=(blocks,), name="feed", daemon=True)
        self._thread.start()

    def take(self) -> Submission | None:
        """Return the next submission, None when there is none yet."""
        if not self._queue:
            return None
        self._room.release()
        return self._queue.popleft()

    @property
    def is_empty(self) -> bool:
        """Whether everything was taken and nothing more will come."""
        return self.is_over and not self._queue

    def close(self) -> None:
        """Stop reading."""
        self._is_closed = True

    def _run(self, blocks: Iterator[Checkpointed]) -> None:
        sequence = 0
        try:
            for block in blocks:
                sequence += 1
                body = b"".join(segment for _, segment in input_blocks(block.items))
                self._room.acquire()
                self._queue.append(Submission(sequence, json.dumps(block.checkpoint.to_json()), body))
                os.eventfd_write(self.wake_fd, 1)
                if self._is_closed:
                    return
        except BaseException as error:
            self.error = error
        finally:
            self.is_over = True
            os.eventfd_write(self.wake_fd, 1)


class Session:
    """One batch, run for one client.

    `open`, then `feed`, then `pump` until `is_over`, then `leave`. `progress` is what the supervisor last said.
    """

    def __init__(
        self,
        folder: Path,
        batch: str,
        *,
        spec: Mapping[str, Any] | None,
        options: Options,
        key_spec: KeySpec,
        digest: str,
        note: Callable[[str], None],
    ) -> None:
        self.folder, self.batch = folder, batch
        self.progress: dict[str, Any] = {}
        self._note = note
        fields = asdict(options)
        fields["allowances"] = options.allowances._asdict()
        self._open_fields = {
            "batch": batch,
            "spec": spec,
            "options": fields,
            "key": key_of(key_spec, digest),
            "key_spec": {**asdict(key_spec), "payload": ""},
        }
        self._payload = key_spec.payload
        self._client = os.urandom(8).hex()
        self._connection: Connection | None = None
        self._feed: Feed | None = None
        self._unacked: dict[int, Submission] = {}
        """By request number."""
        self._unacked_bytes = 0
        self._is_sealing = False
        self._leaving: bool | None = None
        """Whether it was asked to leave, and then whether at once."""
        self._restarts = 0
        self._done_at_restart = -1
        self.is_put_down = False

    # --- Opening -----------------------------------------------------------------------------------------------

    def open(self) -> dict[str, Any]:
        """Attach the batch; return its progress, reader checkpoint and sequences. Raises BatchdError."""
        while True:
            try:
                self._connection = connect(self.folder)
                self.progress = self._connection.ask("open", self._payload, **self._open_fields)
            except SupervisorGone:
                self._count_restart()
            else:
                return self.progress

    def feed(self, blocks: Iterator[Checkpointed]) -> None:
        """Send input as it comes, and seal the batch behind it."""
        if self.progress.get("is_sealed"):
            assert self._connection is not None
            self.progress = self._connection.ask("unseal", batch=self.batch)
        self._feed = Feed(blocks)

    @property
    def fileno(self) -> int:
        """The connection's descriptor."""
        assert self._connection is not None
        return self._connection.socket.fileno()

    @property
    def is_over(self) -> bool:
        """Whether no more jobs will start: finished, stopped, cancelled, put down, or nothing left without input."""
        if self.is_put_down or self.progress["state"] in {"finished", "cancelled", "stopped"}:
            return True
        return self._feed is None and self.progress["done"] == self.progress["size"]

    @property
    def busy(self) -> int:
        """How many workers run jobs of the batch."""
        return int(self.progress.get("busy", 0))

    @property
    def has_input(self) -> bool:
        """Whether it was given input to send."""
        return self._feed is not None

    @property
    def input_error(self) -> BaseException | None:
        """What ended the input early."""
        return self._feed.error if self._feed else None

    # --- Running -----------------------------------------------------------------------------------------------

    def pump(self, timeout_s: float, wake: Sequence[int] = ()) -> None:
        """Move input and messages for up to `timeout_s`, or until something happened or `wake` is readable."""
        try:
            self._send_input()
            sources = [self.fileno, *wake]
            if self._feed is not None and self._has_room:
                sources.append(self._feed.wake_fd)
            ready = select.select(sources, [], [], timeout_s)[0]
            if self._feed is not None and self._feed.wake_fd in ready:
                os.eventfd_read(self._feed.wake_fd)
            self._take_messages()
        except SupervisorGone:
            self._start_another()

    def leave(self, *, at_once: bool) -> None:
        """Ask the supervisor to put the batch down; `pump` until `is_put_down`."""
        self._leaving = at_once
        if self._feed is not None:
            self._feed.close()
        try:
            assert self._connection is not None
            self._connection.tell("detach", batch=self.batch, at_once=at_once)
        except SupervisorGone:
            self.is_put_down = True

    def close(self) -> None:
        """Hang up."""
        if self._feed is not None:
            self._feed.close()
        if self._connection is not None:
            self._connection.close()

    @property
    def _has_room(self) -> bool:
        return self._unacked_bytes < SUBMIT_WINDOW_BYTES

    def _send_input(self) -> None:
        feed = self._feed
        if feed is None or self._leaving is not None:
            return
        while self._has_room and (submission := feed.take()) is not None:
            self._send(submission)
        if feed.is_empty and feed.error is None and not self._unacked and not self._is_sealing:
            self._is_sealing = True
            assert self._connection is not None
            self._connection.tell("seal", batch=self.batch)

    def _send(self, submission: Submission) -> None:
        assert self._connection is not None
        self._unacked_bytes += len(submission.body)
        number = -1
        try:
            number = self._connection.tell(
                "submit",
                submission.body,
                batch=self.batch,
                client=self._client,
                sequence=submission.sequence,
                checkpoint=submission.checkpoint,
            )
        finally:
            self._unacked[number] = submission

    def _take_messages(self) -> None:
        assert self._connection is not None
        for kind, fields, _ in self._connection.messages():
            if kind == control.REPLY:
                acked = self._unacked.pop(int(fields.get("number", 0)), None)
                self._unacked_bytes -= len(acked.body) if acked else 0
                checked(fields)
            elif fields.get("batch") != self.batch:
                continue
            elif fields.get("is_put_down"):
                self.is_put_down = True
            if fields.get("told", 0) > self.progress.get("told", 0):
                self.progress = fields

    # --- When the supervisor dies ------------------------------------------------------------------------------

    def _start_another(self) -> None:
        if self._leaving is not None:
            self.is_put_down = True
            return
        if self._connection is not None:
            self._connection.close()
        self._count_restart()
        self.open()
        unacked = list(self._unacked.values())
        self._unacked, self._unacked_bytes = {}, 0
        self._is_sealing = False
        self._note(f"the supervisor died; started another ({lock.describe(self.folder)}) and going on")
        try:
            for submission in unacked:
                self._send(submission)
        except SupervisorGone:
            self._unacked = {-number: submission for number, submission in enumerate(unacked, 1)}
            self._start_another()

    def _count_restart(self) -> None:
        done = self.progress.get("done", 0)
        self._restarts = 1 if done != self._done_at_restart else self._restarts + 1
        self._done_at_restart = done
        if self._restarts > SUPERVISOR_RESTARTS_MAX:
            raise SupervisorError(
                f"the supervisor died {self._restarts} times without progress; "
                f"its last words are in {self.folder / _LOG_NAME}"
            )


def request(folder: Path, do: str, **fields: Any) -> dict[str, Any]:
    """Ask the journal's supervisor one thing, starting it when there is none. Raises BatchdError."""
    for _ in range(SUPERVISOR_RESTARTS_MAX):
        connection = connect(folder)
        try:
            return connection.ask(do, **fields)
        except SupervisorGone:
            continue  # It was just leaving.
        finally:
            connection.close()
    raise SupervisorError(f"the supervisor of {folder} keeps leaving; see {folder / _LOG_NAME}")
