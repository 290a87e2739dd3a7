"""What is on its way to the disk: entries that wait, the one commit in flight, and the answers that wait for both.

Nothing here decides what is written, or who is told. The one idea: whatever waits waits for a turn, that which
decided it; a commit makes a turn durable, and with it all that was decided up to then.
"""

import os
from collections.abc import Callable, Container, Sequence
from math import inf
from selectors import EVENT_READ
from time import monotonic
from typing import NamedTuple

from batchd.core.entries import Entry
from batchd.edge.callbacks import call_each
from batchd.edge.commits import Broken, CommitThread, Done, Outcome, Stalled, is_light
from batchd.edge.journal import Progress
from batchd.edge.log import say
from batchd.settings import COMMIT_GAP_S, UNSAVED_BYTES_MAX
from batchd.supervisor.clients import Host
from batchd.supervisor.lead import Lead
from batchd.supervisor.unsaved import Unsaved


class Saved(NamedTuple):
    """What became durable."""

    turn: int
    """Everything up to this turn."""
    entries: dict[str, list[Entry]]
    progress: dict[str, Progress]
    is_awaited: bool
    """Whether it frees something, or somebody waits for it."""


class Saving:
    """Makes what the turns decide durable, a commit after the other."""

    def __init__(
        self, host: Host, lead: Lead, on_saved: Callable[[Saved], None], on_full: Callable[[str], None]
    ) -> None:
        """`on_full` is called with the reason, each time that the commit in flight finds no space."""
        self._host = host
        self._lead = lead
        self._on_saved = on_saved
        self._on_full = on_full
        self._commits = CommitThread()
        host.selector.register(self._commits.wake_fd, EVENT_READ, self._look)
        self._turn = 0
        self._durable_turn = 0
        self._unsaved = Unsaved()
        self._in_flight: dict[str, list[Entry]] = {}
        self._is_urgent = False
        """Whether what is in flight frees something, or somebody waits for it."""
        self._next_commit = 0.0
        self._waiting: list[tuple[int, Callable[[], None]]] = []
        self._is_behind = False
        """Whether reports are held because the disk is so far behind."""

    @property
    def is_idle(self) -> bool:
        """Whether everything is durable."""
        return not (self._in_flight or self._unsaved)

    def due(self) -> float:
        """Return when the loop is to be back for a commit or for answers; inf when it will be called."""
        if self._in_flight:
            return inf
        if self._waiting:
            return 0.0
        return self._next_commit if self._unsaved else inf

    def add(self, turn: int, entries: Sequence[Entry], eager: Container[str]) -> None:
        """Take in what a turn decided. Of the batches in `eager` somebody waits for the outcomes one by one."""
        self._turn = turn
        for entry in entries:
            self._unsaved.add(entry, is_awaited=entry.batch in eager)
        if self.is_idle:
            self._durable_turn = turn

    def then(self, call: Callable[[], None]) -> None:
        """Call back when everything that the loop was told so far is durable."""
        self._waiting.append((self._turn + 1, call))

    def answer(self) -> None:
        """Call back those whose turns are durable."""
        if not self._waiting or self._waiting[0][0] > self._durable_turn:
            return
        waiting = self._waiting
        self._waiting = [(due, call) for due, call in waiting if due > self._durable_turn]
        call_each(call for due, call in waiting if due <= self._durable_turn)

    def commit(self) -> bool:
        """Make or begin the commit that is due, if any; return whether this thread still leads."""
        if self._in_flight and self._host.trouble:
            for trim in self._unsaved.take_trims():  # What is committed may need the room.
                self._commits.make_room(self._host.journals[trim.batch], trim)
        if self._in_flight or not self._unsaved or self._may_gather():
            self._hold_back(is_behind=self._unsaved.nbytes >= UNSAVED_BYTES_MAX and not self._host.trouble)
            return True
        self._is_urgent, self._in_flight = self._unsaved.is_urgent, self._unsaved.take()
        work = []
        for name, entries in self._in_flight.items():
            journal = self._host.journals[name]
            journal.usage = self._host.usage.of(name)
            work.append((journal, entries))
        self._hold_back(is_behind=False)
        turn = self._turn
        if not is_light(work):
            self._commits.commit(turn, work)
            return True
        made = self._lead.write(lambda: self._commits.make(turn, work))
        is_leading = self._lead.is_mine
        if made is not None and is_leading:
            self._on_outcome(made)
        elif made is not None:
            self._commits.tell(made)
        return is_leading

    def stop(self) -> None:
        """Finish the commit in flight, unless the disk is full."""
        self._commits.stop()

    def _may_gather(self) -> bool:
        """Whether nobody waits for the entries, so that more may share their commit."""
        return not self._waiting and not self._unsaved.is_urgent and monotonic() < self._next_commit

    def _hold_back(self, *, is_behind: bool) -> None:
        """While results come faster than the disk takes them, let those who make them wait.

        On a full disk nobody is given work, and what still runs must be able to end before its batch is put down.
        """
        if is_behind and not self._is_behind:
            self._host.pool.hold_reports()
        elif self._is_behind and not is_behind:
            self._host.pool.let_reports_in()
        self._is_behind = is_behind

    def _look(self) -> None:
        for outcome in self._commits.outcomes():
            self._on_outcome(outcome)

    def _on_outcome(self, outcome: Outcome) -> None:
        match outcome:
            case Done(turn=turn, progress=progress):
                entries, self._in_flight = self._in_flight, {}
                self._next_commit = monotonic() + COMMIT_GAP_S
                # What only made room is in no commit: behind it there may be none.
                self._durable_turn = turn if self._unsaved else self._turn
                is_awaited = self._is_urgent or bool(self._waiting)
                self._on_saved(Saved(self._durable_turn, entries, progress, is_awaited))
            case Stalled(reason=reason):
                self._on_full(reason)
            case Broken(error=error):
                # What is on the disk is unknown. Memory is thrown away; the next start replays.
                say(f"a commit failed, leaving: {type(error).__name__}: {error}")
                os._exit(3)
