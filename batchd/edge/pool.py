"""The pool: worker processes on this machine, behind a narrow door.

In go the scheduler's orders (start, grant, cut, stop, kill, forget), out come events (ready, acked, ended, gone).
Nothing is decided here. The law of a death: see the exit (pidfd), read the pipe to its end, only then the recorder.
"""

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ, BaseSelector, EpollSelector
from time import monotonic, monotonic_ns
from typing import Any

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.edge.callbacks import call_each
from batchd.edge.exits import describe
from batchd.edge.gauges import WorkerGauge
from batchd.edge.grace import when_ended
from batchd.edge.orphans import kill_tagged, reap_adopted
from batchd.edge.reports import acknowledged, event_of
from batchd.edge.strays import delete_unreported
from batchd.edge.template import Home, KeySpec, TemplateProcess, spawn
from batchd.edge.workerprocess import WorkerProcess, descriptors
from batchd.errors import FormatError
from batchd.formats.frame import Frame, FrameReader
from batchd.formats.reference import OF_WORKER
from batchd.formats.report import LEASE
from batchd.settings import CUT_WAIT_S, IDLE_TEMPLATES_MAX, READ_BYTES, STACK_DUMP_S, TERM_WAIT_S
from batchd.worker import output
from batchd.worker.recorder import STARTED, WRITER, Lane, Recorder
from batchd.worker.template import tag

Emit = Callable[[ev.Event], None]
Later = Callable[[float, Callable[[], None]], None]
Waiter = tuple[Callable[[str], None], Callable[[], bool]]
"""Of an import: who is called when it is done, and whether he is still there."""
DoAside = Callable[[Callable[[], object]], object]
"""Has work done that may wait for the disk."""


class Pool:
    """The worker processes and templates of one supervisor."""

    def __init__(
        self,
        selector: BaseSelector,
        home: Home,
        recorder: Recorder,
        emit: Emit,
        later: Later,
        log_fd: int,
        do_aside: DoAside = lambda work: work(),
    ) -> None:
        self._selector = selector
        self._home = home
        self._recorder = recorder
        self._emit = emit
        self._later = later
        self._log_fd = log_fd
        self._do_aside = do_aside
        self._keys: dict[str, KeySpec] = {}
        self._templates: dict[str, TemplateProcess] = {}
        """Of keys that no live batch has the last few, those put down last at the end."""
        self._fresh: set[str] = set()
        self._live: dict[str, str] = {}
        """The key of each live batch."""
        self._free_slots = list(reversed(range(recorder.slots)))
        """The last is used first: a slot that was ever used has memory for its transcript."""
        self.shortage = ""  # Why the last worker that the system refused was refused, for people.
        self._held_slots: dict[int, int] = {}
        """Slots of gone workers whose outcomes are not durable yet."""
        self._waiters: dict[str, list[Waiter]] = {}
        self._reports = EpollSelector()
        """The report pipes, in a set of their own: they may be left unread for a moment."""
        selector.register(self._reports, EVENT_READ, self._read_reports)
        self._holds = 0
        self.workers: dict[int, WorkerProcess] = {}
        self._exited: list[WorkerProcess] = []
        """Whose exits were found in this turn."""

    # --- Orders ------------------------------------------------------------------------------------------------

    def add_key(
        self, key: str, spec: KeySpec, on_ready: Callable[[str], None], is_waiting: Callable[[], bool] = lambda: True
    ) -> None:
        """Make a key known and import its task; `on_ready` is called with '' or with why it cannot be done.

        `is_waiting` tells whether whoever asks is still there to hear that.
        """
        self.let_go()  # Of what whoever asked before did not take up.
        self._learn(key, spec)
        template = self._templates.get(key)
        if template is None:
            try:
                template = self._start_template(key)
            except OSError as error:
                on_ready(f"cannot start a process for the task: {error}")
                return
        self._waiters.setdefault(key, []).append((on_ready, is_waiting))
        if template.is_ready:
            self._tell_waiters(key, "")

    def take_up(self, batch: str, key: str, spec: KeySpec) -> None:
        """Have a key at hand as long as the batch is live: its workers may be started at any moment."""
        self._learn(key, spec)  # Again: making the batch may have taken long.
        self._live[batch] = key

    def put_down(self, batch: str) -> None:
        """Let go of a batch's key, if no other live batch has it."""
        key = self._live.pop(batch)
        if key in self._templates:
            self._templates[key] = self._templates.pop(key)
        self.let_go()

    def _learn(self, key: str, spec: KeySpec) -> None:
        self._keys[key] = spec
        if spec.is_fresh:
            self._fresh.add(key)

    def let_go(self) -> None:
        """Forget the keys that nobody needs, for whoever wants one sends it; a few templates wait for that.

        They have imported their task. An import that nobody waits for any more may never end.
        """
        self._waiters = {key: each for key, each in self._waiters.items() if any(waits() for _, waits in each)}
        needed = {*self._live.values(), *self._waiters}
        for key in self._keys.keys() - needed:
            del self._keys[key]
        self._fresh.intersection_update(self._keys)
        idle = [(key, each) for key, each in self._templates.items() if key not in needed and not each.pending]
        ready = [key for key, template in idle if template.is_ready][-IDLE_TEMPLATES_MAX:]
        for key, template in idle:
            if key not in ready:
                self._drop_template(key, template)

    def perform(self, command: c.Command) -> None:
        """Carry out one order."""
        match command:
            case c.StartWorker(worker=number, key=key):
                self._start(number, key)
            case c.GrantLease():
                self._grant(command)
            case c.CutLease():
                self._cut(command)
            case c.StopWorker(worker=number):
                if (worker := self.workers.get(number)) and worker.leases_fd >= 0:
                    os.close(worker.leases_fd)
                    worker.leases_fd = -1
            case c.KillWorker(worker=number, why=why, with_stack=with_stack, has_grace=has_grace):
                if (worker := self.workers.get(number)) and has_grace:
                    when_ended(worker.slot, self._later, lambda: self._kill(worker, why))
                elif worker:
                    self._kill(worker, why, with_stack=with_stack)
            case c.ForgetWorker(worker=number):
                if number in self._held_slots:  # Or it had none: there was no free one when it was to start.
                    self._free_slots.append(slot := self._held_slots.pop(number))
                    self._recorder.slot(slot).clear()  # What it said and nobody heard is overruled, durably.

    def positions(self) -> dict[int, ev.Position | None]:
        """Return where each worker is, to be held against where it is after it was measured."""
        return {number: worker.slot.position() for number, worker in self.workers.items()}

    def observe(self, gauges: dict[int, WorkerGauge], before: dict[int, ev.Position | None]) -> None:
        """Emit where each worker is, with its memory, for the limits per job."""
        now = monotonic()
        for worker in self.workers.values():
            position = worker.slot.position()
            gauge = gauges.get(worker.pid)
            memory_bytes = gauge.memory_bytes if gauge and position == before.get(worker.number) else 0
            output.free_head(worker.output_fd)
            worker.memory_peak_bytes = max(worker.memory_peak_bytes, memory_bytes)
            if position is None:
                continue
            if worker.seen != (position.lease, position.index):
                worker.seen, worker.seen_at = (position.lease, position.index), now
            # Of a job that has ended the time goes on, and nobody is to look when it would reach the limit.
            started_ns = worker.slot.words[STARTED] if position.phase is ev.Phase.RUNNING else 0
            running_s = (monotonic_ns() - started_ns) / 1e9 if started_ns else 0.0
            # Clock and memory belong to the job at the position only if nothing moved while they were read.
            if worker.slot.position() == position:
                self._emit(ev.WorkerObserved(worker.number, position, running_s, memory_bytes))
        self._reap()

    def status(self) -> list[dict[str, Any]]:
        """Return what each worker is doing, for people."""
        rows = []
        for worker in self.workers.values():
            position = worker.slot.position()
            lane = next((lane for lane in worker.slot.lanes() if position and lane.lease == position.lease), None)
            is_running = position is not None and position.phase is not ev.Phase.IDLE
            rows.append(
                {
                    "worker": worker.number,
                    "pid": worker.pid,
                    "batch": lane.batch if lane and is_running else None,
                    "job": position.index if position and is_running else None,
                    "since_s": round(monotonic() - worker.seen_at, 3) if is_running and worker.seen_at else None,
                    "progress": worker.slot.progress(position) if position and is_running else None,
                }
            )
        return rows

    @property
    def may_rest(self) -> bool:
        """Whether reports fit their pipes, so that nobody stands still while they are left unread."""
        return not any(worker.is_wordy for worker in self.workers.values())

    def hold_reports(self) -> None:
        """Let reports wait in their pipes, and workers once these are full, until each holder lets them in."""
        self._holds += 1
        if self._holds == 1:
            self._selector.unregister(self._reports)

    def let_reports_in(self) -> None:
        """Take in what waits, unless somebody else still holds it."""
        self._holds -= 1
        if not self._holds:
            self._selector.register(self._reports, EVENT_READ, self._read_reports)
            self._read_reports()

    def _read_reports(self) -> None:
        for key, _ in self._reports.select(0):
            key.data()

    def close(self) -> None:
        """Kill every worker and template and see them dead."""
        for worker in list(self.workers.values()):
            self._kill(worker, "")
            if worker.pid and worker.pidfd < 0:  # Its birth was told, and there was no descriptor to watch it with.
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
            if worker.pid:
                with suppress(ChildProcessError):
                    os.waitpid(worker.pid, 0)
        for key, template in list(self._templates.items()):
            self._drop_template(key, template)
        self._reports.close()
        kill_tagged(f"{self._home.journal_id:.16}.{self._home.epoch:08d}", wait_s=1.0)
        reap_adopted(set())

    # --- Starting ----------------------------------------------------------------------------------------------

    def _start_template(self, key: str) -> TemplateProcess:
        template = self._templates[key] = TemplateProcess(self._keys[key], self._home, self._log_fd)
        self._selector.register(template.door, EVENT_READ, lambda: self._on_template(key, template))
        return template

    def _start(self, number: int, key: str) -> None:
        if not self._free_slots:
            self._emit(ev.WorkerGone(number, None, "no slot left in the flight recorder"))
            return
        try:
            unborn = sum(worker.pidfd < 0 for worker in self.workers.values())
            leases, leases_fd, reports_fd, reports, output_fd = descriptors(unborn)
        except OSError as error:
            self.shortage = f"cannot start a worker: {error.strerror}"
            self._emit(ev.WorkerGone(number, None, self.shortage, is_short=True))
            return
        slot_number = self._free_slots.pop()
        slot = self._recorder.clear(slot_number)
        writer = slot.words[WRITER] = int.from_bytes(os.urandom(8), "big") | OF_WORKER
        worker = WorkerProcess(number, key, slot_number, slot, leases_fd, reports_fd, output_fd, writer)
        self.workers[number] = worker
        fds = (leases, reports, output_fd)
        try:
            if key in self._fresh:
                self._start_fresh(worker, fds)
            else:
                (self._templates.get(key) or self._start_template(key)).ask(number, slot_number, fds)
        except OSError as error:
            self._on_unstarted(worker, f"cannot start a worker: {error.strerror}", is_short=True)
        finally:
            os.close(leases)
            os.close(reports)

    def _start_fresh(self, worker: WorkerProcess, fds: tuple[int, int, int]) -> None:
        extra = {"worker": worker.number, "slot": worker.slot_number, "fds": fds}
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            process = spawn(self._keys[worker.key], self._home, extra, null, fds, self._log_fd)
        finally:
            os.close(null)
        process.returncode = 0  # Its exit is ours to collect, with wait4.
        self._on_started(worker, process.pid)

    def _on_template(self, key: str, template: TemplateProcess) -> None:
        if self._templates.get(key) is not template:
            return  # It was dropped for what was found ready together with this, and came first.
        said = template.answers()
        for message in said or ():
            if "started" in message and message["started"] in self.workers:
                self._on_started(self.workers[message["started"]], message["pid"])
            elif "unstarted" in message and message["unstarted"] in self.workers:
                self._on_unstarted(self.workers[message["unstarted"]], message["why"], is_short=True)
            elif "ready" in message:
                self._on_template_ready(key, template)
        if said is None:
            self._drop_template(key, template)
            reason = template.failure or template.death()
            self._tell_waiters(key, reason)
            if template.failure:
                self._emit(ev.KeyFailed(key, template.failure))
            for number in template.pending:
                if number in self.workers:
                    self._on_unstarted(self.workers[number], reason)
                    reason = ""  # One death, however many were waiting for it.

    def _on_template_ready(self, key: str, template: TemplateProcess) -> None:
        if template.threads > 1 or key in self._fresh:  # Forking a process with threads can deadlock its children.
            self._fresh.add(key)
            pending = list(template.pending)
            self._drop_template(key, template)
            for number in pending:
                self._on_unstarted(self.workers[number], "")
        self._tell_waiters(key, "")

    def _tell_waiters(self, key: str, reason: str) -> None:
        call_each([on_ready for on_ready, _ in self._waiters.pop(key, ())], reason)

    def _drop_template(self, key: str, template: TemplateProcess) -> None:
        self._selector.unregister(template.door)
        template.close()
        if self._templates.get(key) is template:
            del self._templates[key]

    def _on_started(self, worker: WorkerProcess, pid: int) -> None:
        worker.pid = pid
        worker.pidfd = os.pidfd_open(pid)
        self._selector.register(worker.pidfd, EVENT_READ, lambda: self._on_exit(worker))
        # Not before: who is ready is given work, and the end of a worker without a pidfd is seen by nobody.
        self._reports.register(worker.reports_fd, EVENT_READ, lambda: self._on_reports(worker))
        if worker.is_killed:
            self._kill(worker, worker.why)

    def _on_unstarted(self, worker: WorkerProcess, why: str, *, is_short: bool = False) -> None:
        self.shortage = why if is_short else self.shortage
        self._close(worker)
        self._emit(ev.WorkerGone(worker.number, None, why, is_short=is_short))

    # --- Leases ------------------------------------------------------------------------------------------------

    def _grant(self, order: c.GrantLease) -> None:
        worker = self.workers.get(order.worker)
        if worker is None or worker.leases_fd < 0:
            return
        lane = Lane(
            lease=order.lease,
            first=order.first,
            stop=order.stop,
            attempt=order.attempt,
            is_timed=order.is_timed,
            reports_each=order.reports_each,
            batch=order.batch,
            reach=order.stop,
            stint=order.stint,
        )
        worker.slot.write_lane(order.lane, lane)
        worker.granted.append(order)
        with suppress(BrokenPipeError):  # It died: its exit tells.
            os.write(worker.leases_fd, LEASE.pack(order.lease, order.lane))

    def _cut(self, order: c.CutLease) -> None:
        worker = self.workers.get(order.worker)
        if worker is not None and worker.slot.lane(order.lane).lease == order.lease:
            worker.slot.limit(order.lane, order.stop)
            self._later(CUT_WAIT_S, lambda: self._finish_cut(order))

    def _finish_cut(self, order: c.CutLease) -> None:
        worker = self.workers.get(order.worker)
        if worker is None or worker.slot.lane(order.lane).lease != order.lease:
            return
        position = worker.slot.position()
        stop = order.stop
        if position is not None and position.lease == order.lease:
            stop = max(stop, position.index + 1)
            if order.is_ending:
                worker.slot.end(order.lease)
        elif position is not None and position.lease > order.lease:
            return  # It is over; its end was reported.
        worker.slot.settle(order.lane, stop)
        self._emit(ev.LeaseCut(order.worker, order.lease, stop))

    def _on_reports(self, worker: WorkerProcess) -> None:
        if worker.number not in self.workers:
            return  # Its exit was found ready together with this, came first, and closed the pipe.
        try:
            if (room := worker.reader.room) is not None and (size := os.readv(worker.reports_fd, [room])):
                self._take_in(worker, worker.reader.filled(size))
                return
            data = os.read(worker.reports_fd, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._reports.unregister(worker.reports_fd)  # Its exit, which pidfd shows, decides.
            return
        self._take_in(worker, worker.reader.feed(data))
        worker.hear(len(data))

    def _take_in(self, worker: WorkerProcess, frames: Iterable[Frame]) -> None:
        try:
            for frame in frames:
                event = event_of(worker.number, worker.key, frame)
                if isinstance(event, ev.JobsAcked):
                    worker.told = event.lease, event.first + event.count
                self._emit(event)
        except FormatError as error:
            worker.reader = FrameReader()
            self._kill(worker, f"sent garbage on its report pipe ({error})")

    # --- Ending ------------------------------------------------------------------------------------------------

    def _kill(self, worker: WorkerProcess, why: str, *, with_stack: bool = False) -> None:
        worker.is_killed, worker.why = True, why or worker.why
        if worker.pidfd < 0:
            return  # Not born yet: `_on_started` comes back here.
        if with_stack:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(
                    worker.pidfd, signal.SIGABRT
                )  # faulthandler prints the stack and lets it die.
            self._later(STACK_DUMP_S, worker.kill)
        else:
            worker.kill()

    def _on_exit(self, worker: WorkerProcess) -> None:
        """Have it buried with all whose exits are found in this turn: their children are looked for once."""
        if not self._exited:
            self._later(0.0, self._bury)
        self._exited.append(worker)

    def _bury(self) -> None:
        exited, self._exited = self._exited, []
        ends = []
        for worker in exited:
            self._drain(worker)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.pid, signal.SIGKILL)  # Before the pid is free: children in its group.
            ends.append((worker, *os.wait4(worker.pid, 0)[1:]))
        # Before it is told that anybody is gone: then his jobs may run again.
        kill_tagged(*(tag(self._home.journal_id, self._home.epoch, worker.number) for worker in exited))
        for worker, status, usage in ends:
            position = worker.slot.position()
            cause = worker.why or describe(status)
            failure = worker.failure(position, cause, status, usage)
            self._delete_unreported(worker, position)
            self._close(worker)
            is_terminated = not worker.is_killed and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
            gone = ev.WorkerGone(worker.number, position, cause, failure.encode(), is_terminated=is_terminated)
            if is_terminated:
                self._later(TERM_WAIT_S, partial(self._emit, gone))
            else:
                self._emit(gone)
        self._reap()

    def _drain(self, worker: WorkerProcess) -> None:
        """Read what it sent, to EAGAIN: a grandchild may hold the pipe open for ever."""
        with suppress(BlockingIOError):
            while data := os.read(worker.reports_fd, READ_BYTES):
                self._take_in(worker, worker.reader.feed(data))

    def _delete_unreported(self, worker: WorkerProcess, position: ev.Position | None) -> None:
        """Have the results deleted that it wrote to files and did not tell of, or its deaths would fill the disk."""
        if position is None or position.phase is ev.Phase.IDLE:
            return
        lease, stop = worker.told
        transcript = self._recorder.transcript(worker.slot_number)
        # A lease before the one it told of last is over, whatever C code of a job wrote into the slot.
        for order in [order for order in worker.granted if order.lease == position.lease >= lease]:
            starts = [stop if lease == order.lease else order.first]
            if transcript is not None:  # If the supervisor dies as well, the next one records what is there.
                said = acknowledged(worker.number, transcript, {order.lease})
                starts += [each.first + each.count for each in said]
            unreported = range(max(starts), order.stop)
            self._do_aside(partial(delete_unreported, self._home.batches / order.batch, worker.writer, unreported))

    def _close(self, worker: WorkerProcess) -> None:
        del self.workers[worker.number]
        with suppress(KeyError):
            self._reports.unregister(worker.reports_fd)
        if worker.pidfd >= 0:
            self._selector.unregister(worker.pidfd)
        worker.close()
        self._held_slots[worker.number] = worker.slot_number

    def _reap(self) -> None:
        if any(template.pending for template in self._templates.values()):
            return  # An unknown child may be a worker whose birth was not announced yet.
        known = {worker.pid for worker in self.workers.values()}
        known |= {template.process.pid for template in self._templates.values()}
        reap_adopted(known)
