"""The loop: gather, step, commit, perform, answer. The only clock.

Law: what an entry frees waits for its commit; the scheduler sees to that. Answers that tell somebody "it is recorded"
wait too (`after_commit`), and come after the orders to workers: a worker that waits costs more than a client that
does. Everything else, kills and timeouts above all, leaves at once.
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

import lmdb

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.assignment import rest_s
from batchd.core.entries import Entry, Recorded
from batchd.core.replay import cancelled
from batchd.core.scheduler import Scheduler
from batchd.core.stored import copy
from batchd.edge import reserve
from batchd.edge.callbacks import call_each
from batchd.edge.commits import Broken, CommitThread, Done, Outcome, Stalled, is_light
from batchd.edge.control import SOCKET_NAME
from batchd.edge.gauges import Gauges
from batchd.edge.journal import BatchJournal, Progress
from batchd.edge.log import say
from batchd.edge.pool import Pool
from batchd.edge.template import Home
from batchd.settings import (
    ANSWER_S,
    COMMIT_GAP_S,
    LIMIT_CHECK_S,
    LINGER_S,
    PROGRESS_S,
    REST_S_EAGER,
    REST_S_MAX,
    REST_S_MIN,
    START_WAIT_S,
    UNSAVED_BYTES_MAX,
)
from batchd.supervisor.aside import Aside
from batchd.supervisor.clients import Clients
from batchd.supervisor.lead import Lead
from batchd.supervisor.lookout import Lookout
from batchd.supervisor.recovery import Ground
from batchd.supervisor.requests import Requests
from batchd.supervisor.unsaved import Unsaved


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
        self.usage: dict[str, dict[str, float]] = {}
        self.gauges = Gauges()
        self.trouble = ""
        """Why nothing is being committed, '' when all is well."""
        self._has_stalled = False
        """Whether a commit found the disk full in this turn."""
        self._events: list[ev.Event] = []
        self._seen_running: dict[int, tuple[ev.Position | None, float]] = {}
        """Where each worker was seen last, and for how long its job had run, as far as that is known."""
        self._is_pressed = False
        """Whether one of the events is not to wait for the end of a rest."""
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = count()
        self._lead = Lead()
        self._commits = CommitThread()
        self._unsaved = Unsaved()
        self._is_behind = False
        """Whether reports are held because the disk is so far behind."""
        self._turn = 0
        self._in_flight: dict[str, list[Entry]] = {}
        """What is being committed."""
        self._is_free = False
        """Whether what is in a commit frees nothing."""
        self._next_commit = 0.0
        self._after: list[tuple[int, Callable[[], None]]] = []
        self._durable_turn = 0
        """Everything that was emitted up to this turn is durable."""
        self._next_sample = 0.0
        self._next_news = 0.0
        self._answer_by = inf
        """When the answers that are to go with the news must go by all means."""
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
        self._lookout = Lookout(self)
        self.selector.register(self._commits.wake_fd, EVENT_READ, self._on_commits)
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
        self._after.append((self._turn + 1, call))

    def batch_usage(self, batch: str) -> dict[str, float]:
        """Return the running sums of a batch."""
        return self.usage.setdefault(batch, {"busy_s": 0.0, "cpu_s": 0.0, "memory_peak_bytes": 0.0})

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
            self._turn = turn.number
            for entry in turn.entries:
                self._unsaved.add(entry, is_awaited=entry.batch in self.clients.eager)
            if not (self._unsaved or self._in_flight):
                self._durable_turn = self._turn
            self._perform(turn.commands)
            self._tell_news()
            self.clients.watch_slow()
            self._rest()
            self._leave_when_idle()
            self._leave_when_full()
            if self._exit_code is None and not self._commit():
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
        for event in events:
            match event:
                case ev.JobsAcked(worker=worker, lease=lease, busy_s=busy_s):
                    self._count_busy(worker, lease, busy_s)
                case ev.WorkerObserved(worker=worker, position=position, running_s=running_s):
                    self._seen_running[worker] = (position, running_s)
                case ev.WorkerGone(worker=worker):  # Nobody reports what its last job took.
                    seen, running_s = self._seen_running.pop(worker, (None, 0.0))
                    if seen is not None and seen == event.position:
                        self._count_busy(worker, seen.lease, running_s)
        return events

    def _count_busy(self, number: int, lease_number: int, busy_s: float) -> None:
        worker = self.scheduler.workers.get(number)
        lease = worker.lease(lease_number) if worker is not None else None
        if lease is not None:
            self.batch_usage(lease.batch)["busy_s"] += busy_s

    def _timeout_s(self) -> float:
        if self._is_pressed or (self._after and not self._in_flight):
            return 0.0
        due = [self._next_sample]
        if self._unsaved and not self._in_flight:
            due.append(self._next_commit)
        if self._timers:
            due.append(self._timers[0][0])
        if (backoff := self.scheduler.next_due()) is not None:
            due.append(backoff)
        if self.clients.is_news_waiting:
            due.append(self._answer_by if self._is_resting else min(self._next_news, self._answer_by))
        if self._idle_since is not None:
            due.append(self._idle_since + self._linger_s)
        return max(0.0, min(due) - monotonic())

    def _commit(self) -> bool:
        """Make or begin the commit that is due, if any; return whether this thread still leads."""
        if self._in_flight and self.trouble:
            for trim in self._unsaved.take_trims():  # What is committed may need the room.
                self._commits.make_room(self.journals[trim.batch], trim)
        if self._in_flight or not self._unsaved or self._may_gather():
            self._hold_back(is_behind=self._unsaved.nbytes >= UNSAVED_BYTES_MAX and not self.trouble)
            return True
        self._is_free, self._in_flight = not self._unsaved.is_urgent, self._unsaved.take()
        work = []
        for name, entries in self._in_flight.items():
            self.journals[name].usage = dict(self.batch_usage(name))
            work.append((self.journals[name], entries))
        self._hold_back(is_behind=False)
        turn = self._turn
        if not is_light(work):
            self._commits.commit(turn, work)
            return True
        made = self._lead.write(lambda: self._commits.make(turn, work))
        is_leading = self._lead.is_mine
        if made is not None and is_leading:
            self._on_commit(made)
        elif made is not None:
            self._commits.tell(made)
        return is_leading

    def _hold_back(self, *, is_behind: bool) -> None:
        """While results come faster than the disk takes them, let those who make them wait.

        On a full disk nobody is given work, and what still runs must be able to end before its batch is put down.
        """
        if is_behind and not self._is_behind:
            self.pool.hold_reports()
        elif self._is_behind and not is_behind:
            self.pool.let_reports_in()
        self._is_behind = is_behind

    def _may_gather(self) -> bool:
        """Whether nobody waits for the entries, so that more may share their commit."""
        return not self._after and not self._unsaved.is_urgent and monotonic() < self._next_commit

    def _on_commits(self) -> None:
        for outcome in self._commits.outcomes():
            self._on_commit(outcome)

    def _on_commit(self, outcome: Outcome) -> None:
        match outcome:
            case Done(turn=turn, progress=progress):
                saved, self._in_flight = self._in_flight, {}
                self._next_commit, self._has_stalled = monotonic() + COMMIT_GAP_S, False
                self._set_trouble("")
                for name, made in progress.items():
                    self.progress[name] = made
                    self.clients.mark_news(name)
                    made_now = [entry for entry in saved[name] if isinstance(entry, Recorded)]
                    ranges = [(entry.first, entry.first + entry.count) for entry in made_now]
                    self.clients.mark_recorded(name, ranges)
                # What only made room is in no commit: behind it there may be none.
                self._durable_turn = turn if self._unsaved else self._turn
                self._events.append(ev.Committed(self._durable_turn))
                is_quiet = self._is_resting and self._is_free and not (self._after or self.clients.is_news_urgent)
                self._is_pressed |= not is_quiet  # Else it is taken in when the rest ends: a turn fewer.
            case Stalled(reason=reason):
                self._has_stalled = True
                self._set_trouble(reason)
                self._events.append(ev.DiskFilled())
                self.clients.tell_trouble()
                self.requests.make_room()
            case Broken(error=error):
                # What is on the disk is unknown. Memory is thrown away; the next start replays.
                say(f"a commit failed, leaving: {type(error).__name__}: {error}")
                os._exit(3)

    def _perform(self, commands: Sequence[c.Command]) -> None:
        """Give workers their orders, then clients their answers: these may tell of a batch that is put down next."""
        for command in commands:
            if not isinstance(command, c.PutDown):
                self.pool.perform(command)
                if isinstance(command, c.GrantLease):  # Nothing is committed for it, and one more worker is busy.
                    self.clients.mark_news(command.batch)
        self._answer()
        for command in commands:
            if isinstance(command, c.PutDown):
                self._put_down(command.batch)

    def _answer(self) -> None:
        if not self._after or self._after[0][0] > self._durable_turn:
            return
        waiting = self._after
        self._after = [(due, call) for due, call in waiting if due > self._durable_turn]
        call_each(call for due, call in waiting if due <= self._durable_turn)

    def _put_down(self, batch: str) -> None:
        self.clients.on_put_down(batch)
        self.journals.pop(batch).close()
        self.usage.pop(batch, None)
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
        """Leave reports unread for a moment when everybody is busy for longer: fewer, larger turns."""
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

    def _tell_news(self) -> None:
        if not self.clients.is_news_waiting:
            return
        now = monotonic()
        self._answer_by = min(self._answer_by, now + ANSWER_S) if self.clients.owes_answers else inf
        if now >= min(self._next_news, self._answer_by) or self.clients.is_news_urgent:
            self._next_news, self._answer_by = now + PROGRESS_S, inf
            self.clients.tell_news()

    # --- Gauges ------------------------------------------------------------------------------------------------

    def _sample(self, now: float) -> None:
        """Read positions for the limits per job; now and then also memory and CPU."""
        before = self.pool.positions()
        gauges = self.gauges.sample(worker.pid for worker in self.pool.workers.values() if worker.pid)
        self.pool.observe(gauges, before)
        self._next_sample = now + min(self.gauges.interval_s(), max(LIMIT_CHECK_S, self._first_timeout_s()))
        for worker in self.pool.workers.values():
            gauge = gauges.get(worker.pid)
            booked = self.scheduler.workers.get(worker.number)
            if gauge is None or booked is None or not booked.leases:
                continue
            usage = self.batch_usage(booked.leases[0].batch)
            usage["memory_peak_bytes"] = max(usage["memory_peak_bytes"], gauge.memory_bytes)
            usage["cpu_s"] += max(0.0, gauge.cpu_s - worker.cpu_seen_s)
            worker.cpu_seen_s = gauge.cpu_s
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
        if is_needed or self.journals or self._in_flight or self._unsaved or self.requests.is_halfway:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = monotonic()
        elif monotonic() - self._idle_since >= self._linger_s or self._is_draining:
            self._exit_code = 0

    def _leave_when_full(self) -> None:
        """Where the disk is full, give whoever waits to leave or cancel the reserve; if that is not enough, stop.

        What is in memory alone is forgotten then, and its jobs run again: the next start goes on from the journal.
        """
        has_stalled, self._has_stalled = self._has_stalled, False
        if not has_stalled or not any(map(self._waits_to_end, self.journals)):
            return
        if not reserve.release(self.ground.folder):
            say("leaving without what the disk has no room for: it is done again")
            self._exit_code = 3

    def _waits_to_end(self, name: str) -> bool:
        """Whether a batch is put down or cancelled but for the disk."""
        batch = self.scheduler.batches.get(name)
        return batch is not None and (not batch.facts.is_attached or self._is_only_cancelled(name))

    def _is_only_cancelled(self, name: str) -> bool:
        """Whether a batch is cancelled in memory, and not in its journal."""
        batch = self.scheduler.batches.get(name)
        return batch is not None and bool(batch.facts.cancelled) and not self.journals[name].facts.cancelled

    def _forget(self) -> None:
        """Let go of what has no room: write that batches are cancelled, alone, and tell of those that are put down.

        Nothing runs any more. Of a batch that is put down nothing is written: what was begun stands in the recorder,
        and that nobody is to be charged for it.
        """
        for number in range(self.ground.recorder.slots):
            self.ground.recorder.slot(number).absolve()
        for name in filter(self._waits_to_end, self.journals):
            journal, facts = self.journals[name], self.scheduler.batches[name].facts
            if self._is_only_cancelled(name):
                try:
                    self.progress[name] = journal.commit(cancelled(copy(journal.facts), facts.cancelled))
                except (lmdb.Error, OSError) as error:
                    say(f"batch {name} is not cancelled: {error}")
            if not facts.is_attached:
                self.clients.on_put_down(name)
        self.clients.take_leave()

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
        self._commits.stop()
        if self._exit_code:
            self._forget()
        self.clients.close()  # Whoever goes on with the next supervisor can start it now, or very soon.
        for journal in self.journals.values():
            journal.close()
        if self._exit_code == 0:  # In order: nothing is left to charge anybody for.
            self.ground.recorder_path.unlink(missing_ok=True)
