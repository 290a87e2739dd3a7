"""A session: one batch that this client has open.

It outlives its supervisor: when that dies, another is started, what was not answered is asked again, and the batch
goes on. Every request about a batch may be repeated without harm; that is what makes this simple.
"""

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from batchd.client.blame import blame
from batchd.client.connection import LOG_NAME, Connection, SupervisorGone, checked, connect
from batchd.core.costs import Cost
from batchd.core.events import Options
from batchd.core.ranges import Range, RangeSet
from batchd.edge import control, lock
from batchd.edge.readiness import readable
from batchd.edge.template import KeySpec
from batchd.formats.reference import Keep, keep_nothing
from batchd.formats.segment import input_blocks
from batchd.settings import RECORD_BYTES_MAX, SUBMIT_WINDOW_BYTES, SUPERVISOR_RESTARTS_MAX


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
    def items(self) -> Sequence[Any]:
        """The items."""

    @property
    def checkpoint(self) -> Any:
        """An object with to_json()."""

    @property
    def costs(self) -> Sequence[Cost]:
        """Of the items that were said to be costly."""


Reply = Callable[[dict[str, Any]], None]


class Pending(NamedTuple):
    """A request about the batch that was not answered yet. It is sent again to the next supervisor."""

    do: str
    body: bytes
    fields: dict[str, Any]
    then: Reply | None
    """Called with the reply, whatever it says; without it an error is raised."""


class Feed:
    """Reads and encodes input in a thread of its own, so that a slow source never delays anything else."""

    def __init__(self, blocks: Iterator[Checkpointed], keep: Keep) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.error: BaseException | None = None
        self.is_over = False
        self._queue: deque[tuple[str, bytes, Sequence[Cost]]] = deque()
        self._room = threading.BoundedSemaphore(4)
        self._is_closed = False
        self._keep = keep
        self._thread = threading.Thread(target=self._run, args=(blocks,), name="feed", daemon=True)
        self._thread.start()

    def take(self) -> tuple[str, bytes, Sequence[Cost]] | None:
        """Return the next (checkpoint, segments, costs), None when there is none yet."""
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
        try:
            for block in blocks:
                body = b"".join(segment for _, segment in input_blocks(block.items, self._keep))
                self._room.acquire()
                self._queue.append((json.dumps(block.checkpoint.to_json()), body, block.costs))
                os.eventfd_write(self.wake_fd, 1)
                if self._is_closed:
                    return
        except BaseException as error:
            self.error = error
        finally:
            self.is_over = True
            os.eventfd_write(self.wake_fd, 1)


class GaveUp(Exception):
    """What was asked waits for a full disk, and whoever asked was told to `hurry`."""


class Session:
    """One batch, run for one client.

    `open`, then `feed` or `submit`, then `pump` until `is_over`, then `leave`. `progress` is what the supervisor last
    said. One thread uses a session.
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
        is_shared: bool = False,
        follows: bool = False,
        is_eager: bool = False,
        created: str = "",
    ) -> None:
        """Name a batch; `follows`: hear which outcomes are durable; `is_eager`: at once; `is_shared`: with others.

        `created`: when the batch was made that is meant, for another may have its id by now; "": it does not matter.
        """
        self.folder, self.batch = folder, batch
        self.progress: dict[str, Any] = {}
        self.recorded = RangeSet()
        """Jobs whose outcomes are durable, as far as they were told; whoever reads them may take them out."""
        self._note = note
        fields = asdict(options)
        fields["allowances"] = options.allowances._asdict()
        self._open_fields: dict[str, Any] = {
            "batch": batch,
            "spec": spec,
            "options": fields,
            "key": key_of(key_spec, digest),
            "key_spec": {**asdict(key_spec), "payload": ""},
            "is_shared": is_shared,
            "follows": follows,
            "is_eager": is_eager,
            "created": created,
        }
        self._payload = key_spec.payload
        self._is_throwaway = bool(spec and spec.get("is_throwaway"))
        self._is_patient = is_eager
        """Whether it is woken for each outcome anyway, so that answers may come with them."""
        self._client = os.urandom(8).hex()
        self._sequence = 0
        self._connection: Connection | None = None
        self._feed: Feed | None = None
        self._pending: dict[int, Pending] = {}
        """By request number; what could not even be sent has a negative one."""
        self._unsent = 0
        self._unacked_bytes = 0
        self._is_sealing = False
        self._leaving: bool | None = None
        """Whether it was asked to leave, and then whether at once."""
        self._is_hurried = False
        self._is_short = False
        self._trouble = ""
        self.restarts = 0
        """How many supervisors died on it, or left for want of space."""
        self._restarts = 0
        self._done_at_restart = -1
        self.is_put_down = False

    # --- Opening -----------------------------------------------------------------------------------------------

    def open(self) -> dict[str, Any]:
        """Attach the batch; return its progress and reader checkpoint. Raises BatchdError, GaveUp."""
        while True:
            try:
                self._connection = connect(self.folder, is_throwaway=self._is_throwaway)
                self.progress = self._ask("open", self._payload, **self._open_fields)
            except SupervisorGone:
                self._count_restart()
            else:
                # From now on it is there and the same one, or what this session knows of it is wrong.
                self._open_fields |= {"spec": None, "created": self.progress.get("created", "")}
                self._take_recorded(self.progress)
                return self.progress

    @property
    def created(self) -> str:
        """When the batch was made that this has open, or had."""
        return str(self._open_fields["created"])

    def feed(self, blocks: Iterator[Checkpointed], keep: Keep = keep_nothing) -> None:
        """Send input as it comes, and seal the batch behind it; `keep` writes large items to files."""
        self.unseal()
        self._feed = Feed(blocks, keep)

    def unseal(self) -> None:
        """Let more input come behind what was the end. Raises UsageError for a batch that was cancelled."""
        while self.progress.get("is_sealed") and not self.is_put_down:
            try:
                self.progress = self._ask("unseal", batch=self.batch)
            except SupervisorGone:
                self.start_another()

    def hurry(self) -> None:
        """Have nothing that is asked wait for a full disk, which raises GaveUp instead. Any thread may say so."""
        self._is_hurried = True
        connection = self._connection
        if connection is not None and connection.waits_for:
            connection.hang_up()

    def _ask(self, do: str, body: bytes = b"", /, **fields: Any) -> dict[str, Any]:
        connection = self._connection
        assert connection is not None

        def check() -> None:
            if self._is_hurried and connection.waits_for:
                raise GaveUp(connection.waits_for)

        def hear(why: str) -> None:
            self._note(why)
            check()

        try:
            return connection.ask(do, body, note=hear, **fields)
        except SupervisorGone:
            check()
            raise

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
    def is_paused(self) -> bool:
        """Whether nothing is committed, because the disk is full."""
        return bool(self.progress.get("trouble"))

    @property
    def has_input(self) -> bool:
        """Whether it was given input to send."""
        return self._feed is not None

    @property
    def input_error(self) -> BaseException | None:
        """What ended the input early."""
        return self._feed.error if self._feed else None

    @property
    def has_room(self) -> bool:
        """Whether little enough is unanswered for more input to be sent."""
        return self._unacked_bytes < SUBMIT_WINDOW_BYTES

    @property
    def is_answered(self) -> bool:
        """Whether everything that was asked is answered: what was submitted is on disk."""
        return not self._pending

    # --- Asking ------------------------------------------------------------------------------------------------

    def submit(
        self,
        body: bytes,
        checkpoint: str = "",
        keys: bytes = b"",
        then: Reply | None = None,
        costs: Sequence[Cost] = (),
    ) -> None:
        """Add the jobs of these input segments; the reply tells where they begin."""
        self._sequence += 1
        fields: dict[str, Any] = {"client": self._client, "sequence": self._sequence, "checkpoint": checkpoint}
        if keys:
            fields["keys"] = keys.hex()
        if costs:
            fields["costs"] = costs
        if self._is_patient and then is None:
            fields["is_patient"] = True
        self.post("submit", body, then, **fields)

    def submit_blocks(self, blocks: Sequence[bytes]) -> None:
        """Add the jobs of input blocks: small ones together, large ones by themselves, which saves copying them."""
        for is_large, group in groupby(blocks, lambda block: len(block) > RECORD_BYTES_MAX):
            for body in group if is_large else (b"".join(group),):
                self.submit(body)

    def define(self, mark: bytes, payload: bytes) -> None:
        """Send a callable that jobs name by its mark."""
        self.post("define", payload, None, mark=mark.hex())

    def trim(self, ranges: Sequence[Range], marks: Sequence[bytes] = ()) -> None:
        """Forget finished jobs of a throw-away batch, and callables that no other job names."""
        self.post("trim", b"", None, ranges=ranges, marks=[mark.hex() for mark in marks])

    def post(self, do: str, body: bytes, then: Reply | None, /, **fields: Any) -> None:
        """Send a request about the batch, and keep it until it is answered."""
        with suppress(SupervisorGone):  # Kept all the same: the next `pump` sees it, and starts another.
            self._send(Pending(do, body, fields, then))

    def _send(self, pending: Pending) -> None:
        assert self._connection is not None
        self._unacked_bytes += len(pending.body)
        self._unsent += 1
        number = -self._unsent
        try:
            number = self._connection.tell(pending.do, pending.body, batch=self.batch, **pending.fields)
        finally:
            self._pending[number] = pending

    # --- Running -----------------------------------------------------------------------------------------------

    def pump(self, timeout_s: float | None, wake: Sequence[int] = ()) -> None:
        """Move input and messages for up to `timeout_s`, or until something happened or `wake` is readable."""
        try:
            self._send_input()
            sources = [self.fileno, *wake]
            if self._feed is not None and self.has_room:
                sources.append(self._feed.wake_fd)
            ready = readable(sources, timeout_s)
            if self._feed is not None and self._feed.wake_fd in ready:
                os.eventfd_read(self._feed.wake_fd)
            self._take_messages()
        except SupervisorGone:
            self.start_another()

    def leave(self, *, at_once: bool) -> None:
        """Ask the supervisor to put the batch down; `pump` until `is_put_down`."""
        self._leaving = at_once
        if self._feed is not None:
            self._feed.close()
        try:
            assert self._connection is not None
            # A submission that was not answered might be asked again: of others nobody need remember who sent them.
            is_sure = all(each.do != "submit" for each in self._pending.values())
            known = {"client": self._client} if is_sure else {}
            self._connection.tell("detach", batch=self.batch, at_once=at_once, **known)
        except SupervisorGone:
            self.is_put_down = True

    def close(self) -> None:
        """Hang up."""
        if self._feed is not None:
            self._feed.close()
        if self._connection is not None:
            self._connection.close()

    def _send_input(self) -> None:
        feed = self._feed
        if feed is None or self._leaving is not None:
            return
        while self.has_room and (made := feed.take()) is not None:
            checkpoint, body, costs = made
            self.submit(body, checkpoint, costs=costs)
        if feed.is_empty and feed.error is None and not self._pending and not self._is_sealing:
            self._is_sealing = True
            self.post("seal", b"", None)

    def _take_messages(self) -> None:
        assert self._connection is not None
        for kind, fields, _ in self._connection.messages():
            if kind != control.REPLY and fields.get("batch") != self.batch:
                continue
            if fields.get("told", 0) > self.progress.get("told", 0):
                self.progress = fields
                self._tell_trouble(str(fields.get("trouble", "")))
                self._tell_shortage(str(fields.get("shortage", "")))
            self._take_recorded(fields)
            if kind != control.REPLY:
                self.is_put_down |= bool(fields.get("is_put_down"))
                for number in fields.get("answered", ()):
                    self._answered(number)
                continue
            pending = self._answered(int(fields.get("number", 0)))
            if pending is not None and pending.then is not None:
                pending.then(fields)
            else:
                checked(fields)

    def _answered(self, number: int) -> Pending | None:
        pending = self._pending.pop(number, None)
        self._unacked_bytes -= len(pending.body) if pending else 0
        return pending

    def _take_recorded(self, fields: dict[str, Any]) -> None:
        for start, stop in fields.get("recorded", ()):
            self.recorded.add(start, stop)

    def _tell_trouble(self, why: str) -> None:
        """Say why nothing goes on, and when it does again."""
        if why != self._trouble:
            self._trouble = why
            self._note(why or "going on")

    def _tell_shortage(self, why: str) -> None:
        if why and not self._is_short:
            self._is_short = True
            self._note(f"{why}; going on with the workers that could be started")

    # --- When the supervisor dies ------------------------------------------------------------------------------

    def start_another(self) -> None:
        """Go on with another supervisor: what was not answered is asked again, in order."""
        if self._leaving is not None:
            self.is_put_down = True
            return
        has_left = self._connection is not None and self._connection.has_left
        if self._connection is not None:
            self._connection.close()
        self._count_restart()
        self.restarts += 1
        self.open()
        # What was to be forgotten may have been sent anew behind that, and then it is in use.
        pending = [each for each in self._pending.values() if each.do != "trim"]
        self._pending, self._unacked_bytes = {}, 0
        why = "left, for the disk is full" if has_left else "died"
        self._note(f"the supervisor {why}; started another ({lock.describe(self.folder)}) and going on")
        try:
            for each in pending:
                self._send(each)
        except SupervisorGone:
            self._pending = {-number: each for number, each in enumerate(pending, 1)}
            self.start_another()

    def _count_restart(self) -> None:
        if self._connection is not None and self._connection.has_left:
            return  # It did so for who gave up, which says nothing about who goes on.
        done = self.progress.get("done", 0)
        self._restarts = 1 if done != self._done_at_restart else self._restarts + 1
        self._done_at_restart = done
        if self._restarts > SUPERVISOR_RESTARTS_MAX:
            raise blame(
                self.folder,
                self.batch,
                f"the supervisor died {self._restarts} times without progress; "
                f"its last words are in {self.folder / LOG_NAME}",
            )
