"""What a job says about itself, to real workers and supervisors: heard, kept as long as promised, and no longer."""

import json
import os
import shutil
import signal
from pathlib import Path
from select import select
from time import monotonic
from typing import Any

import pytest

from batchd.client import request
from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.events import Phase
from batchd.core.job import Allowances, JobState
from batchd.edge import grace
from batchd.edge.journal import BatchJournal
from batchd.formats import tables
from batchd.formats.joblog import LOG_NAME
from batchd.formats.values import load
from batchd.settings import CHECKPOINT_BYTES_MAX
from batchd.worker.context import CurrentJob
from tests.bench import Bench, House, at_work, is_alive, listening, pump_until
from tests.commands import until

GOOD = JobState.SUCCEEDED


def notes(house: House, batch: str = "b") -> dict[int, Any]:
    """Return the checkpoints that are durable."""
    journal = BatchJournal(house.folder / "batches" / batch)
    with journal.begin() as txn:
        cursor = txn.cursor(journal.table(tables.NOTES))
        found = {tables.INDEX.unpack(key)[0]: load(bytes(note)) for key, note in cursor}
    journal.close()
    return found


def shown(bench: Bench) -> dict[int, tuple[int | None, float | None]]:
    """Return what status says of each worker: its job and how far that is."""
    return {row["worker"]: (row["job"], row["progress"]) for row in bench.pool.status()}


# --- Progress --------------------------------------------------------------------------------------------------


def test_status_shows_how_far_the_running_job_is_and_nobody_else(bench: Bench, tmp_path: Path) -> None:
    door = str(tmp_path / "door")
    with listening(tmp_path / "door") as hear:
        worker = at_work(bench, [("progress", 0.9), ("announce", door, 600), ("progress", 0.42, door, 600)])
        other = bench.start()
        assert shown(bench) == {1: (None, None), 2: (None, None)}
        bench.run(worker, 0, 1)
        until(lambda: shown(bench) == {1: (None, None), 2: (None, None)}, "it has let go of the job it reported")
        bench.lease(worker, 0, 2, lane=1)
        hear()
        bench.lease(other, 2, 3)
        hear()
        assert shown(bench) == {1: (1, None), 2: (2, 0.42)}


def test_the_job_at_the_same_place_of_the_next_lease_has_not_said_it(bench: Bench, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        worker = at_work(bench, [("progress", 0.9), ("announce", str(tmp_path / "door"), 600)])
        bench.run(worker, 0, 1)
        bench.lease(worker, 1, 2)
        hear()
        assert shown(bench) == {1: (1, None)}


@pytest.mark.parametrize("fraction", [42, -0.1, float("nan")])
def test_what_is_no_fraction_fails_its_job(bench: Bench, fraction: float) -> None:
    ((_, state, failure),) = bench.run(at_work(bench, [("progress", fraction)]), 0, 1)
    assert state is JobState.FAILED
    assert failure.message == f"progress is a fraction from 0 to 1, not {fraction!r}"


# --- The log ---------------------------------------------------------------------------------------------------


def test_jobs_of_two_workers_write_whole_lines_into_one_log(bench: Bench) -> None:
    texts = [f"{number} {'é' * 3_000}" for number in range(50)]
    worker = at_work(bench, [("log", *texts)] * 4)
    other = bench.start()
    bench.lease(worker, 0, 2)
    bench.lease(other, 2, 4, attempt=3)
    bench.until(lambda: sum(isinstance(event, ev.LeaseEnded) for event in bench.events) == 2, "both leases end")
    lines = [json.loads(line) for line in (bench.folder / "batches" / "b" / LOG_NAME).read_text().splitlines()]
    for index, attempt in ((0, 1), (1, 1), (2, 3), (3, 3)):
        mine = [line for line in lines if line["index"] == index]
        assert [line["text"] for line in mine] == texts
        assert {line["attempt"] for line in mine} == {attempt}
    assert len(lines) == 4 * 50
    assert all(line["time"].endswith("Z") for line in lines)


def test_a_batch_that_was_deleted_meanwhile_takes_nobodys_job_along(bench: Bench) -> None:
    worker = at_work(bench, [("same", 1), ("log", "nowhere")])
    bench.run(worker, 0, 1)
    shutil.rmtree(bench.folder / "batches" / "b")
    assert bench.run(worker, 1, 2)[0].state is GOOD
    assert not (bench.folder / "batches" / "b").exists()


# --- Checkpoints -----------------------------------------------------------------------------------------------


def test_a_checkpoint_is_told_with_its_lease_and_job(bench: Bench) -> None:
    worker = at_work(bench, [("same", 0), ("leave_checkpoint", {"row": 7})])
    number = bench.lease(worker, 0, 2)
    found = bench.await_event(ev.CheckpointReceived)
    assert (found.worker, found.lease, found.index) == (worker.number, number, 1)
    assert load(found.payload) == {"row": 7}


def test_a_job_finds_what_it_left_itself_as_it_was_then(bench: Bench) -> None:
    worker = at_work(bench, [("last_checkpoints", [[1], [2]]), ("last_checkpoints", [])])
    told = bench.run(worker, 0, 2)
    assert [each.value for each in told] == [[None, [1], [2]], [None]]


def test_a_checkpoint_that_is_too_large_is_refused_in_words(bench: Bench) -> None:
    worker = at_work(bench, [("leave_too_much", CHECKPOINT_BYTES_MAX), ("same", "next")])
    told = bench.run(worker, 0, 2)
    assert (told[0].state, told[0].value.type) == (JobState.FAILED, "ValueError")
    assert "at most 67,108,864 are kept: write it to a file and leave its path" in told[0].value.message
    assert told[1].value == "next"
    assert not [event for event in bench.events if isinstance(event, ev.CheckpointReceived)]


def test_a_large_checkpoint_arrives_whole(bench: Bench) -> None:
    size = CHECKPOINT_BYTES_MAX - 100
    bench.run(at_work(bench, [("leave_too_much", size)]), 0, 1)
    assert load(bench.await_event(ev.CheckpointReceived).payload) == bytes(size)


def test_a_value_that_does_not_read_back_is_refused_when_it_is_left(bench: Bench) -> None:
    told = bench.run(at_work(bench, [("leave_unreadable",), ("leave_checkpoint", 1)]), 0, 2)
    assert (told[0].state, told[0].value.type) == (JobState.FAILED, "ValueError")
    assert told[0].value.message == "the checkpoint cannot be read back: ValueError: cannot be read back"
    assert told[1].state is GOOD


def test_threads_of_a_job_do_not_tear_each_others_checkpoints(bench: Bench) -> None:
    worker = at_work(bench, [("leave_from_threads", 6, 20), ("same", "next")])
    told = bench.run(worker, 0, 2)
    assert [each.value for each in told] == [200_000, "next"]
    found = [load(event.payload) for event in bench.events if isinstance(event, ev.CheckpointReceived)]
    assert sorted(payload[0] for payload in found) == sorted(list(range(6)) * 20)
    assert all(payload == payload[:1] * 200_000 for payload in found)


@pytest.mark.covers("W15")
def test_a_job_that_waits_until_its_checkpoint_is_read_has_more_time(bench: Bench, tmp_path: Path) -> None:
    """Reports are left unread when the disk is behind: no job is to time out for that."""

    def running_s() -> float:
        bench.events.clear()
        bench.pool.observe({}, {})
        return bench.await_event(ev.WorkerObserved).running_s

    with listening(tmp_path / "door") as hear:
        worker = at_work(bench, [("leave_checkpoint", "x" * (2 << 20), str(tmp_path / "door"))])
        bench.pool.hold_reports()
        granted = monotonic()
        bench.lease(worker, 0, 1, is_timed=True)
        until(lambda: select([worker.reports_fd], [], [], 0)[0], "it is in the middle of its report")
        held = monotonic()
        until(lambda: monotonic() - held > held - granted, "it stands still for longer than it ran before")
        assert running_s() == 0.0
        let_in = monotonic()
        bench.pool.let_reports_in()
        bench.await_event(ev.CheckpointReceived)
        hear()
        assert 0.0 < running_s() < monotonic() - granted - (let_in - held)


def test_closed_descriptors_found_by_a_checkpoint_blame_nobody_who_may_be_innocent(bench: Bench) -> None:
    worker = at_work(bench, [("same", 0), ("leave_after_closing_descriptors",)])
    for reports_each, phase in ((False, Phase.REPORTING), (True, Phase.RUNNING)):
        bench.lease(worker, 1, 2, reports_each=reports_each)
        gone = bench.gone(worker)
        assert gone.cause == "closed descriptors it did not open"
        assert gone.position is not None
        assert (gone.position.index, gone.position.phase) == (1, phase)
        worker = bench.start()


def test_the_checkpoint_left_just_before_a_kill_is_there_for_the_next_attempt(house: House) -> None:
    items = [("leave_checkpoint_and_die", {"step": number}) for number in range(3)]
    found = house.run([*items, ("same", "other")], allowances=Allowances(crashes_max=3))
    assert found == {0: {"step": 0}, 1: {"step": 1}, 2: {"step": 2}, 3: "other"}
    assert notes(house) == {}
    assert not house.facts().noted


@pytest.mark.fault
@pytest.mark.parametrize("durability", ["disk", "process"])
def test_a_durable_checkpoint_outlives_the_supervisor(house: House, tmp_path: Path, durability: str) -> None:
    with listening(tmp_path / "door") as hear:
        items = [("leave_checkpoint", [number, "x" * 100_000], str(tmp_path / "door")) for number in range(2)]
        session = house.start([*items, ("same", "other")], spec={"durability": durability}, workers=2)
        hear(session), hear(session)
        pump_until(session, lambda: len(notes(house)) == 2, "the checkpoints are durable")
        assert list(house.facts().noted) == [(0, 2)]
        os.kill(house.supervisor, signal.SIGKILL)
        house.finish(session)
    assert house.outcomes() == {0: [0, "x" * 100_000], 1: [1, "x" * 100_000], 2: "other"}
    assert notes(house) == {}
    assert not house.facts().noted
    assert len(house.notes) == 1


def test_a_checkpoint_outlives_a_stop_in_order_and_is_found_when_the_batch_goes_on(
    house: House, tmp_path: Path
) -> None:
    with listening(tmp_path / "door") as hear:
        session = house.start([("leave_checkpoint", "so far", str(tmp_path / "door"))], workers=1)
        hear(session)
        session.leave(at_once=True)
        pump_until(session, lambda: session.is_put_down, "it is put down")
        session.close()
        assert (notes(house), list(house.facts().noted)) == ({0: "so far"}, [(0, 1)])
        assert house.facts().histories.get(0).interruptions == 0
        house.finish(house.start([]))
    assert house.outcomes() == {0: "so far"}
    assert notes(house) == {}


def test_a_job_that_is_retried_finds_what_the_failed_attempt_left_until_it_has_an_outcome(house: House) -> None:
    items = [("leave_checkpoint_and_fail", "mine")]
    found = house.run(items, allowances=Allowances(retries=1))
    assert found[0].message == "found mine"
    assert notes(house) == {}
    request(house.folder, "reopen", batch="b", states=[JobState.FAILED])
    house.finish(house.start([], allowances=Allowances(retries=0)))
    assert house.outcomes()[0].message == "found None"
    assert notes(house) == {}


def test_a_checkpoint_that_comes_with_its_jobs_outcome_leaves_nothing(house: House) -> None:
    assert set(house.run([("leave_checkpoint", "x")] * 300).values()) == {None}
    assert notes(house) == {}
    assert not house.facts().noted


def test_many_checkpoints_of_a_job_leave_no_trace_but_the_last(house: House, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        session = house.start([("leave_many", 500, str(tmp_path / "door"))], workers=1)
        hear(session)
        pump_until(session, lambda: notes(house) == {0: 499}, "the last one is durable")
        journal = BatchJournal(house.folder / "batches" / "b")
        with journal.begin() as txn:
            log = [json.loads(bytes(value)) for _, value in txn.cursor(journal.table(tables.LOG))]
        journal.close()
        told = [entry for commit in log for entry in commit if entry["entry"] == "Noted"]
        assert len(told) <= 2
        session.leave(at_once=True)
        pump_until(session, lambda: session.is_put_down, "it is put down")


# --- Being told to end -----------------------------------------------------------------------------------------


def watching(bench: Bench, tmp_path: Path, how: str) -> tuple[int, int]:
    """Return (worker, lease) of a job that looks for its end."""
    worker = at_work(bench, [("watch", str(tmp_path / "door"), how), ("same", "next")])
    return worker.number, bench.lease(worker, 0, 2)


def test_a_job_is_told_by_the_cut_that_ends_it_and_by_no_other(bench: Bench, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        worker, lease = watching(bench, tmp_path, "return")
        hear()
        bench.pool.perform(c.CutLease(worker, lease, 0, 1))
        assert bench.await_event(ev.LeaseCut).stop == 1
        assert not bench.pool.workers[worker].slot.is_ending(lease)
        bench.pool.perform(c.CutLease(worker, lease, 0, 0, is_ending=True))
        assert bench.await_event(ev.LeaseEnded).stop == 1
    assert bench.told(lease) == [(0, GOOD, "was told to end")]


def test_an_order_for_a_lease_that_waits_does_not_end_the_running_one(bench: Bench, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        worker, running = watching(bench, tmp_path, "return")
        waiting = bench.lease(bench.pool.workers[worker], 1, 2, lane=1)
        hear()
        bench.pool.perform(c.CutLease(worker, waiting, 1, 1, is_ending=True))
        bench.await_event(ev.LeaseCut, lambda event: event.lease == waiting)
        assert not bench.pool.workers[worker].slot.is_ending(waiting)
        for lease, lane, stop in ((running, 0, 0), (waiting, 1, 1)):  # The later order must not hide the first.
            bench.pool.perform(c.CutLease(worker, lease, lane, stop, is_ending=True))
        bench.await_event(ev.LeaseEnded, lambda event: event.lease == running)
    assert bench.told(running) == [(0, GOOD, "was told to end")]


@pytest.mark.parametrize(("how", "state"), [("return", GOOD), ("fail", JobState.FAILED)])
def test_a_kill_with_grace_waits_for_what_a_watching_job_ends_with(
    bench: Bench, tmp_path: Path, how: str, state: JobState
) -> None:
    with listening(tmp_path / "door") as hear:
        worker, lease = watching(bench, tmp_path, how)
        process = bench.pool.workers[worker]
        hear()
        bench.pool.perform(c.CutLease(worker, lease, 0, 0, is_ending=True))
        bench.pool.perform(c.KillWorker(worker, "", has_grace=True))
        gone = bench.gone(process)
    assert [(told.job, told.state) for told in bench.told(lease)] == [(0, state)]
    assert [event.stop for event in bench.events if isinstance(event, ev.LeaseEnded)] == [1]
    assert gone.position is not None
    assert (gone.cause, gone.position.phase) == ("killed by SIGKILL", Phase.IDLE)


def test_grace_ends(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grace, "CANCEL_GRACE_S", 0.2)
    with listening(tmp_path / "door") as hear:
        worker, lease = watching(bench, tmp_path, "stay")
        process = bench.pool.workers[worker]
        hear()
        bench.pool.perform(c.CutLease(worker, lease, 0, 0, is_ending=True))
        bench.pool.perform(c.KillWorker(worker, "", has_grace=True))
        gone = bench.gone(process)
    assert gone.position is not None
    assert (gone.position.index, gone.position.phase) == (0, Phase.RUNNING)
    assert bench.told(lease) == []


@pytest.mark.parametrize("has_grace", [False, True])
def test_who_does_not_watch_or_is_given_no_grace_is_killed_at_once(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_grace: bool
) -> None:
    monkeypatch.setattr(grace, "CANCEL_GRACE_S", 600.0)
    door = str(tmp_path / "door")
    with listening(tmp_path / "door") as hear:
        item = ("announce", door, 600) if has_grace else ("watch", door, "stay")
        worker = at_work(bench, [item])
        bench.lease(worker, 0, 1)
        hear()
        bench.pool.perform(c.KillWorker(worker.number, "", has_grace=has_grace))
        gone = bench.gone(worker)
    assert gone.position is not None
    assert gone.position.phase is Phase.RUNNING


def test_a_watching_worker_that_dies_in_its_grace_is_seen_to(bench: Bench, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        worker, _ = watching(bench, tmp_path, "stay")
        process = bench.pool.workers[worker]
        hear()
        bench.pool.perform(c.KillWorker(worker, "", has_grace=True))
        os.kill(process.pid, signal.SIGKILL)
        assert bench.gone(process).cause == "killed by SIGKILL"
        bench.until(lambda: not bench._timers, "nobody looks at its slot any more")


@pytest.mark.parametrize(("how", "state"), [("return", GOOD), ("fail", JobState.FAILED)])
def test_a_cancelled_batch_keeps_what_watching_jobs_end_with(
    house: House, tmp_path: Path, how: str, state: JobState
) -> None:
    door = str(tmp_path / "door")
    with listening(tmp_path / "door") as hear:
        session = house.start([("watch", door, how)] * 4, workers=2)
        hear(session), hear(session)
        request(house.folder, "cancel", batch="b", reason="enough")
        house.finish(session)
    assert house.facts().counts == {state: 2, JobState.CANCELLED: 2}
    assert house.facts().state.value == "cancelled"


def test_a_planned_stop_is_told_to_jobs_that_watch(house: House, tmp_path: Path) -> None:
    door = str(tmp_path / "door")
    with listening(tmp_path / "door") as hear:
        session = house.start([("watch", door, "return")] * 4, workers=2)
        hear(session), hear(session)
        session.leave(at_once=False)
        pump_until(session, lambda: session.is_put_down, "it is put down")
    assert house.outcomes() == {0: "was told to end", 1: "was told to end"}
    assert house.facts().done.size == 2


def test_scaling_down_is_told_to_one_worker_too_many_and_not_to_the_other(house: House, tmp_path: Path) -> None:
    door = str(tmp_path / "door")
    with listening(tmp_path / "door") as hear:
        session = house.start([("watch", door, "return")] * 4, workers=2)
        pids = hear(session) + hear(session)
        request(house.folder, "scale", workers=1)
        pump_until(session, lambda: session.progress["done"] == 1, "one of them ends")
        pump_until(session, lambda: [is_alive(pid) for pid in pids].count(True) == 1, "its worker is gone")
        assert session.progress["done"] == 1
        session.leave(at_once=True)
        pump_until(session, lambda: session.is_put_down, "it is put down")
    assert house.facts().done.size == 2


# --- Who may not -----------------------------------------------------------------------------------------------


def test_a_forked_child_cannot_speak_for_the_job(bench: Bench) -> None:
    told = bench.run(at_work(bench, [("same", 0), ("fork_and_speak",), ("same", 2)]), 0, 3)
    assert len(told[1].value) == 5
    assert set(told[1].value) == {
        "a process that a job forked cannot speak for the job: call this in the job's own process"
    }
    assert not [event for event in bench.events if isinstance(event, ev.CheckpointReceived)]
    assert not (bench.folder / "batches" / "b" / LOG_NAME).read_bytes()


def test_a_job_that_has_ended_cannot_speak_through_the_next(bench: Bench) -> None:
    told = bench.run(at_work(bench, [("keep_job",), ("use_kept_job",)]), 0, 2)
    assert set(told[1].value) == {"job b:0 has ended: ask current_job() in the one that runs"}
    assert len(told[1].value) == 5


def test_a_job_may_return_who_it_is(bench: Bench) -> None:
    (told,) = bench.run(at_work(bench, [("return_job",)]), 0, 1)
    assert told.value == CurrentJob("b", 0, 1)
    with pytest.raises(RuntimeError, match="job b:0 does not run here"):
        told.value.log("elsewhere")
