"""A simulated client: it brings one batch, submits its input in pieces, has whims, and leaves when it is over."""

from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from batchd.core import entries as e
from batchd.core import events as ev
from batchd.testing.journal import MemoryJournal
from batchd.testing.world import Cast, World


class Presence(Enum):
    """Where a client stands towards the supervisor."""

    AWAY = "away"
    HERE = "here"
    LEAVING = "leaving"
    GONE = "gone"


class SimulatedClient:
    """One client and its batch."""

    def __init__(
        self, world: World, cast: Cast, pieces: list[int], journal: MemoryJournal, post: Callable[[ev.Event], None]
    ) -> None:
        chance = world.chance
        self.batch = cast.batch
        self.presence = Presence.AWAY
        self.was_cancelled = False
        self._world, self._cast, self._journal, self._post = world, cast, journal, post
        self._pieces = pieces
        self._sent = 0
        self._accepted = 0
        """Pieces that the supervisor said are durable."""
        self._may_detach = chance.choice([0, 0, 1, 2])
        self._may_cancel = chance.random() < 0.2
        self._may_scale = chance.choice([0, 0, 0, 2])
        self._may_reopen = chance.choice([0, 0, 1, 2])
        self._may_grow = chance.random() < 0.15
        self._is_last = False
        self.pace_s = chance.choice([0.01, 0.05, 0.2])
        """The mean time between two looks at its batch."""

    @property
    def jobs(self) -> int:
        """How many jobs its whole input has."""
        return sum(self._pieces)

    def attach(self, stint: int) -> None:
        """Bring the batch, with the facts that the journal holds."""
        facts = self._journal.replay(self.batch)
        last = facts.sequences.get("client", (0, 0))[0]
        assert last >= self._accepted, f"{self.batch}: piece {self._accepted} was accepted and is lost: {last}"
        self._world.witness.attached(facts)
        self._sent = self._world.chance.choice([last, self._accepted])  # What is already there is said again.
        self._accepted = last
        self.presence = Presence.HERE
        self._post(ev.BatchAttached(facts, self._cast.options, self._cast.key, stint))

    def lost_supervisor(self) -> None:
        """The supervisor is dead; come again."""
        if self.presence is not Presence.GONE:
            self.presence = Presence.AWAY

    def put_down(self) -> None:
        """The supervisor closed the batch."""
        facts = self._world.witness.durable[self.batch]
        self.presence = Presence.GONE if self._is_last and facts.is_finished else Presence.AWAY
        if self.presence is Presence.GONE:
            self._world.witness.finished(self.batch, facts.size if self.was_cancelled else self.jobs)

    def told(self, entry: e.Entry) -> None:
        """The supervisor says that this is on disk."""
        if isinstance(entry, e.Submitted):
            self._accepted = max(self._accepted, entry.sequence)

    def act(self) -> None:
        """Do the next thing."""
        facts = self._world.witness.durable.get(self.batch)
        if facts is None or self.presence is not Presence.HERE:
            if self.presence is Presence.LEAVING and self._world.chance.random() < 0.3:
                self._submit()  # Too late or just in time: it must not be lost halfway.
            return
        if facts.is_finished:
            self._after_the_end()
        elif facts.cancelled:
            pass  # Its last jobs are being ended.
        elif facts.stopped:
            options = replace(self._cast.options, keep_going=True, failures_max=None, failures_share_max=None)
            self._cast.options = options
            self._leave(is_last=False)
        else:
            self._have_a_whim(facts.is_sealed)

    def _have_a_whim(self, is_sealed: bool) -> None:
        chance = self._world.chance
        throw = chance.random()
        if self._may_detach and throw < 0.04:
            self._may_detach -= 1
            self._leave(is_last=False)
        elif self._may_cancel and throw < 0.06:
            self._cancel()
        elif self._may_scale and throw < 0.15:
            self._may_scale -= 1
            self._post(ev.ScaleRequested(chance.choice([None, 1, 2, 5])))
        elif self._may_reopen and throw < 0.2:
            self._reopen()
        elif is_sealed:
            return
        elif self._sent < len(self._pieces):
            self._submit()
        elif self._accepted == len(self._pieces):
            self._post(ev.SealRequested(self.batch))
        elif throw > 0.9:
            self._sent = self._accepted  # The answer takes long: say it again.

    def _submit(self) -> None:
        piece = self._sent
        if piece and self._world.chance.random() < 0.1:
            piece -= 1  # A duplicate.
        elif piece < len(self._pieces):
            self._sent += 1
        else:
            return
        count = self._pieces[piece]
        first = sum(self._pieces[:piece])
        known = self._cast.costs
        costs = tuple((place, known[first + place]) for place in range(count) if first + place in known)
        segments = (b"jobs",) * bool(count)
        event = ev.SegmentsReceived(self.batch, count, segments, "client", piece + 1, f"{piece}", costs=costs)
        self._post(event)

    def _after_the_end(self) -> None:
        chance = self._world.chance
        if self._may_grow and not self.was_cancelled:
            self._may_grow = False
            self._pieces.append(chance.randrange(1, 20))
        if self._accepted < len(self._pieces) and not self.was_cancelled:
            self._post(ev.UnsealRequested(self.batch))
        elif self._may_reopen:
            self._reopen()
        elif self._sent == self._accepted or self.was_cancelled:
            self._leave(is_last=True)

    def _reopen(self) -> None:
        self._may_reopen -= 1
        ranges = self._journal.unsuccessful(self.batch)
        event = ev.ReopenRequested(self.batch, ranges, self._world.witness.durable[self.batch].generation)
        self._post(event)
        if self._world.chance.random() < 0.2:
            self._post(event)  # Somebody else asks for the same.

    def _cancel(self) -> None:
        self._may_cancel, self._may_grow, self.was_cancelled = False, False, True
        self._post(ev.CancelRequested(self.batch, "enough"))

    def _leave(self, *, is_last: bool) -> None:
        self._is_last = is_last
        self.presence = Presence.LEAVING
        self._post(ev.DetachRequested(self.batch, at_once=self._world.chance.random() < 0.3))
