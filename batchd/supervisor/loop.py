"""The loop: gather, step, perform, answer, commit.

Nothing here decides about jobs, and nothing waits but `select`. Law: what an entry frees waits for its commit; the
scheduler sees to that. Answers that tell somebody "it is recorded" wait too (`after_commit`), and come after the
orders to workers: a worker that waits costs more than a client that does. Everything else, kills and timeouts above
all, leaves at once.
"""

import heapq
import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count
from math import inf
from selectors import EVENT_READ, BaseSelector, DefaultSelector
from time import monotonic
from typing import Any

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.assignment import rest_s
from batchd.core.entries import Recorded
from batchd.core.scheduler import Scheduler
from batchd.edge.control import SOCKET_NAME
from batchd.edge.gauges import Gauges
from batchd.edge.journal import BatchJournal, Progress
from batchd.edge.log import say
from batchd.edge.pool import Pool
from batchd.edge.template import Home
from batchd.settings import (
    LIMIT_CHECK_S,
    LINGER_S,
    REST_S_EAGER,
    REST_S_MAX,
    REST_S_MIN,
    START_WAIT_S,
)
from batchd.supervisor.aside import Aside
from batchd.supervisor.clients import Clients
from batchd.supervisor.fulldisk import FullDisk
from batchd.supervisor.lead import Lead
from batchd.supervisor.lookout import Lookout
from batchd.supervisor.recovery import Ground
from batchd.supervisor.requests import Requests
from batchd.supervisor.saving import Saved, Saving
from batchd.supervisor.usage import Usage


class Supervisor:
    """One supervisor process."""

    def __init__(
        self, ground: Ground, *, linger_s: float = LINGER_S, echo: tuple[int, ...] = (), pool: type[Pool] = Pool
    ) -> None:
        """`linger_s`: how long it waits for another client; `echo`: where jobs' output is shown (see `Home`)."""
        self.ground = ground
        self._linger_s = START_WAIT_S
        """Whoever started this is still on its way."""
        self._linger_after_s = linger_s
        self.selector: BaseSelector = DefaultSelector()
        self.scheduler = Scheduler(random.random)
        self.journals: dict[str, BatchJournal] = {}
        self.progress: dict[str, Progress] = {}
        self.usage = Usage(self.scheduler)
        self.gauges = Gauges()
        self.trouble = ""
        """Why nothing is being committed, '' when all is well."""
        self._events: list[ev.Event] = []
        self._is_pressed = False
        """Whether one of the events is not to wait for the end of a rest."""
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = count()
        self._lead = Lead()
        self._saving = Saving(self, self._lead, self._on_saved, self._on_full)
        self._next_sample = 0.0
        self._idle_since: float | None = None
        self._is_draining = False
        self._exit_code: int | None = None
        self.is_missed = True
        """Whether somebody is connected to whom another supervisor may matter."""
        lifeline_read, self._lifeline = os.pipe2(os.O_CLOEXEC)  # Its other end closes with this process, however.
        home = Home(
            batches=ground.folder / "batches",
            journal_id=ground.journal_id,
            epoch=ground.epoch,
            recorder_fd=ground.recorder.fd,
            lifeline_fd=lifeline_read,
            echo=echo,
        )
        self.aside = Aside(self.selector)
        self.pool = pool(self.selector, home, ground.recorder, self.emit, self.later, 2, self.aside.do)
        self._is_resting = False
        self.clients = Clients(self)
        self.requests = Requests(self, self.clients)
        self.clients.answer = self.requests.answer
        self._full_disk = FullDisk(self, self.clients, self.requests)
        self._lookout = Lookout(self)
        self._watch_signals()

    # --- What the rooms below call -----------------------------------------------------------------------------

    def emit(self, event: ev.Event) -> None:
        """Tell the scheduler something at the next step."""
        self._events.append(event)
        self._is_pressed = True

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call back after a delay."""
        heapq.heappush(self._timers, (monotonic() + delay_s, next(self._timer_numbers), call))

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call back when everything that was emitted so far is durable."""
        self._saving.then(call)

    # --- The loop ----------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until no client is left; return the exit code."""
        try:
            self._lead.run(self._serve)
        finally:
            self._close()
        return self._exit_code or 0

    def _serve(self) -> bool:
        """Make turns as long as this thread leads; return whether all is over."""
        while self._exit_code is None:
            events = self._gather()
            turn = self.scheduler.step(events, monotonic())
            self._saving.add(turn.number, turn.entries, self.clients.eager)
            self._perform(turn.commands)
            self.clients.tell_news(monotonic())
            self.clients.watch_slow()
            if any(isinstance(event, ev.JobsAcked) for event in events):
                self._rest()
            self._leave_when_idle()
            if self._full_disk.must_leave():
                self._exit_code = 3
            if self._exit_code is None and not self._saving.commit():
                return False  # The other thread is in the middle of a turn by now.
        return True

    def _gather(self) -> list[ev.Event]:
        for key, _ in self.selector.select(self._timeout_s()):
            key.data()
        now = monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        if now >= self._next_sample:
            self._sample(now)
        events, self._events, self._is_pressed = self._events, [], False
        self.usage.count(events)
        return events

    def _timeout_s(self) -> float:
        if self._is_pressed:
            return 0.0
        due = [self._next_sample, self._saving.due(), self.clients.news_due(is_resting=self._is_resting)]
        if self._timers:
            due.append(self._timers[0][0])
        if (backoff := self.scheduler.next_due()) is not None:
            due.append(backoff)
        if self._idle_since is not None:
            due.append(self._idle_since + self._linger_s)
        return max(0.0, min(due) - monotonic())

    def _on_saved(self, saved: Saved) -> None:
        self._full_disk.on_saved()
        self._set_trouble("")
        for name, made in saved.progress.items():
            self.progress[name] = made
            self.clients.mark_news(name)
            recorded = [entry for entry in saved.entries[name] if isinstance(entry, Recorded)]
            self.clients.mark_recorded(name, [(entry.first, entry.first + entry.count) for entry in recorded])
        self._events.append(ev.Committed(saved.turn))
        is_quiet = self._is_resting and not (saved.is_awaited or self.clients.is_news_urgent)
        self._is_pressed |= not is_quiet  # Else it is taken in when the rest ends: a turn fewer.

    def _on_full(self, reason: str) -> None:
        self._set_trouble(reason)
        self._full_disk.on_full()

    def _perform(self, commands: Sequence[c.Command]) -> None:
        """Give workers their orders, then clients their answers: these may tell of a batch that is put down next."""
        for command in commands:
            if not isinstance(command, c.PutDown):
                self.pool.perform(command)
                if isinstance(command, c.GrantLease):  # Nothing is committed for it, and one more worker is busy.
                    self.clients.mark_news(command.batch)
        self._saving.answer()
        for command in commands:
            if isinstance(command, c.PutDown):
                self._put_down(command.batch)

    def _put_down(self, batch: str) -> None:
        self.clients.on_put_down(batch)
        self.journals.pop(batch).close()
        self.usage.put_down(batch)
        self.after_commit(lambda: self._forget_progress(batch))  # Behind every answer that tells of it.
        self.pool.put_down(batch)
        self.clients.go_on_without(batch)

    def _forget_progress(self, batch: str) -> None:
        if batch not in self.journals:  # Else it was taken up again.
            self.progress.pop(batch, None)

    def _set_trouble(self, reason: str) -> None:
        if reason != self.trouble:
            self.trouble = reason
            for name in self.journals:
                self.clients.mark_news(name)
            if reason:
                say(reason)

    def _rest(self) -> None:
        """Leave reports unread for a moment when everybody is busy for longer: fewer, larger turns.

        Only as long as there are some: where all workers are in long jobs, nobody knows when the next one comes.
        """
        if self._is_resting or not self.pool.may_rest:
            return
        longest_s = REST_S_EAGER if self.clients.eager else REST_S_MAX
        wait_s = rest_s(self.scheduler.workers.values(), self.scheduler.batches, longest_s)
        if wait_s >= REST_S_MIN:
            self._is_resting = True
            self.pool.hold_reports()
            self.later(wait_s, self._end_rest)

    def _end_rest(self) -> None:
        self.pool.let_reports_in()
        self._is_resting = False

    # --- Gauges ------------------------------------------------------------------------------------------------

    def _sample(self, now: float) -> None:
        """Read positions for the limits per job; now and then also memory and CPU."""
        before = self.pool.positions()
        gauges = self.gauges.sample(worker.pid for worker in self.pool.workers.values() if worker.pid)
        self.pool.observe(gauges, before)
        self._next_sample = now + min(self.gauges.interval_s(), max(LIMIT_CHECK_S, self._first_timeout_s()))
        self.usage.measure(self.pool.workers.values(), gauges)
        self._lookout.look(now)

    def _first_timeout_s(self) -> float:
        """Return how long it takes at least until a job runs into its time limit: one that runs, or begins now."""
        limits = [batch.options.timeout_s for batch in self.scheduler.batches.values()]
        running = [event.running_s for event in self._events if isinstance(event, ev.WorkerObserved)]
        return min([limit for limit in limits if limit is not None], default=inf) - max(running, default=0.0)

    def status(self) -> dict[str, Any]:
        """Return what everybody is doing, for `batchd status`."""
        gauges = self.gauges.sample(worker.pid for worker in self.pool.workers.values() if worker.pid)
        workers = self.pool.status()
        for row in workers:
            gauge = gauges.get(row["pid"])
            row["memory_bytes"] = gauge.memory_bytes if gauge else None
            row["cpu_s"] = round(gauge.cpu_s, 3) if gauge else None
        return {
            "pid": os.getpid(),
            "epoch": self.ground.epoch,
            "scaled": self.scheduler.scaled,
            "trouble": self.trouble,
            "warnings": self._lookout.warnings,
            "workers": workers,
            "batches": {name: self.progress[name]._asdict() for name in self.journals},
            "machine": asdict(self.gauges.machine()),
            "sample_cost_s": self.gauges.cost_s,
        }

    # --- Leaving -----------------------------------------------------------------------------------------------

    def _leave_when_idle(self) -> None:
        is_needed = self.clients.is_any and not self._is_draining
        if self.clients.is_any:
            self._linger_s = self._linger_after_s
        if is_needed or self.journals or not self._saving.is_idle or self.requests.is_halfway:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = monotonic()
        elif monotonic() - self._idle_since >= self._linger_s or self._is_draining:
            self._exit_code = 0

    def _watch_signals(self) -> None:
        wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.selector.register(wake, EVENT_READ, lambda: self._on_signals(os.read(wake, 64)))

    def _on_signals(self, numbers: bytes) -> None:
        for _ in [number for number in numbers if number in {signal.SIGTERM, signal.SIGINT}]:
            say("asked to stop again: ending running jobs" if self._is_draining else "asked to stop: draining")
            for batch in self.journals:  # Also those the scheduler has not heard of yet.
                self.emit(ev.DetachRequested(batch, at_once=self._is_draining))
            self._is_draining = True
            self.clients.refuse_new("the supervisor was asked to stop")

    def _close(self) -> None:
        self.is_missed = self.clients.is_any
        (self.ground.folder / SOCKET_NAME).unlink(missing_ok=True)
        self.pool.close()
        self._saving.stop()
        if self._exit_code:
            self._full_disk.forget()
        self.clients.close()  # Whoever goes on with the next supervisor can start it now, or very soon.
        for journal in self.journals.values():
            journal.close()
        if self._exit_code == 0:  # In order: nothing is left to charge anybody for.
            self.ground.recorder_path.unlink(missing_ok=True)
