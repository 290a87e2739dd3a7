"""Outcomes of a lease on their way out: gathered, encoded as blocks of one state, sent in few writes."""

import os
import pickle
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from resource import RUSAGE_SELF, getrusage
from time import process_time
from types import TracebackType
from typing import Any

from batchd.core.job import JobState
from batchd.formats import frame
from batchd.formats.reference import Buffer, Keep, Reference
from batchd.formats.report import ACK, ENDED, NO_FINGERPRINT, Failure, Report, fingerprint
from batchd.formats.segment import pack_pickled, pack_plain, runs, runs_of_plain
from batchd.formats.values import PLAIN_TYPES, dump, dump_kept_checked, is_plain
from batchd.settings import TRACEBACK_CHARS_MAX, VALUE_BYTES_MAX
from batchd.worker.recorder import Lane

_EXCEPTION_BYTES_MAX = 65_536
_STINTS_MAX = 16
"""A worker that serves ever other batches remembers of so many what it has told."""


class ValueTooLarge(Exception):
    """The job returned more than one value may hold."""


class Outcomes:
    """Outcomes that were not sent yet.

    Successes are in `values`, which end just before the index given to `flush` or `fail`; failures before them are
    in `_failures`. So the worker's loop only ever appends a value, and nothing is checked per successful job.
    """

    def __init__(
        self,
        send: Callable[[list[bytes]], None],
        last_output: Callable[[int], str],
        keep: Callable[[int, Sequence[Buffer]], Reference | None] = lambda *_: None,
    ) -> None:
        """`keep` writes a large result of a job to a file, if it can."""
        self.values: list[Any] = []
        self.is_pickled = False
        """Whether `values` holds pickles, because the lease returned something that is not plain."""
        self._send = send
        self._last_output = last_output
        self._keep_of = keep
        self._kept = 0
        """The job whose result is encoded."""
        self._lease = 0
        self._attempt = 1
        self._cpu_mark = 0.0
        """CPU seconds of the process at the last report: what a failing job used, if it ran for 1 ms or more."""
        self._failures: list[bytes] = []
        self._failed_stop = 0
        self._fingerprints: set[bytes] = set()
        self._explained: dict[tuple[str, int], set[bytes]] = {}
        """By batch and stint: what was told of a batch that is gone was not told of the next that has its id."""
        self._explained_now: set[bytes] = set()
        self._blocks: list[tuple[int, bytes, bytes]] = []
        """(jobs, fingerprint, block), not sent yet."""
        self._frames: list[bytes] = []

    def begin(self, lane: Lane) -> None:
        """Start a lease."""
        self._lease, self._attempt = lane.lease, lane.attempt
        stint = lane.batch, lane.stint
        self._explained_now = self._explained[stint] = self._explained.pop(stint, set())
        if len(self._explained) > _STINTS_MAX:  # Those worked for last are kept; others are explained once more.
            del self._explained[next(iter(self._explained))]
        self.is_pickled = False
        self._cpu_mark = process_time()

    def admit(self, index: int, value: Any) -> tuple[type | None, Any]:
        """Return (type, what to append) for job `index`: values of that type need not ask again, unless it is None.

        The first value that is not plain turns the rest of the lease to pickles. Raises what pickling raises.
        """
        if self.is_pickled or not is_plain(value):
            return None, self._pickle_from(index, value)
        kind = type(value)
        return (kind if kind in PLAIN_TYPES else None), value  # A tuple is looked into each time.

    def _pickle_from(self, index: int, value: Any) -> bytes | Reference:
        self._kept = index
        payload = dump_kept_checked(value, self._keep)
        if isinstance(payload, bytes) and len(payload) > VALUE_BYTES_MAX:
            raise ValueTooLarge(_too_large(f"takes {len(payload):,} bytes"))
        if not self.is_pickled:
            self._close_successes(index)
            self.is_pickled = True
        return payload

    def fail(self, index: int, error: BaseException) -> None:
        """Take in that job `index` raised."""
        self._close_successes(index)
        trace = _user_part(error.__traceback__)
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        mark = fingerprint(name, *_places(trace))
        if mark not in self._explained_now:
            self._explained_now.add(mark)
            self._explain(mark, error, trace)
        failure = Failure(
            type=name,
            message=_text_of(error),
            fingerprint=mark,
            output=self._last_output(index),
            details={
                "attempt": self._attempt,
                "cpu_s": round(process_time() - self._cpu_mark, 6),
                "rss_peak_bytes": 1024 * getrusage(RUSAGE_SELF).ru_maxrss,
            },
            exception=_pickled(error),
        )
        self._failures.append(failure.encode())
        self._fingerprints.add(mark)
        self._failed_stop = index + 1

    def flush(self, index: int, busy_s: float) -> None:
        """Send everything before job `index`; it took `busy_s` seconds since the last flush."""
        self._gather(index, busy_s)
        if self._frames:
            self._send(self._frames)
            self._frames.clear()

    def end(self, index: int, busy_s: float) -> None:
        """Send everything, and that the lease ran no job at or beyond `index`."""
        self._gather(index, busy_s)
        self._send([*self._frames, frame.encode(Report.ENDED, ENDED.pack(self._lease, index))])
        self._frames.clear()

    def _gather(self, index: int, busy_s: float) -> None:
        """Encode what there is. Paid by every job of 1 ms and more, with caches full of the job's own things."""
        if self.values:
            self._close_successes(index)
        if self._failures:
            self._close_failures()
        if self._blocks:
            each_ns = busy_s * 1e9 / sum([jobs for jobs, _, _ in self._blocks])
            for jobs, mark, block in self._blocks:
                meta = ACK.pack(self._lease, int(each_ns * jobs), mark)
                self._frames += (frame.encode(Report.ACK, meta, len(block)), block)
            self._blocks.clear()
        self._cpu_mark = process_time()

    def _keep(self, parts: Sequence[Buffer]) -> Reference | None:
        return self._keep_of(self._kept, parts)

    def _explain(self, mark: bytes, error: BaseException, trace: TracebackType | None) -> None:
        lines = "".join(traceback.format_exception(type(error), error, trace))
        if (
            len(lines) > TRACEBACK_CHARS_MAX
        ):  # A long message hides the places, deep calls hide the message: keep both.
            half = TRACEBACK_CHARS_MAX // 2 - 4
            lines = f"{lines[:half]}\n[...]\n{lines[-half:]}"
        text = lines.encode(errors="replace")
        self._frames += (frame.encode(Report.EXPLAINED, ACK.pack(self._lease, 0, mark), len(text)), text)

    def _close_successes(self, index: int) -> None:
        values = self.values
        if not values:
            return
        if self._failures:
            self._close_failures()
        first = index - len(values)
        made = values.copy()
        values.clear()
        if not self.is_pickled:
            for run in runs_of_plain(made):
                self._close_vector(first, run)
                first += len(run)
            return
        self._close_pickled(first, JobState.SUCCEEDED, made, NO_FINGERPRINT)

    def _close_vector(self, first: int, values: Sequence[Any]) -> None:
        """Encode plain values, whose size nobody looked at before: one that is too large fails alone."""
        self._kept = first
        block = _vector(first, values, self._keep)
        if block is not None:
            self._blocks.append((len(values), NO_FINGERPRINT, block))
        elif len(values) == 1:
            self.fail(first, ValueTooLarge(_too_large("is too large")))
            self._close_failures()
        else:
            half = len(values) // 2
            self._close_vector(first, values[:half])
            self._close_vector(first + half, values[half:])

    def _close_failures(self) -> None:
        if not self._failures:
            return
        first = self._failed_stop - len(self._failures)
        mark = self._fingerprints.pop() if len(self._fingerprints) == 1 else NO_FINGERPRINT
        self._close_pickled(first, JobState.FAILED, self._failures, mark)
        self._failures.clear()
        self._fingerprints.clear()

    def _close_pickled(self, first: int, state: JobState, payloads: Sequence[bytes | Reference], mark: bytes) -> None:
        for run in runs(payloads):
            self._blocks.append((len(run), mark, pack_pickled(first, state, run)))
            first += len(run)


def _too_large(what: str) -> str:
    return f"the result {what}; at most {VALUE_BYTES_MAX:,} bytes are kept: write it to a file and return its path"


def _vector(first: int, values: Sequence[Any], keep: Keep) -> bytes | None:
    """Return the block of plain values, None when it is larger than a value may be."""
    try:
        block = pack_plain(first, JobState.SUCCEEDED, values, keep)
    except struct.error:  # More than the length field of a block can say.
        return None
    return block if len(block) <= VALUE_BYTES_MAX else None


def _user_part(trace: TracebackType | None) -> TracebackType | None:
    """Skip this package's own frames at the outer end."""
    own = os.path.dirname(__file__)  # noqa: PTH120  (pathlib is slower, and this runs per failure)
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(own):
        trace = trace.tb_next
    return trace


def _places(trace: TracebackType | None) -> list[str]:
    places: list[str] = []
    while trace is not None and len(places) < 32:
        places.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    return places


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"<its message could not be read: {type(second).__name__}>"


def _pickled(error: BaseException) -> bytes:
    """Return the exception's pickle if it can be read back, else nothing: the text is kept in any case."""
    try:
        payload = dump(error)
        if len(payload) <= _EXCEPTION_BYTES_MAX and isinstance(pickle.loads(payload), BaseException):
            return payload
    except BaseException:  # noqa: S110  (an exception's own code may do anything)
        pass
    return b""


def send_all(fd: int, parts: list[bytes]) -> None:
    """Write every byte, in one call where the kernel takes it."""
    if len(parts) < 64 and sum(map(len, parts)) < 1 << 20:
        data = b"".join(parts)
        if (size := os.write(fd, data)) == len(data):
            return
        parts = [data[size:]]
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def flush_streams() -> None:
    """Write out what jobs printed and Python still buffers."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # The job closed or replaced it.
