"""What workers say, as events: from their pipes, or from their transcripts when the supervisor has died.

A frame says nothing that is believed before it was looked at here; a worker that sends anything else is killed.
"""

import struct
from collections.abc import Container, Iterator
from typing import Final

from batchd.core import events as ev
from batchd.core.job import JobState
from batchd.core.ranges import Range, RangeSet
from batchd.errors import FormatError
from batchd.formats.frame import HEADER_BYTES, Frame, FrameReader
from batchd.formats.reference import Reference
from batchd.formats.report import ACK, ENDED, NO_FINGERPRINT, Report
from batchd.formats.segment import Encoding, header_of, references_in, unpack
from batchd.worker.transcript import Transcript

_BLOCK_AT: Final = HEADER_BYTES + ACK.size
_END_BYTES: Final = HEADER_BYTES + ENDED.size
_REPORTED: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED})


def event_of(worker: int, key: str, frame: Frame) -> ev.Event:
    """Return the event a frame of a worker stands for. Raises FormatError."""
    try:
        match frame.kind:
            case Report.READY:
                return ev.WorkerReady(worker)
            case Report.ENDED:
                return ev.LeaseEnded(worker, *ENDED.unpack(frame.meta))
            case Report.EXPLAINED:
                lease, _, mark = ACK.unpack(frame.meta)
                return ev.CauseExplained(worker, lease, mark, frame.body)
            case Report.REFUSED:
                text = frame.body.decode(errors="replace")
                return ev.KeyFailed(key, f"the initializer failed; its own traceback:\n{text.rstrip()}")
            case Report.CHECKPOINT:
                lease, index = ENDED.unpack(frame.meta)
                return ev.CheckpointReceived(worker, lease, index, frame.body)
            case Report.ACK:
                return _acked(worker, frame)
    except (ValueError, struct.error) as error:
        raise FormatError(f"report of kind {frame.kind}: {error}") from None
    raise FormatError(f"report of unknown kind {frame.kind}")


def acknowledged(
    worker: int, transcript: Transcript, leases: Container[int], wanted: RangeSet | None = None
) -> Iterator[ev.JobsAcked]:
    """Give what a transcript acknowledges under these leases, in no order; what is no whole report is passed over.

    A report about jobs of which none is `wanted` is not decoded.

    >>> list(acknowledged(1, Transcript(memoryview(bytearray(4096))), {7}))
    []
    """
    for report in transcript.reports(leases):
        if wanted is not None and (about := _range_of(report)) and not wanted.overlaps(*about):
            continue
        try:
            for frame in FrameReader(len(report)).feed(report):  # None is larger than what it stands in.
                if isinstance(event := event_of(worker, "", frame), ev.JobsAcked):
                    yield event
        except FormatError:
            continue  # Its worker died while it wrote this, or wrote over it since.


def _range_of(report: bytes) -> Range | None:
    """Return what jobs a report seems to be about, unchecked; None unless it is one block, and perhaps the end."""
    try:
        first, count, _, length = header_of(report, _BLOCK_AT)
    except FormatError:
        return None
    return (first, first + count) if len(report) - _BLOCK_AT - length in {0, _END_BYTES} else None


def files_of(report: ev.Event) -> list[Reference]:
    """Return the references to value files in what a worker said."""
    if not isinstance(report, ev.JobsAcked) or report.count > 1:
        return []  # What has a reference stands alone.
    return list(references_in(report.block))


def _acked(worker: int, frame: Frame) -> ev.JobsAcked:
    lease, busy_ns, mark = ACK.unpack(frame.meta)
    (block,) = (each for each in unpack(frame.body) if each.count and each.state in _REPORTED)
    if block.encoding is Encoding.FILED:
        block.reference()  # Or it is none.
    return ev.JobsAcked(
        worker=worker,
        lease=lease,
        first=block.first,
        count=block.count,
        state=JobState(block.state),
        block=frame.body,
        busy_s=busy_ns / 1e9,
        fingerprint=b"" if mark == NO_FINGERPRINT else mark,
    )
