"""A full disk: who is told, what makes room, and when to leave without what it has no room for.

The one idea: whatever waits for space goes on when there is some, by itself; only who wants to leave or to cancel is
not to wait for that. There is the reserve for them, and after it a supervisor that forgets.
"""

import lmdb

from batchd.core import events as ev
from batchd.core.replay import cancelled
from batchd.core.stored import copy
from batchd.edge import reserve
from batchd.edge.log import say
from batchd.supervisor.clients import Clients, Host
from batchd.supervisor.requests import Requests


class FullDisk:
    """What a supervisor does about it."""

    def __init__(self, host: Host, clients: Clients, requests: Requests) -> None:
        self._host = host
        self._clients = clients
        self._requests = requests
        self._has_stalled = False
        """Whether a commit found no space since `must_leave` was asked last."""

    def on_full(self) -> None:
        """A commit found no space."""
        self._has_stalled = True
        self._host.emit(ev.DiskFilled())
        self._clients.tell_trouble()
        self._requests.make_room()

    def on_saved(self) -> None:
        """A commit found space."""
        self._has_stalled = False

    def must_leave(self) -> bool:
        """Give whoever waits to leave or cancel the reserve; return whether that is not enough.

        What is in memory alone is forgotten then, and its jobs run again: the next start goes on from the journal.
        """
        has_stalled, self._has_stalled = self._has_stalled, False
        if not has_stalled or not any(map(self._waits_to_end, self._host.journals)):
            return False
        if reserve.release(self._host.ground.folder):
            return False
        say("leaving without what the disk has no room for: it is done again")
        return True

    def forget(self) -> None:
        """Let go of what has no room: write that batches are cancelled, alone, and tell of those that are put down.

        Nothing runs any more. Of a batch that is put down nothing is written: what was begun stands in the recorder,
        and that nobody is to be charged for it.
        """
        host = self._host
        for number in range(host.ground.recorder.slots):
            host.ground.recorder.slot(number).absolve()
        for name in filter(self._waits_to_end, host.journals):
            journal, facts = host.journals[name], host.scheduler.batches[name].facts
            if self._is_only_cancelled(name):
                try:
                    host.progress[name] = journal.commit(cancelled(copy(journal.facts), facts.cancelled))
                except (lmdb.Error, OSError) as error:
                    say(f"batch {name} is not cancelled: {error}")
            if not facts.is_attached:
                self._clients.on_put_down(name)
        self._clients.take_leave()

    def _waits_to_end(self, name: str) -> bool:
        """Whether a batch is put down or cancelled but for the disk."""
        batch = self._host.scheduler.batches.get(name)
        return batch is not None and (not batch.facts.is_attached or self._is_only_cancelled(name))

    def _is_only_cancelled(self, name: str) -> bool:
        """Whether a batch is cancelled in memory, and not in its journal."""
        batch = self._host.scheduler.batches.get(name)
        return batch is not None and bool(batch.facts.cancelled) and not self._host.journals[name].facts.cancelled
