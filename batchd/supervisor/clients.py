"""Clients: who is connected, which batches they have open, what they are told and when.

Clients are watched by pidfd, not only by end of file: a child the client forked may hold the connection open. What
they ask for is in requests.py.
"""

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from typing import Any, Protocol

from batchd.core import events as ev
from batchd.core.ranges import Range, RangeSet
from batchd.core.scheduler import Scheduler
from batchd.edge.callbacks import call_each
from batchd.edge.control import NEWS, REPLY, Line, Message, listen
from batchd.edge.journal import BatchJournal, Progress
from batchd.edge.log import log_traceback, say
from batchd.edge.pool import Pool
from batchd.edge.readiness import readable
from batchd.errors import BatchdError, FormatError
from batchd.settings import ANSWER_S, DOOR_REST_S, PROGRESS_S, REFUSED_TOLD_S
from batchd.supervisor.aside import Aside
from batchd.supervisor.recovery import Ground
from batchd.supervisor.usage import Usage
from batchd.units import counted


class Host(Protocol):
    """What requests need of the supervisor's loop."""

    ground: Ground
    selector: BaseSelector
    scheduler: Scheduler
    pool: Pool
    aside: Aside
    journals: dict[str, BatchJournal]
    progress: dict[str, Progress]
    usage: Usage
    trouble: str

    def emit(self, event: ev.Event) -> None:
        """Tell the scheduler something at the next step."""

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call back after a delay."""

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call back when everything that was emitted so far is durable."""

    def status(self) -> dict[str, Any]:
        """Return what everybody is doing."""


class Client:
    """One connected client."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.pidfd = os.pidfd_open(line.pid)
        self.bound: set[str] = set()
        """Batches that stop when this client, or the last of those that share them, goes."""
        self.untold: dict[str, RangeSet] = {}
        """Of the batches it follows: jobs whose outcomes are durable, which it has not been told yet."""
        self.names: dict[str, str] = {}
        """By batch: the name under which it submits."""
        self.answered: dict[str, list[int]] = {}
        """By batch: requests that are done, and whose client hears so with the next news."""
        self.is_slow = False
        """Whether it is watched for room to send."""
        self.is_gone = False

    def forget(self, batch: str) -> None:
        """Let go of a batch that it has open no more."""
        self.bound.discard(batch)
        self.untold.pop(batch, None)
        self.names.pop(batch, None)
        self.answered.pop(batch, None)

    def reply(self, number: int, fields: dict[str, Any]) -> None:
        """Answer a request."""
        if not self.is_gone:
            self.line.send(REPLY, {"number": number, **fields})

    def refuse(self, number: int, error: BatchdError) -> None:
        """Answer that it cannot be done."""
        self.reply(number, {"error": type(error).__name__, "message": str(error)})


class Clients:
    """All clients of one supervisor."""

    def __init__(self, supervisor: Host) -> None:
        self._supervisor = supervisor
        self.answer: Callable[[Client, Message], None]
        """What becomes of a request: set by whoever makes the rules."""
        self._door = listen(supervisor.ground.folder)
        self._clients: list[Client] = []
        self._news: set[str] = set()
        self._put_down: dict[str, list[Callable[[], None]]] = {}
        """What waits for a batch to be put down."""
        self.refusal = ""
        """Why nothing new is begun, '' when it is."""
        self.shared: set[str] = set()
        """Live batches that several clients may have open."""
        self.eager: set[str] = set()
        """Live batches whose outcomes somebody waits for one by one."""
        self._is_watching_door = False
        self._refused = 0
        """Connections of other users that were not told of yet."""
        self._is_quiet = False
        """Whether one was told of a short while ago: a flood is a line a while."""
        self._told = 0
        """Numbers what is told of progress: a client that reads a reply before older news can tell."""
        self.is_news_urgent = False
        self._next_news = 0.0
        self._answer_by = inf
        """When the answers that are to go with the news must go by all means."""
        self._watch_door()

    @property
    def is_any(self) -> bool:
        """Whether somebody is connected."""
        return bool(self._clients)

    def news_due(self, *, is_resting: bool) -> float:
        """Return when to tell what is new, inf if nothing is; in a rest only answers are due."""
        if not self._news:
            return inf
        return self._answer_by if is_resting else min(self._next_news, self._answer_by)

    def answer_with_news(self, client: Client, batch: str, number: int) -> None:
        """Answer a request with the next news of its batch: a message of its own would only wake the client."""
        if batch not in client.bound:  # It left meanwhile, and hears no more of it.
            client.reply(number, self.progress(batch))
            return
        client.answered.setdefault(batch, []).append(number)
        self._news.add(batch)

    def mark_news(self, batch: str) -> None:
        """Have the batch's clients told of its progress; at once when it ended or stopped."""
        self._news.add(batch)
        made = self._supervisor.progress.get(batch)
        if made is not None and made.state not in {"open", "sealed"}:
            self.is_news_urgent = True

    def tell_trouble(self) -> None:
        """Tell everybody why nothing is answered: also who has no batch open, as whoever cancels one."""
        for client in self._clients:
            if not client.line.has_unsent:
                client.line.send(NEWS, {"trouble": self._supervisor.trouble})

    def take_leave(self) -> None:
        """Tell everybody that this supervisor leaves, by intention and for want of space: the last thing it says."""
        for client in self._clients:
            client.line.send(NEWS, {"trouble": self._supervisor.trouble, "is_leaving": True})

    def tell_news(self, now: float) -> None:
        """Tell every client the progress of its batches, if it is time."""
        if not self._news:
            return
        # Answers that go with the news are not to come late, for somebody who reads them.
        owes_answers = any(client.answered and not client.line.has_unsent for client in self._clients)
        self._answer_by = min(self._answer_by, now + ANSWER_S) if owes_answers else inf
        if now < min(self._next_news, self._answer_by) and not self.is_news_urgent:
            return
        self._next_news, self._answer_by = now + PROGRESS_S, inf
        news, self._news, self.is_news_urgent = self._news, set(), False
        for client in self._clients:
            if client.line.has_unsent:  # It does not read: later news will be newer.
                self._news |= client.bound & news
                continue
            for batch in client.bound & news:
                self._tell(client, batch)

    def mark_recorded(self, batch: str, ranges: Sequence[Range]) -> None:
        """Have those who follow the batch told which outcomes are durable now, before anything else is said."""
        if not ranges:
            return  # What else there is can wait for the news.
        for client in self._clients:
            untold = client.untold.get(batch)
            if untold is None:
                continue
            for start, stop in ranges:
                untold.add(start, stop)
            if not client.line.has_unsent:
                self._tell(client, batch)

    def may_join(self, batch: str) -> bool:
        """Whether the batch is open to others, and stays open: whoever comes while it is put down waits for that."""
        return batch in self.shared and batch not in self._put_down and self.owner(batch) is not None

    def owner(self, batch: str) -> Client | None:
        """Return a client that has the batch open, None when nobody has."""
        return next((client for client in self._clients if batch in client.bound), None)

    def leave(self, client: Client, batch: str, *, at_once: bool) -> bool:
        """Unbind a client; return whether the batch is put down with that, because nobody else has it open."""
        client.forget(batch)
        if self.owner(batch) is not None:
            return False
        self._supervisor.emit(ev.DetachRequested(batch, at_once=at_once))
        return True

    def detach(self, client: Client, batch: str, *, at_once: bool, then: Callable[[], None]) -> None:
        """Let a client leave a batch in order, and call back when it has been put down or others go on with it."""
        others = any(batch in other.bound for other in self._clients if other is not client)
        if others:
            self._tell(client, batch, is_put_down=True)
            self.leave(client, batch, at_once=at_once)
            then()
            return
        self._put_down.setdefault(batch, []).append(then)  # It stays bound until then, to hear of the end.
        self._supervisor.emit(ev.DetachRequested(batch, at_once=at_once))

    def when_put_down(self, batch: str, call: Callable[[], None]) -> None:
        """Call back when nobody runs the batch: at once, or when it has been put down."""
        if batch in self._supervisor.journals:
            self._put_down.setdefault(batch, []).append(call)
        else:
            call()

    def refuse_new(self, reason: str) -> None:
        """Answer every further open with this."""
        self.refusal = reason

    def on_put_down(self, batch: str) -> None:
        """The batch is durably detached: tell its client how it stands at the end."""
        for client in self._clients:
            if batch in client.bound:
                self._tell(client, batch, is_put_down=True)
                client.forget(batch)
        self.shared.discard(batch)
        self.eager.discard(batch)

    def go_on_without(self, batch: str) -> None:
        """Serve those who waited until the batch was put down."""
        call_each(self._put_down.pop(batch, ()))

    def watch_slow(self) -> None:
        """Watch for room whoever reads more slowly than it is told things, and nobody else; once a turn."""
        for client in self._clients:
            if client.line.has_unsent != client.is_slow:
                client.is_slow = client.line.has_unsent
                wanted = EVENT_READ | (EVENT_WRITE if client.is_slow else 0)
                self._supervisor.selector.modify(client.line.socket, wanted, partial(self._on_line, client))

    def close(self) -> None:
        """Hang up on everybody."""
        for client in list(self._clients):
            self._drop(client)
        self._leave_door()
        self._door.close()
        self._tell_refused()

    # --- Connections -------------------------------------------------------------------------------------------

    def _watch_door(self) -> None:
        if not self._is_watching_door and self._door.fileno() >= 0:
            self._supervisor.selector.register(self._door, EVENT_READ, self._on_door)
            self._is_watching_door = True

    def _leave_door(self) -> None:
        if self._is_watching_door:
            self._supervisor.selector.unregister(self._door)
            self._is_watching_door = False

    def _on_door(self) -> None:
        try:
            line, _ = self._door.accept()
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                # Whoever knocks stays at the door, which would wake the loop without end.
                self._leave_door()
                self._supervisor.later(DOOR_REST_S, self._watch_door)
            return
        try:
            client = Client(Line(line))
        except BatchdError as error:
            line.close()
            self._on_refused(error)
            return
        except OSError:
            line.close()  # Gone already.
            return
        self._clients.append(client)
        selector = self._supervisor.selector
        selector.register(line, EVENT_READ, partial(self._on_line, client))
        selector.register(client.pidfd, EVENT_READ, partial(self._drop, client))

    def _on_refused(self, error: BatchdError) -> None:
        if self._is_quiet:
            self._refused += 1
        else:
            say(f"somebody else is at the door: {error}")
            self._is_quiet = True
            self._supervisor.later(REFUSED_TOLD_S, self._tell_refused)

    def _tell_refused(self) -> None:
        self._is_quiet = bool(self._refused)
        if self._is_quiet:
            say(f"{counted(self._refused, 'more connection')} of other users refused since that was told last")
            self._refused = 0
            self._supervisor.later(REFUSED_TOLD_S, self._tell_refused)

    def _on_line(self, client: Client) -> None:
        if client.is_gone:
            return
        try:
            messages = client.line.read()
        except FormatError:
            messages = None
        if messages is None:
            self._drop(client)
            return
        for message in messages:
            try:
                self.answer(client, message)
            except Exception:  # A bug, and perhaps of one request only: the others are served on.
                log_traceback()
                self._drop(client)
                return
        client.line.flush()

    def _drop(self, client: Client) -> None:
        if client.is_gone:
            return
        client.is_gone = True
        self._clients.remove(client)
        if readable([client.pidfd], 0.0):  # Its process is dead: nobody will ask again for what it submitted.
            for batch, name in client.names.items():
                self._supervisor.emit(ev.ClientLeft(batch, name))
        for source in (client.line.socket, client.pidfd):
            self._supervisor.selector.unregister(source)
        client.line.close()
        os.close(client.pidfd)
        for batch in list(client.bound):  # Nobody waits for what runs: it is cut off and uncharged.
            self.leave(client, batch, at_once=True)
        self._supervisor.pool.let_go()  # Of what is imported for nobody else.

    def _tell(self, client: Client, batch: str, *, is_put_down: bool = False) -> None:
        """Send how a batch stands, with all that the client was not told yet: nothing comes after `is_put_down`."""
        untold = client.untold.get(batch)
        fields = self.progress(batch)
        if is_put_down:
            fields["is_put_down"] = True
        if untold:
            fields["recorded"] = list(untold)
            client.untold[batch] = RangeSet()
        if answered := client.answered.pop(batch, None):
            fields["answered"] = answered
        client.line.send(NEWS, fields)

    def progress(self, batch: str) -> dict[str, Any]:
        """Return what clients are told of a batch."""
        supervisor = self._supervisor
        made = supervisor.progress[batch]
        live = supervisor.scheduler.batches.get(batch)
        self._told += 1
        return {
            "told": self._told,
            "batch": batch,
            **made._asdict(),
            "workers": len(supervisor.pool.workers),
            "busy": len(live.workers) if live else 0,
            "trouble": supervisor.trouble,
            "shortage": supervisor.pool.shortage,
            "usage": supervisor.usage.of(batch),
        }
