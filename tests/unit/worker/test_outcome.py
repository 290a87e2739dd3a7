"""Outcomes on their way out: blocks of one state, in the jobs' order, whatever the jobs returned or raised."""

import os
import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from batchd.core.job import JobState
from batchd.formats.frame import FrameReader
from batchd.formats.reference import Buffer, Part, Reference
from batchd.formats.report import ACK, ENDED, NO_FINGERPRINT, Failure, Report
from batchd.formats.segment import Block, Encoding, unpack
from batchd.formats.values import load
from batchd.settings import RECORD_BYTES_MAX, TRACEBACK_CHARS_MAX, VALUE_FILE_BYTES_MIN
from batchd.worker import outcome
from batchd.worker.outcome import Outcomes, ValueTooLarge, send_all
from batchd.worker.recorder import Lane
from tests.jobs import TwoArguments


class Wire:
    """What an Outcomes sent, read as the supervisor reads it."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self.writes = 0
        self.acks: list[tuple[Block, int, bytes]] = []
        self.ended: list[tuple[int, int]] = []
        self.explained: list[tuple[bytes, str]] = []

    def send(self, parts: list[bytes]) -> None:
        self.writes += 1
        for kind, meta, body in self._reader.feed(b"".join(parts)):
            match kind:
                case Report.ACK:
                    (block,) = unpack(body)
                    lease, busy_ns, mark = ACK.unpack(meta)
                    assert lease == 7
                    self.acks.append((block, busy_ns, mark))
                case Report.ENDED:
                    self.ended.append(ENDED.unpack(meta))
                case Report.EXPLAINED:
                    self.explained.append((ACK.unpack(meta)[2], body.decode()))
                case _:
                    raise AssertionError(kind)

    def spans(self) -> list[tuple[int, int, str]]:
        return [(block.first, block.count, JobState(block.state).name) for block, _, _ in self.acks]

    def values(self) -> list[Any]:
        """Every outcome in the order it was told: a value, or the failure's type."""
        found: list[Any] = []
        for block, _, _ in self.acks:
            failed = block.state == JobState.FAILED
            found += [Failure.decode(p).type for p in block.payloads()] if failed else block.values()
        return found


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def outcomes(wire: Wire) -> Outcomes:
    made = Outcomes(wire.send, lambda index: f"output of {index}")
    made.begin(lane(attempt=2))
    return made


def lane(batch: str = "b", *, attempt: int = 1, stint: int = 1) -> Lane:
    return Lane(7, 0, 9, attempt, is_timed=False, batch=batch, reach=9, stint=stint)


def take(outcomes: Outcomes, index: int, job: Callable[[], Any]) -> None:
    """Do as the worker's loop does with one job."""
    try:
        _, value = outcomes.admit(index, job())
    except BaseException as error:
        outcomes.fail(index, error)
    else:
        outcomes.values.append(value)


def fail(kind: type[BaseException], *args: Any) -> Any:
    raise kind(*args)


def test_successes_in_a_row_are_one_block_and_one_write(outcomes: Outcomes, wire: Wire) -> None:
    for index in range(10, 15):
        take(outcomes, index, lambda: index)  # noqa: B023  (called at once)
    outcomes.flush(15, 0.5)
    assert wire.spans() == [(10, 5, "SUCCEEDED")]
    assert wire.values() == [10, 11, 12, 13, 14]
    assert (wire.acks[0][0].encoding, wire.acks[0][1], wire.acks[0][2]) == (
        Encoding.VECTOR,
        500_000_000,
        NO_FINGERPRINT,
    )
    assert wire.writes == 1


def test_nothing_to_tell_is_not_told(outcomes: Outcomes, wire: Wire) -> None:
    outcomes.flush(0, 0.1)
    assert wire.writes == 0
    outcomes.end(0, 0.1)
    assert (wire.ended, wire.acks) == ([(7, 0)], [])


def test_states_alternate_in_order_and_share_the_time(outcomes: Outcomes, wire: Wire) -> None:
    for index, is_good in enumerate([False, True, True, False, False, True]):
        take(outcomes, index, (lambda: "good") if is_good else (lambda: fail(KeyError, "bad")))
    outcomes.end(6, 0.6)
    states = [(0, 1, "FAILED"), (1, 2, "SUCCEEDED"), (3, 2, "FAILED"), (5, 1, "SUCCEEDED")]
    assert wire.spans() == states
    assert wire.values() == ["KeyError", "good", "good", "KeyError", "KeyError", "good"]
    assert [busy_ns // 1_000_000 for _, busy_ns, _ in wire.acks] == [100, 200, 200, 100]
    assert wire.ended == [(7, 6)]
    assert wire.writes == 1


def test_from_the_first_value_that_is_not_plain_on_values_are_pickled(outcomes: Outcomes, wire: Wire) -> None:
    take(outcomes, 0, lambda: 1)
    take(outcomes, 1, lambda: [2])
    take(outcomes, 2, lambda: 3)
    outcomes.flush(3, 0.0)
    take(outcomes, 3, lambda: 4)
    outcomes.flush(4, 0.0)
    assert wire.spans() == [(0, 1, "SUCCEEDED"), (1, 2, "SUCCEEDED"), (3, 1, "SUCCEEDED")]
    assert [block.encoding for block, _, _ in wire.acks] == [Encoding.VECTOR, Encoding.ITEMS, Encoding.ITEMS]
    assert wire.values() == [1, [2], 3, 4]
    outcomes.begin(lane())
    assert not outcomes.is_pickled  # The next lease may be plain again.


def test_failures_of_one_kind_carry_its_mark_and_are_explained_once(outcomes: Outcomes, wire: Wire) -> None:
    for index in range(3):
        take(outcomes, index, lambda: fail(ValueError, "the same place"))
    outcomes.flush(3, 0.0)
    ((mark, text),) = wire.explained
    assert wire.acks[0][2] == mark != NO_FINGERPRINT
    assert {Failure.decode(payload).fingerprint for payload in wire.acks[0][0].payloads()} == {mark}
    assert text.endswith("ValueError: the same place\n")
    take(outcomes, 3, lambda: fail(ValueError, "another place"))
    for other in (lane("another batch"), lane("another batch", stint=2), lane("another batch")):
        outcomes.begin(other)
        take(outcomes, 4, lambda: fail(ValueError, "another place"))
    outcomes.flush(5, 0.0)
    assert len(wire.explained) == 4  # A cause is told once to each batch, and to one that was made again.


def test_what_was_told_is_remembered_of_the_last_batches_alone(outcomes: Outcomes, wire: Wire) -> None:
    for batch in ["b", *map(str, range(15)), "b", *map(str, range(15, 40)), "b"]:
        outcomes.begin(lane(batch))
        take(outcomes, 0, lambda: fail(KeyError, "x"))
        outcomes.flush(1, 0.0)
    assert len(wire.explained) == 1 + 40 + 1, "of b when it was new, and when it was forgotten"
    assert len(outcomes._explained) == 16


def test_failures_of_several_kinds_share_a_block_without_a_mark(outcomes: Outcomes, wire: Wire) -> None:
    take(outcomes, 0, lambda: fail(ValueError))
    take(outcomes, 1, lambda: fail(TypeError))
    outcomes.flush(2, 0.0)
    assert (wire.spans(), wire.acks[0][2]) == ([(0, 2, "FAILED")], NO_FINGERPRINT)
    assert len({mark for mark, _ in wire.explained}) == 2
    take(outcomes, 2, lambda: fail(TypeError))
    outcomes.flush(3, 0.0)
    assert wire.acks[1][2] != NO_FINGERPRINT  # What was mixed before does not stick.


def test_a_failure_says_what_a_person_needs(outcomes: Outcomes, wire: Wire) -> None:
    take(outcomes, 4, lambda: fail(pickle.PicklingError, "why"))
    outcomes.flush(5, 0.0)
    failure = Failure.decode(wire.acks[0][0].payloads()[0])
    assert (failure.type, failure.message, failure.output) == ("_pickle.PicklingError", "why", "output of 4")
    assert failure.details["attempt"] == 2
    assert repr(load(failure.exception)) == "PicklingError('why')"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, StopIteration])
def test_whatever_a_job_raises_is_its_failure(outcomes: Outcomes, wire: Wire, kind: type[BaseException]) -> None:
    take(outcomes, 0, lambda: fail(kind))
    outcomes.flush(1, 0.0)
    assert wire.values() == [kind.__name__]


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Locked(Exception):
    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class ImpostorError(Exception):
    """Its pickle comes back as something that is no exception."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return str, ("text",)


class LeaverError(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit("from a pickle")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TwoArguments(1, 2), "1 and 2"),
        (Locked(), "locked"),
        (ImpostorError("me"), "me"),
        (LeaverError("me"), "me"),
        (Mute(), "<its message could not be read: RuntimeError>"),
        (ValueError("x" * 100_000), "x" * 2_000),
    ],
)
def test_an_exception_that_does_not_come_back_is_kept_as_text(
    outcomes: Outcomes, wire: Wire, error: BaseException, message: str
) -> None:
    take(outcomes, 0, lambda: (_ for _ in ()).throw(error))
    outcomes.flush(1, 0.0)
    failure = Failure.decode(wire.acks[0][0].payloads()[0])
    assert failure.message == message
    assert failure.type.endswith(type(error).__name__)
    assert (failure.exception == b"") == (not isinstance(error, Mute))
    assert type(error).__name__ in wire.explained[0][1]


def test_a_value_that_cannot_be_kept_costs_its_own_job(
    outcomes: Outcomes, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "VALUE_BYTES_MAX", 5_000)
    values = [[1], threading.Lock(), bytearray(6_000), ImpostorError("comes back as text"), [2]]
    for index, value in enumerate(values):
        take(outcomes, index, lambda: value)  # noqa: B023  (called at once)
    outcomes.flush(5, 0.0)
    assert wire.spans() == [(0, 1, "SUCCEEDED"), (1, 2, "FAILED"), (3, 2, "SUCCEEDED")]
    assert wire.values() == [[1], "TypeError", f"{ValueTooLarge.__module__}.ValueTooLarge", "text", [2]]
    too_large = Failure.decode(wire.acks[1][0].payloads()[1])
    assert too_large.message.startswith("the result takes 6,")
    assert too_large.message.endswith("bytes; at most 5,000 bytes are kept: write it to a file and return its path")


@pytest.mark.parametrize("value", ["x" * 6_000, b"x" * 6_000, ("x" * 3_000, ("y" * 3_000,))])
def test_a_plain_value_can_be_too_large_too(
    outcomes: Outcomes, wire: Wire, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.setattr(outcome, "VALUE_BYTES_MAX", 5_000)
    for index, each in enumerate(["small", value, "small"]):
        take(outcomes, index, lambda: each)  # noqa: B023  (called at once)
    outcomes.flush(3, 0.0)
    assert wire.spans() == [(0, 1, "SUCCEEDED"), (1, 1, "FAILED"), (2, 1, "SUCCEEDED")]
    assert wire.values()[1].endswith("ValueTooLarge")


def test_large_values_are_cut_into_records(outcomes: Outcomes, wire: Wire) -> None:
    sizes = [30_000, 30_000, 30_000, 200_000, 10]
    for index, size in enumerate(sizes):
        take(outcomes, index, lambda: bytearray(size))  # noqa: B023  (called at once)
    outcomes.flush(5, 0.0)
    assert wire.spans() == [(0, 2, "SUCCEEDED"), (2, 1, "SUCCEEDED"), (3, 1, "SUCCEEDED"), (4, 1, "SUCCEEDED")]
    assert [len(value) for value in wire.values()] == sizes
    assert len(wire.acks[0][0].body) < RECORD_BYTES_MAX


def test_many_failures_are_cut_into_records(outcomes: Outcomes, wire: Wire) -> None:
    for index in range(400):
        take(outcomes, index, lambda: fail(ValueError, "x" * 1_000))
    outcomes.flush(400, 0.0)
    assert sum(count for _, count, _ in wire.spans()) == 400
    assert [first for first, _, _ in wire.spans()] == sorted({first for first, _, _ in wire.spans()})
    assert all(len(block.body) <= RECORD_BYTES_MAX for block, _, _ in wire.acks)
    assert len({mark for _, _, mark in wire.acks}) == 1


def test_a_long_traceback_is_cut_in_the_middle(outcomes: Outcomes, wire: Wire) -> None:
    take(outcomes, 0, lambda: fail(ValueError, "x" * 50_000))
    outcomes.flush(1, 0.0)
    assert len(wire.explained[0][1]) <= TRACEBACK_CHARS_MAX
    assert wire.explained[0][1].startswith("Traceback (most recent call last):")
    assert wire.explained[0][1].endswith("xxx\n")


@pytest.mark.parametrize("parts", [[b"a" * 3_000_000, b"", b"b" * 10], [b"x"] * 200, []])
def test_every_byte_is_sent(parts: list[bytes]) -> None:
    mine, its = os.pipe()
    received: list[bytes] = []

    def read() -> None:
        while data := os.read(mine, 1 << 16):
            received.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    send_all(its, parts)
    os.close(its)
    reader.join(timeout=30)
    os.close(mine)
    assert b"".join(received) == b"".join(parts)


def test_large_results_go_to_files_of_their_jobs_whoever_shares_the_report(wire: Wire) -> None:
    kept: list[tuple[int, int]] = []

    def keep(job: int, parts: Sequence[Buffer]) -> Reference:
        kept.append((job, sum(map(len, parts))))
        return Reference(1, job, 0, (Part(kept[-1][1], True),))

    outcomes = Outcomes(wire.send, lambda _: "", keep)
    outcomes.begin(lane())
    large = "x" * VALUE_FILE_BYTES_MIN
    values = ["small", (1, large), 2, large, large, 3, [4], bytearray(VALUE_FILE_BYTES_MIN), 5]
    for index, value in enumerate(values, 10):
        take(outcomes, index, lambda: value)  # noqa: B023  (called at once)
    outcomes.flush(19, 0.0)
    filed = [block.first for block, _, _ in wire.acks if block.encoding is Encoding.FILED]
    assert filed == [11, 13, 14, 17]
    assert sorted(job for job, _ in kept) == filed
    assert all(nbytes > VALUE_FILE_BYTES_MIN for _, nbytes in kept)
    assert [(block.first, block.count) for block, _, _ in wire.acks if block.first not in filed] == [
        *((10, 1), (12, 1), (15, 1), (16, 1), (18, 1))
    ]
