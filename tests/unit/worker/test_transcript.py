"""The transcript: what was noted last is there, and what was cut off says nothing that was not said."""

from tracemalloc import get_traced_memory, start, stop

from hypothesis import given
from hypothesis import strategies as st

from batchd.core.events import JobsAcked
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.reports import acknowledged
from batchd.formats import frame
from batchd.formats.frame import HEADER_BYTES
from batchd.formats.report import ACK, ENDED, NO_FINGERPRINT, Report
from batchd.formats.segment import pack_vector
from batchd.worker.transcript import Transcript

SIZE = 1 << 12


def report(first: int, values: list[object], lease: int = 1, state: JobState = JobState.SUCCEEDED) -> bytes:
    block = pack_vector(first, state, values)
    ack = frame.encode(Report.ACK, ACK.pack(lease, 1000, NO_FINGERPRINT), len(block)) + block
    return ack + frame.encode(Report.ENDED, ENDED.pack(lease, first + len(values)))


def told(event: JobsAcked) -> tuple[int, int, bytes]:
    return event.first, event.count, event.block


REPORTS = st.lists(st.integers(1, 120), min_size=1, max_size=80).map(
    lambda sizes: [report(1000 * number, list(range(number, number + size))) for number, size in enumerate(sizes)]
)


@given(REPORTS)
def test_what_was_noted_last_is_there_and_nothing_else_ever_was(noted: list[bytes]) -> None:
    transcript = Transcript(memoryview(bytearray(SIZE)))
    for each in noted:
        transcript.note(1, each)
    found = [told(event) for event in acknowledged(3, transcript, {1})]
    every = [told(event) for each in noted for event in acknowledged(3, _holding(each), {1})]
    assert set(found) <= set(every)
    room, last = SIZE - max(map(len, noted)), 0
    for each in reversed(noted):  # At worst the end of the memory is skipped, once a round.
        room -= len(each) + 80
        last += room >= 0
    assert every[len(every) - last :] == [each for each in every[len(every) - last :] if each in found]


@given(REPORTS, st.data())
def test_bytes_that_were_changed_are_left_out(noted: list[bytes], data: st.DataObject) -> None:
    memory = bytearray(SIZE)
    transcript = Transcript(memoryview(memory))
    for each in noted:
        transcript.note(1, each)
    every = {told(event) for each in noted for event in acknowledged(3, _holding(each), {1})}
    at = data.draw(st.integers(0, SIZE - 1))
    memory[at : at + 40] = data.draw(st.binary(min_size=40, max_size=40))[: SIZE - at]
    assert {told(event) for event in acknowledged(3, transcript, {1})} <= every


def test_a_report_that_would_displace_most_others_is_left_out() -> None:
    transcript = Transcript(memoryview(bytearray(SIZE)))
    transcript.note(1, b"small")
    transcript.note(1, bytes(SIZE // 2))
    transcript.note(1, bytes(2 * SIZE))
    assert list(transcript.reports({1})) == [b"small"]


def test_what_announces_more_than_there_is_takes_no_memory() -> None:
    transcript = _holding(frame.encode(Report.ACK, bytes(ACK.size), 1 << 30))
    start()
    try:
        assert list(acknowledged(1, transcript, {1})) == []
        assert get_traced_memory()[1] < 1 << 20
    finally:
        stop()


def test_a_report_tells_who_lease_state_and_block() -> None:
    transcript = _holding(report(5, ["a", None], lease=9, state=JobState.FAILED), 9)
    (event,) = acknowledged(3, transcript, {9})
    assert list(acknowledged(3, transcript, {8})) == [], "of a lease that is over"
    assert (event.worker, event.lease, event.first, event.count) == (3, 9, 5, 2)
    assert (event.state, event.block) == (JobState.FAILED, pack_vector(5, JobState.FAILED, ["a", None]))


def test_a_report_about_jobs_that_are_recorded_is_not_decoded() -> None:
    transcript = Transcript(memoryview(bytearray(4 * SIZE)))
    several = report(20, [1]) + report(30, [2])  # What the second part is about shows in decoding alone.
    for noted in (report(0, [1, 2]), report(2, [3]), report(10, [4])[: -HEADER_BYTES - ENDED.size], several):
        transcript.note(1, noted)
    found = acknowledged(3, transcript, {1}, RangeSet([(1, 2), (30, 31)]))
    assert [event.first for event in found] == [0, 20, 30]


def _holding(noted: bytes, lease: int = 1) -> Transcript:
    transcript = Transcript(memoryview(bytearray(4 * SIZE)))
    transcript.note(lease, noted)
    return transcript
