"""Changes: what is done to a batch by somebody who need not have it open.

One that nobody has open is taken up for just that. What has to be read or waited for is read and waited for aside.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from batchd.core import events as ev
from batchd.core.job import JobState
from batchd.core.ranges import Range, RangeSet
from batchd.edge.callbacks import call_each
from batchd.edge.control import Message
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import jobs_in
from batchd.edge.removal import set_aside
from batchd.errors import SupervisorError
from batchd.supervisor.clients import Client, Clients, Host
from batchd.supervisor.openings import Opening, Openings
from batchd.supervisor.taking import Change, Taken, replace_digest, take_up


class _Asked(NamedTuple):
    """A change, and who is to hear of it."""

    client: Client
    number: int
    name: str
    if_idle: bool
    change_of: Callable[[BatchJournal], Change | None]
    """Makes the event of what the journal holds; None when that is closed meanwhile."""
    is_read: bool = False
    """Whether that reads the disk."""
    told: Callable[[BatchJournal], dict[str, Any]] = lambda _: {}
    """What else is answered when it is durable."""


class _Read(NamedTuple):
    """A change that was made of what was durable when it was read."""

    cancelled: str
    """Why the batch was cancelled by then, '' when it was not."""
    change: Change | None


class Changes:
    """The rules for these."""

    def __init__(self, supervisor: Host, clients: Clients, openings: Openings) -> None:
        self._supervisor = supervisor
        self._clients = clients
        self._openings = openings
        self._removals: dict[Callable[[], None], str] = {}
        """What sets a batch aside that somebody wants removed, and its name."""
        self._changing: set[str] = set()
        """Batches in which it does not show yet that they were changed."""

    def accept_code(self, client: Client, number: int, message: Message) -> None:
        """Store that a batch goes on with the task's present source."""
        name, digest = str(message.fields["batch"]), str(message.fields["digest"])
        folder, what = self._openings.folder(name), f"exchange the code of batch {name}"

        def go_on() -> None:
            with self._openings.answering(client, number, what):
                if name in self._supervisor.journals:
                    raise SupervisorError(f"batch {name} is running: its code cannot be exchanged now")
                if not self._openings.hands.wait(name, go_on):
                    self._openings.hands.take(name, lambda: replace_digest(folder, digest), over)

        def over(raised: Exception | None) -> None:
            with self._openings.answering(client, number, what):
                if raised is not None:
                    raise raised
                client.reply(number, {})

        go_on()

    def cancel(self, client: Client, number: int, message: Message) -> None:
        """Give a batch up."""
        name, if_idle = str(message.fields["batch"]), bool(message.fields.get("if_idle"))
        event = ev.CancelRequested(name, str(message.fields["reason"]))
        self._change(_Asked(client, number, name, if_idle, lambda _: event))

    def reopen(self, client: Client, number: int, message: Message) -> None:
        """Run jobs again, all that are in some state or those of `ranges`; tell which of these have no outcome."""
        name, if_idle = str(message.fields["batch"]), bool(message.fields.get("if_idle"))
        states = {JobState(state) for state in message.fields["states"]} - {JobState.SUCCEEDED}
        asked = RangeSet(ranges_of(message)) if "ranges" in message.fields else None
        is_replaced = bool(message.fields.get("is_replaced"))

        def told(journal: BatchJournal) -> dict[str, Any]:
            done = journal.snapshot().done
            return {"undone": [part for start, stop in asked or () for part in done.gaps(start, stop)]}

        change_of = partial(_reopening, states, asked, is_replaced)
        self._change(_Asked(client, number, name, if_idle, change_of, is_read=True, told=told))

    def _change(self, asked: _Asked) -> None:
        """Emit an event about a batch, taking the batch up for just that when nobody runs it."""
        supervisor, name, hands = self._supervisor, asked.name, self._openings.hands
        with self._openings.answering(asked.client, asked.number, f"change batch {name}"):
            if asked.if_idle:
                self._openings.check_free(name, is_shared=False)
            journal = supervisor.journals.get(name)
            if journal is not None and asked.is_read:
                supervisor.aside.do_alone(partial(_read, asked, journal), partial(self._emit_read, asked, journal))
            elif journal is not None:
                self._emit(asked, asked.change_of(journal), journal)
            elif not hands.wait(name, lambda: self._change(asked)):
                folder = self._openings.folder(name)
                hands.take(name, lambda: take_up(folder, change_of=asked.change_of), partial(self._emit_idle, asked))

    def _emit_read(self, asked: _Asked, journal: BatchJournal, made: _Read | Exception) -> None:
        """Emit what was read of a batch that somebody runs, if that still holds."""
        with self._openings.answering(asked.client, asked.number, f"change batch {asked.name}"):
            if isinstance(made, Exception):
                raise made
            if self._supervisor.journals.get(asked.name) is not journal:
                self._change(asked)  # It was put down meanwhile.
            elif self._is_outdated(asked.name, made):
                self._supervisor.after_commit(lambda: self._change(asked))
            else:
                self._emit(asked, made.change, journal)

    def _is_outdated(self, name: str, made: _Read) -> bool:
        """Whether others cancelled the batch, or had jobs run again, since it was read which jobs these are."""
        if name in self._changing:
            return True
        batch, change = self._supervisor.scheduler.batches.get(name), made.change
        if batch is None or not isinstance(change, ev.ReopenRequested):
            return False
        return (change.generation, made.cancelled) != (batch.facts.generation, batch.facts.cancelled)

    def _emit_idle(self, asked: _Asked, made: Taken | Exception) -> None:
        with self._openings.answering(asked.client, asked.number, f"change batch {asked.name}"):
            if isinstance(made, Exception):
                raise made
            self._openings.attach(made, Opening(asked.name))
            self._emit(asked, made.change, made.journal, is_live=False)
            self._supervisor.emit(ev.DetachRequested(asked.name))  # Nobody said how its workers would start.

    def _emit(self, asked: _Asked, change: Change | None, journal: BatchJournal, *, is_live: bool = True) -> None:
        def tell() -> None:
            with self._openings.answering(asked.client, asked.number, f"tell what came of batch {asked.name}"):
                progress = self._clients.progress(asked.name)
                asked.client.reply(asked.number, {**progress, "is_live": is_live, **asked.told(journal)})

        assert change is not None, "of a journal that is open"
        self._changing.add(asked.name)
        self._supervisor.after_commit(lambda: self._changing.discard(asked.name))
        self._supervisor.emit(change)
        self._supervisor.after_commit(tell)

    def prune(self, client: Client, number: int, message: Message) -> None:
        """Set a batch aside that nobody runs; whoever asked deletes what then has another name."""
        name, hands = str(message.fields["batch"]), self._openings.hands
        self._openings.folder(name)

        def remove() -> None:
            if remove not in self._removals or hands.wait(name, remove):
                return
            del self._removals[remove]
            with self._openings.answering(client, number, f"remove batch {name}"):
                if name in self._supervisor.journals:
                    raise SupervisorError(f"batch {name} is running: `batchd cancel {name}` ends it")
                folder = self._supervisor.ground.folder
                hands.take(name, lambda: set_aside(folder, name).name, removed, is_halfway=True)

        def removed(made: str | Exception) -> None:
            with self._openings.answering(client, number, f"remove batch {name}"):
                if isinstance(made, Exception):
                    raise made
                client.reply(number, {"aside": made})

        self._removals[remove] = name
        if self._supervisor.trouble:
            remove()
        else:  # Behind every answer that still reads the batch.
            self._supervisor.after_commit(remove)

    def make_room(self) -> None:
        """Remove what somebody wants removed, without waiting for a commit that waits for the room this makes."""
        held = {*self._supervisor.journals, *self._openings.hands}
        call_each([remove for remove, name in self._removals.items() if name not in held])
        # The others are being put down, for which there is the reserve.


def _read(asked: _Asked, journal: BatchJournal) -> _Read:
    return _Read(journal.facts.cancelled, asked.change_of(journal))


def _reopening(
    states: set[JobState], asked: RangeSet | None, is_replaced: bool, journal: BatchJournal
) -> ev.ReopenRequested | None:
    """Return which jobs run again; None when the batch is closed meanwhile. Reads the heads of all its outcomes."""
    facts = journal.snapshot()
    found = jobs_in(journal, facts, states) if any(facts.count(state) for state in states) else {}
    if found is None:
        return None
    if asked is not None:
        found = {
            state: RangeSet(part for span in asked for part in of_state.overlap(*span))
            for state, of_state in found.items()
        }
    ranges = tuple((state, tuple(of_state)) for state, of_state in found.items() if of_state)
    if asked is None and not ranges:
        ranges = ((JobState.CANCELLED, ()),)  # It takes back that the batch was cancelled, if nothing else.
    return ev.ReopenRequested(facts.batch, ranges, facts.generation, is_replaced)


def ranges_of(message: Message) -> tuple[Range, ...]:
    """Return the ranges of jobs that a message names. Raises ValueError."""
    ranges = tuple((int(start), int(stop)) for start, stop in message.fields["ranges"])
    if any(not 0 <= start < stop for start, stop in ranges):
        raise ValueError("a range that is none")
    return ranges
