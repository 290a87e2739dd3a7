"""The simulation: one seed, one schedule. It plays a supervisor around a real Scheduler and lets it die.

The turn is the real one (gather, step, commit, perform; one commit in flight), the restart is the real one
(replay, charge what the recorder shows, attach). What is made up is drawn from the seed in `_draw`.
"""

from collections import Counter
from dataclasses import dataclass
from random import Random

from batchd.core import commands as c
from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.job import Allowances
from batchd.core.replay import all_interrupted, interrupted
from batchd.core.scheduler import Scheduler, Turn
from batchd.testing.client import Presence, SimulatedClient
from batchd.testing.journal import MemoryJournal
from batchd.testing.pool import SimulatedPool
from batchd.testing.witness import Witness
from batchd.testing.world import Agenda, Cast, Deed, Fate, Faults, Story, World


@dataclass(frozen=True, slots=True)
class Report:
    """What a schedule came to."""

    seed: int
    steps: int
    turns: int
    jobs: int
    runs: int
    """Executions begun: at least one a job that was not cancelled."""
    worker_deaths: int
    """By faults, not by jobs."""
    supervisor_deaths: int
    seconds: float
    """Simulated."""


class Simulation:
    """One schedule, repeatable by its seed."""

    def __init__(
        self,
        seed: int,
        *,
        scheduler: type[Scheduler] = Scheduler,
        steps_max: int = 200_000,
        story_lines: int | None = 40,
    ) -> None:
        self._seed, self._scheduler_type, self._steps_max = seed, scheduler, steps_max
        self._chance = chance = Random(seed)  # noqa: S311  (a schedule, not a secret)
        self._agenda = Agenda()
        self.story = Story(self._agenda, story_lines)
        self.journal = MemoryJournal()
        self._faults = Faults(chance, _draw_faults(chance))
        self._keys = chance.choice([["one"], ["one", "two"]])
        self._witness = Witness()
        self._world = World(
            chance=chance,
            agenda=self._agenda,
            story=self.story,
            faults=self._faults,
            witness=self._witness,
            casts={},
            post=self._post,
            rests_idle=chance.random() < 0.5,
            ack_s=chance.choice([0.0, 0.001, 0.01, 0.1]),
            delay_s=chance.choice([0.0002, 0.002, 0.02]),
        )
        self._gather_s = chance.choice([0.0, 0.002, 0.01])
        self._commit_s = chance.choice([0.0005, 0.005, 0.05])
        self._clients: dict[str, SimulatedClient] = {}
        self._remakings = {
            f"batch-{number}": chance.choice([0, 0, 1]) for number in range(chance.choice([1, 1, 2, 3]))
        }
        """How often each batch will yet be removed and another be made under its id."""
        for batch in self._remakings:
            self._make(batch, edition=1)
        self._steps = self._turns = self._jobs_removed = 0
        self._epoch = self._stint = 0
        self._start()

    def run(self) -> Report:
        """Play until every client has gone; raise AssertionError with the story when an invariant breaks."""
        try:
            self._play()
        except Exception as error:
            again = f"seed {self._seed} broke at step {self._steps}; again: scripts/sim {self._seed} --story"
            raise AssertionError(f"{error!r}\n{again}\n{self.story}") from error
        return Report(
            seed=self._seed,
            steps=self._steps,
            turns=self._turns,
            jobs=self._jobs_removed + sum(client.jobs for client in self._clients.values()),
            runs=self._witness.runs,
            worker_deaths=sum(self._faults.struck[kind] for kind in ("worker", "idle", "start")),
            supervisor_deaths=self._faults.struck["supervisor"],
            seconds=self._agenda.now,
        )

    def _play(self) -> None:
        for batch in self._clients:
            self._agenda.after(0.0, self._client_acts, batch)
        while any(self._remakings.values()) or not all(map(self._is_gone, self._clients)):
            assert self._steps < self._steps_max, "it does not come to an end"
            assert self._agenda.run_next(), "nothing will ever happen again"
            self._steps += 1

    def _make(self, batch: str, edition: int) -> None:
        """Make a batch, whose client comes some time later; what had its id before is gone."""
        cast = self._world.casts[batch] = _draw_cast(self._chance, batch, self._chance.choice(self._keys), edition)
        self.journal.remove(batch)
        self._witness.made(batch, cast.options, cast.block)
        self._clients[batch] = self._draw_client(cast)

    def _is_gone(self, batch: str) -> bool:
        return self._clients[batch].presence is Presence.GONE

    def _draw_client(self, cast: Cast) -> SimulatedClient:
        """Draw a batch's jobs and their fates, and the client that brings them."""
        chance = self._chance
        mood = chance.choice([0.0, 0.0, 0.01, 0.05, 0.3, 1.0])
        size = chance.randrange(15) if mood > 0.1 or chance.random() < 0.6 else int(301 * chance.random() ** 2)
        deeds = chance.choice([[Deed.RAISE], [Deed.CRASH], [Deed.RAISE, Deed.CRASH, Deed.HANG]])
        for index in range(size):
            if chance.random() < mood:
                cast.fates[index] = Fate(chance.choice(deeds), chance.choice([1, 1, 2, 3, 1000]))
        if chance.random() < 0.5:
            share = chance.choice([0.1, 1.0])  # Those that are left out may take as long, and nobody knows.
            cast.costs = {
                index: min(1000.0, chance.paretovariate(0.8)) for index in range(size) if chance.random() < share
            }
        pieces: list[int] = []
        while sum(pieces) < size:
            pieces.append(min(size - sum(pieces), chance.choice([0, 1, 10, 100, 300])))
        return SimulatedClient(self._world, cast, pieces, self.journal, self._arrive)

    # --- The supervisor --------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start a supervisor with empty books."""
        self._epoch += 1
        self._is_alive = True
        self._is_rebooted = False
        """Whether the recorder is lost: also if this start is not the last one."""
        self._scheduler = self._scheduler_type(jitter=self._chance.random)
        self._pool = SimulatedPool(self._world, self._epoch)
        self._inbox: list[ev.Event] = []
        self._is_woken = False
        self._due: float | None = None
        self._uncommitted: list[tuple[int, list[e.Entry]]] = []
        self._in_flight: tuple[int, list[e.Entry]] | None = None

    def _post(self, at: float, epoch: int, event: ev.Event) -> None:
        self._agenda.at(at, self._arrive_from, epoch, event)

    def _arrive_from(self, epoch: int, event: ev.Event) -> None:
        if epoch == self._epoch and self._is_alive:
            self._arrive(event)

    def _arrive(self, event: ev.Event) -> None:
        """An event can be read; the supervisor wakes soon and reads what else came until then."""
        self._inbox.append(event)
        if not self._is_woken:
            self._is_woken = True
            self._agenda.after(self._chance.random() ** 2 * self._gather_s, self._step, self._epoch)

    def _step(self, epoch: int) -> None:
        if epoch != self._epoch or not self._is_alive:
            return
        events, self._inbox, self._is_woken = self._inbox, [], False
        for event in events:
            self.story.tell("event", event)
        turn = self._scheduler.step(events, self._agenda.now)
        self._turns += 1
        for thing in (*turn.entries, *turn.commands):
            self.story.tell(f"turn {turn.number}", thing)
        self._witness.saw(turn, self._scheduler)
        if turn.entries:
            self._uncommitted.append((turn.number, turn.entries))
            self._commit()
        self._perform(turn)
        due = self._scheduler.next_due()
        if due is not None and due != self._due:
            self._due = due
            self._agenda.at(due, self._step, epoch)

    def _perform(self, turn: Turn) -> None:
        if self._faults.strikes("supervisor", 0.003):
            self._die()
        for command in turn.commands:
            if not self._is_alive:
                return
            if isinstance(command, c.PutDown):
                self._clients[command.batch].put_down()
            else:
                self._pool.perform(command)
            if self._faults.strikes("supervisor", 0.003):
                self._die()

    def _commit(self) -> None:
        """Send everything that is not durable to the disk, unless a commit is under way."""
        if self._in_flight is None and self._uncommitted:
            entries = [entry for _, some in self._uncommitted for entry in some]
            self._in_flight = (self._uncommitted[-1][0], entries)
            self._uncommitted = []
            self._agenda.after(self._commit_s * self._chance.paretovariate(1.5), self._committed, self._epoch)

    def _committed(self, epoch: int) -> None:
        if epoch != self._epoch or not self._is_alive or self._in_flight is None:
            return
        turn, entries = self._in_flight
        self._write(entries)
        self._in_flight = None
        if self._faults.strikes("supervisor", 0.01):
            self._die()  # Durable, and nobody knows.
            return
        for entry in entries:
            self._clients[entry.batch].told(entry)
        self._arrive(ev.Committed(turn))
        self._commit()

    def _write(self, entries: list[e.Entry]) -> None:
        self.journal.commit(entries)
        self._witness.committed(entries)

    # --- Its death and what follows --------------------------------------------------------------------------

    def _die(self) -> None:
        """Lose everything but the journal, the recorder and, for a moment, the workers."""
        self.story.tell("supervisor", "dies")
        self._is_alive = False
        if self._in_flight is not None and self._chance.random() < 0.5:
            self.story.tell("disk", "the commit in flight is durable")
            self._write(self._in_flight[1])
        self._pool.end()
        for client in self._clients.values():
            client.lost_supervisor()
        self._agenda.after(0.06 + self._chance.random() * 0.1, self._restart)

    def _restart(self) -> None:
        workers = self._pool.workers.values()
        assert all(worker.is_dead for worker in workers), "a restart needs proof that the old workers are dead"
        self._witness.crashed(self.journal)
        is_reboot = self._is_rebooted = self._is_rebooted or self._chance.random() < 0.2
        self.story.tell("supervisor", "starts after a reboot" if is_reboot else "starts again")
        if not is_reboot:
            for job in filter(None, (worker.slot.running() for worker in workers)):
                self._witness.interrupted(job)
        for batch in self._clients:
            self._recover(batch, is_reboot=is_reboot)
            if self._faults.strikes("supervisor", 0.1):
                self.story.tell("supervisor", "dies while it recovers")
                self._agenda.after(0.1, self._restart)
                return
        self._start()

    def _recover(self, batch: str, *, is_reboot: bool) -> None:
        """Write down what was begun, once, however often this is repeated."""
        allowances = self._world.casts[batch].options.allowances
        traces = [trace for worker in self._pool.workers.values() for trace in worker.slot.traces()]
        for repetition in range(2):
            facts = self.journal.replay(batch)
            if is_reboot:
                entries = all_interrupted(facts) if facts.is_attached else []
            else:
                entries = interrupted(facts, traces, allowances)
                self._witness.kept(trace for trace in traces if trace.batch == batch)
            assert not (repetition and entries), f"the second recovery of {batch} is not empty: {entries}"
            for entry in entries:
                self.story.tell("recovery", entry)
            self._witness.recovered(entries)
            self._write(entries)
            assert facts == self.journal.replay(batch), "recovery returns entries it did not apply"

    # --- Clients ---------------------------------------------------------------------------------------------

    def _client_acts(self, batch: str) -> None:
        client = self._clients[batch]
        if client.presence is Presence.GONE:
            if not self._remakings[batch]:
                return
            self._remakings[batch] -= 1
            self.story.tell("disk", f"{batch} is removed and another is made")
            self._jobs_removed += client.jobs
            self._make(batch, self._world.casts[batch].edition + 1)
            client = self._clients[batch]
        self._agenda.after(self._chance.expovariate(1 / client.pace_s), self._client_acts, batch)
        if not self._is_alive:
            return
        if client.presence is Presence.AWAY:
            self._stint += 1
            client.attach(self._stint)
        else:
            client.act()


def _draw_faults(chance: Random) -> Counter[str]:
    if chance.random() < 0.2:
        return Counter()
    return Counter(
        supervisor=chance.choice([0, 0, 1, 2, 4]),
        worker=chance.choice([0, 1, 3, 8]),
        idle=chance.choice([0, 1, 3]),
        start=chance.choice([0, 0, 1, 5]),
        memory=chance.choice([0, 1, 3]),
        echo=chance.choice([0, 2]),
    )


def _draw_cast(chance: Random, batch: str, key: str, edition: int) -> Cast:
    options = ev.Options(
        workers=chance.choice([1, 2, 2, 3, 4, 6]),
        allowances=Allowances(chance.choice([0, 0, 1, 3]), chance.choice([1, 3, 3]), chance.choice([1, 5, 5])),
        timeout_s=chance.choice([None, None, 0.5]),
        memory_bytes_max=chance.choice([None, 2 << 30]),
        failures_max=chance.choice([None, None, None, 5]),
        failures_share_max=chance.choice([None, None, None, 0.5]),
        keep_going=chance.random() < 0.5,
    )
    return Cast(batch, key, options, duration_s=chance.choice([0.0001, 0.002, 0.002, 0.02]), edition=edition)
