"""A worker: takes leases from its pipe, runs their jobs one by one, reports outcomes.

One thread, no locks, no polling. It is the only place where the user's code runs.
"""

import faulthandler
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from fcntl import F_DUPFD_CLOEXEC, F_SETFL, F_SETOWN, F_SETSIG, fcntl
from pathlib import Path
from select import POLLHUP, poll
from threading import Lock
from time import monotonic_ns, perf_counter
from typing import Any, NamedTuple

from batchd.core.events import Phase
from batchd.core.job import JobState
from batchd.errors import FormatError
from batchd.formats import frame
from batchd.formats.reference import Buffer, Reference
from batchd.formats.report import LEASE, Report
from batchd.formats.values import load_input
from batchd.settings import ACK_INTERVAL_S, TRACEBACK_CHARS_MAX, TRANSCRIPT_BYTES
from batchd.worker import output
from batchd.worker.calls import Bundle, bind
from batchd.worker.context import CurrentJob, provide
from batchd.worker.inputs import JournalInputs, patiently
from batchd.worker.outcome import Outcomes, flush_streams, send_all
from batchd.worker.recorder import (
    OFFSET_MASK,
    OUTPUT,
    PHASE_SHIFT,
    PID,
    POSITION,
    STARTED,
    WRITER,
    Lane,
    Slot,
    phase_word,
)
from batchd.worker.service import Service
from batchd.worker.transcript import Transcript

PROTOCOL_FD_MIN = 100
"""Protocol descriptors live up here, out of the way of code that closes or reuses the low ones; at half of what is
allowed where that is few."""
_CALLABLES_MAX = 16
"""Batches whose functions a worker keeps."""
EXIT_DESCRIPTORS = 81
"""Exit code: the job closed a descriptor of the protocol."""


class Fds(NamedTuple):
    """The descriptors a worker is born with."""

    leases: int
    reports: int
    lifeline: int
    output: int
    echo_out: int = -1
    """What a job prints is written here too, -1: it is not."""
    echo_err: int = -1


class Place(NamedTuple):
    """A worker's part of the flight recorder."""

    slot: Slot
    transcript: Transcript | None = None


class Worker:
    """One worker process."""

    def __init__(self, bundle: Bundle, fds: Fds, place: Place, batches: Path) -> None:
        slot, self._transcript = place
        self._bundle = bundle
        self._fds = fds
        self._slot = slot
        self._words = slot.words
        self._inputs = JournalInputs(batches, slot.words[WRITER])
        self._service = Service(slot, batches, self._inputs, self._send)
        self._sending = Lock()
        """A thread of a job may send a checkpoint while the loop reports."""
        self._callables: dict[tuple[str, int], Callable[[Any], Any]] = {}
        """By batch and stint."""
        self._outcomes = Outcomes(self._send, self._last_output, self._keep)
        self._lane = Lane(0, 0, 0, 1, False, "", 0)
        self._halves = slot.offset_half(), slot.limit_half(0)
        self._output_start = 0
        self._is_forked = False
        self._forked_at = 0
        """In a child: the job that forked it."""
        self._words[PID] = os.getpid()
        os.register_at_fork(after_in_child=self._on_fork_in_job)
        provide(self._current_job)

    def serve(self) -> None:
        """Run leases until the supervisor closes the pipe."""
        try:
            self._bundle.prepare()
        except BaseException:
            text = traceback.format_exc()[-TRACEBACK_CHARS_MAX:].encode(errors="replace")
            self._send([frame.encode(Report.REFUSED, b"", len(text)), text])
            raise
        self._send([frame.encode(Report.READY, b"")])
        pending = b""
        while data := os.read(self._fds.leases, 64 * LEASE.size):
            pending += data
            whole = len(pending) - len(pending) % LEASE.size
            for _, lane in LEASE.iter_unpack(pending[:whole]):
                self._run_lease(lane)
            pending = pending[whole:]

    def _run_lease(self, number: int) -> None:
        lane = self._lane = self._slot.lane(number)
        self._service.begin(lane)
        self._output_start = self._words[OUTPUT] = output.cut_back(self._fds.output)
        outcomes = self._outcomes
        outcomes.begin(lane)
        self._halves = self._slot.offset_half(), self._slot.limit_half(number)
        self._words[STARTED] = monotonic_ns() if lane.is_timed else 0
        since = perf_counter()
        index = lane.first
        while index - lane.first < self._halves[1][0]:
            items, call = self._jobs_from(index, lane)
            before, (index, since) = index, self._run(items, call, index, number, since)
            if index == before:
                break  # The limit was written meanwhile.
        flush_streams()
        if index > lane.first:
            self._words[POSITION] = phase_word(Phase.REPORTING, number) | (index - 1 - lane.first)
        outcomes.end(index, perf_counter() - since)
        self._words[POSITION] = phase_word(Phase.IDLE, number) | (index - lane.first)

    def _run(
        self, items: Sequence[Any], call: Callable[[Any], Any], index: int, number: int, since: float
    ) -> tuple[int, float]:
        """Run jobs from `index` on; return where it stopped and when it last reported.

        Every statement here is paid per job. Position first, limit second: the lease-limit protocol of recorder.py.
        """
        words, outcomes, clock = self._words, self._outcomes, perf_counter
        position, limit = self._halves
        lane, first = self._lane, self._lane.first
        append = outcomes.values.append
        running, reporting = phase_word(Phase.RUNNING, number), phase_word(Phase.REPORTING, number)
        is_timed = lane.is_timed
        known: type | None = None  # The last type seen whose values are all plain.
        interval_s = 0.0 if lane.reports_each else ACK_INTERVAL_S
        flush_at = since + interval_s
        offset = index - first
        assert items, "a lease was cut into nothing"
        words[POSITION] = running | offset
        for offset, item in enumerate(items, offset):  # noqa: B020  (begins where it stands)
            if is_timed:
                words[STARTED] = monotonic_ns()  # Before the position: a new job never shows with an old clock.
            position[0] = offset
            if offset >= limit[0]:
                return first + offset, since
            try:
                value = call(item)
                if type(value) is not known:
                    known, value = outcomes.admit(first + offset, value)
            except BaseException as error:
                flush_streams()
                outcomes.fail(first + offset, error)
            else:
                append(value)
            now = clock()
            if now >= flush_at:
                words[POSITION] = reporting | offset
                outcomes.flush(first + offset + 1, now - since)
                words[POSITION] = running | offset  # Reported already: nobody is charged for it.
                since = clock()
                flush_at = since + interval_s
        return first + offset + 1, since

    def _jobs_from(self, index: int, lane: Lane) -> tuple[Sequence[Any], Callable[[Any], Any]]:
        """Return the inputs from job `index` to the end of its segment or lease, and what to call with each."""
        return patiently(lambda: self._read_jobs(index, lane), self._end_clock)

    def _end_clock(self) -> None:
        """Let no time limit run for the job before, which has ended, while the next ones are waited for."""
        phase, place = divmod(self._words[POSITION], 1 << PHASE_SHIFT)
        if phase == phase_word(Phase.RUNNING, 0) >> PHASE_SHIFT:
            self._words[POSITION] = phase_word(Phase.REPORTING, 0) | place

    def _read_jobs(self, index: int, lane: Lane) -> tuple[Sequence[Any], Callable[[Any], Any]]:
        try:
            inputs = self._inputs.batch(lane)
            call = self._callables.get((lane.batch, lane.stint)) or self._bind(lane)
            first, block = inputs.block(index)
            part = slice(index - first, min(block.count, lane.stop - first))
            if block.is_separate:
                return block.separate()[part], lambda payload: call(load_input(payload))
            return inputs.plain(block)[part], call
        except FormatError as error:
            return [error], _raise  # A damaged segment costs its own jobs only.

    def _bind(self, lane: Lane) -> Callable[[Any], Any]:
        """Return what is called with the inputs of a batch, kept for its further leases."""

        def function(mark: bytes) -> bytes:
            return self._inputs.batch(lane).function(mark)  # Opened again, if others were read meanwhile.

        if len(self._callables) >= _CALLABLES_MAX:
            del self._callables[next(iter(self._callables))]
        call = bind(self._inputs.batch(lane).spec, self._bundle.task, function)
        self._callables[lane.batch, lane.stint] = call
        return call

    def _send(self, parts: list[bytes]) -> None:
        if self._is_forked:
            os._exit(0)
        try:
            with self._sending:
                self._say(parts)
        except BrokenPipeError:
            os._exit(0)  # The supervisor is gone; the lifeline says the same.
        except OSError:
            running = phase_word(Phase.RUNNING, 0)
            phase, place = divmod(self._words[POSITION], 1 << PHASE_SHIFT)
            if self._lane.reports_each:  # So it was the last one.
                self._words[POSITION] = running | place
            elif phase == running >> PHASE_SHIFT:  # With a checkpoint, and any job before it may be to blame.
                self._words[POSITION] = phase_word(Phase.REPORTING, 0) | place
            os._exit(EXIT_DESCRIPTORS)

    def _say(self, parts: list[bytes]) -> None:
        if self._transcript is not None and sum(map(len, parts)) <= TRANSCRIPT_BYTES:
            parts = [b"".join(parts)]
            self._transcript.note(self._lane.lease, parts[0])  # First: from here on it is as good as said.
        words, started_ns, since_ns = self._words, self._words[STARTED], monotonic_ns()
        words[STARTED] = 0  # Until it is read, which may wait for the disk: none of the time that the job has.
        try:
            send_all(self._fds.reports, parts)
        finally:
            if started_ns and not words[STARTED]:  # Else the next job has begun: a thread of the last one says this.
                words[STARTED] = started_ns + monotonic_ns() - since_ns

    def _keep(self, index: int, parts: Sequence[Buffer]) -> Reference | None:
        """Write a large result to a file. Its job is over by then: a slow disk is not its fault, nor a death."""
        words, word = self._words, self._words[POSITION]
        words[POSITION] = phase_word(Phase.REPORTING, 0) | word & ((1 << PHASE_SHIFT) - 1)
        try:
            return self._inputs.keep(self._lane, index, parts)
        finally:
            if self._lane.is_timed:
                words[STARTED] = monotonic_ns()
            words[POSITION] = word

    def _index(self) -> int:
        if self._is_forked:
            return self._forked_at
        return self._lane.first + (self._words[POSITION] & OFFSET_MASK)

    def _current_job(self) -> CurrentJob:
        return CurrentJob(self._lane.batch, self._index(), self._lane.attempt, self._service)

    def _last_output(self, index: int) -> str:
        try:
            return output.tail(self._fds.output, index, self._output_start)
        except OSError:
            return ""

    def _on_fork_in_job(self) -> None:
        """Silence a child that a job forked: it may not speak for this worker, whatever it returns to."""
        if self._is_forked:
            return  # A child of the child: by now the numbers may be of files that the first one opened.
        self._forked_at = self._index()
        self._is_forked = self._service.is_forked = True
        for view in (*self._halves, self._words):
            view.release()  # The loop's next store raises, `run` sees why and leaves.
        for fd in (self._fds.leases, self._fds.reports):
            try:
                os.close(fd)
            except OSError:
                pass  # The job closed it first.

    @property
    def is_forked(self) -> bool:
        """Whether this process is a job's child."""
        return self._is_forked


def _raise(error: BaseException) -> JobState:
    raise error


def run(bundle: Bundle, fds: Fds, place: Place, batches: Path, inherited: Iterable[int]) -> None:
    """Be a worker: in a fresh child of the template, or in a fresh interpreter. Never returns.

    `inherited` descriptors are not the worker's and are closed; what the task's module opened stays open.
    """
    code = 1
    worker = None
    try:
        if os.getsid(0) != os.getpid():  # A fresh interpreter leads its session already.
            os.setsid()
        high = min(PROTOCOL_FD_MIN, os.sysconf("SC_OPEN_MAX") // 2)
        low, fds = fds, Fds(*(fcntl(fd, F_DUPFD_CLOEXEC, high) if fd >= 0 else -1 for fd in fds))
        hold_lifeline(fds.lifeline)
        _settle_descriptors(fds, {*low, *inherited})
        _settle_signals()
        _reseed()
        worker = Worker(bundle, fds, place, batches)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = output.text_stream(fds.output, worker._index, fds.echo_out)  # noqa: SLF001
        sys.stderr = output.text_stream(fds.output, worker._index, fds.echo_err)  # noqa: SLF001
        worker.serve()
        flush_streams()
        code = 0
    except BaseException:
        if worker is not None and worker.is_forked:
            os._exit(0)
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)


def hold_lifeline(fd: int) -> None:
    """Make the kernel kill this process group when the other end of the pipe closes, GIL or no GIL.

    O_ASYNC with F_SETSIG(SIGKILL), armed first and then polled for a hang-up that came before (see ARCHITECTURE.md).
    """
    fcntl(fd, F_SETOWN, -os.getpgrp())
    fcntl(fd, F_SETSIG, signal.SIGKILL)
    fcntl(fd, F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    watch = poll()
    watch.register(fd, 0)
    if any(event & POLLHUP for _, event in watch.poll(0)):
        os.kill(os.getpid(), signal.SIGKILL)


def _settle_descriptors(fds: Fds, inherited: Iterable[int]) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(fds.output, 1)
    os.dup2(fds.output, 2)
    for fd in (null, *inherited):
        if fd > 2 and fd not in fds:
            with suppress(OSError):
                os.close(fd)


def _settle_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the client's; the supervisor decides.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable(file=2, all_threads=True)
    try:
        Path("/proc/self/oom_score_adj").write_text("500", "ascii")
    except OSError:
        pass  # The kernel then chooses by size alone.


def _reseed() -> None:
    """Children of one template must not draw the same numbers."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
