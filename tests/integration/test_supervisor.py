"""Real supervisors: one a journal, shared, gone when nobody is left, and replaceable at any moment."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit
from typing import Any

import pytest

from batchd.client import Session, connect, request, start_supervisor
from batchd.client import connection as client
from batchd.core.job import Allowances, JobState
from batchd.edge import control
from batchd.edge.folder import journal_id, open_folder, recorder_path
from batchd.edge.journal import BatchJournal
from batchd.edge.lock import holder_of
from batchd.errors import BatchNotFound, JournalError, SupervisorError, SupervisorMismatch, TaskError, UsageError
from batchd.formats.report import Failure
from batchd.formats.segment import input_blocks
from batchd.settings import WORKERS_MAX
from tests.bench import ROOT, WAIT_S, House, await_death, key_spec, listening, pump_until
from tests.disks import fill, full_disk

GONE_S = 1.0
"""Workers are promised to be gone so soon after their supervisor."""


def same(count: int) -> list[Any]:
    return [("same", index) for index in range(count)]


# --- Alone, and gone in time -----------------------------------------------------------------------------------


def test_the_last_client_takes_the_supervisor_with_it(house: House) -> None:
    session = house.start(same(2_000))
    pid = house.supervisor
    assert pid != os.getpid()
    assert os.getsid(pid) == pid
    assert house.recorder.exists()
    house.finish(session)
    assert house.outcomes() == {index: index for index in range(2_000)}
    await_death(pid)
    assert not house.recorder.exists()
    assert not (house.folder / control.SOCKET_NAME).exists()
    assert house.facts().is_attached is False


@pytest.mark.covers("S4")
def test_a_second_supervisor_is_refused_and_told_who_is_there(house: House) -> None:
    house.start(same(1))
    pid = house.supervisor
    said = start_supervisor(house.folder)
    assert said.startswith(f"another supervisor holds {house.folder}: pid {pid}, batchd ")
    assert house.supervisor == pid
    assert holder_of(house.folder)["pid"] == pid


@pytest.mark.covers("S8")
def test_a_supervisor_of_another_version_is_named(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    session = house.start(same(1))
    monkeypatch.setattr(client, "__version__", "99.0")
    with pytest.raises(SupervisorMismatch, match=rf"pid {house.supervisor}, .*this is batchd 99\.0"):
        connect(house.folder)
    house.finish(session)


def test_a_folder_with_a_long_path_works(tmp_path: Path) -> None:
    house = House(tmp_path / ("long" * 40) / "journal")
    try:
        assert len(str(house.folder)) > 150
        assert house.run(same(10)) == {index: index for index in range(10)}
    finally:
        house.close()


def test_a_supervisor_has_room_for_its_workers_and_no_tag_of_an_outer_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHD_WORKER", "0123456789abcdef.00000001.00000001")
    _, hard = getrlimit(RLIMIT_NOFILE)
    house.session().open()
    proc = Path(f"/proc/{house.supervisor}")
    found = re.search(r"^Max open files\s+(\d+)", (proc / "limits").read_text(), re.MULTILINE)
    assert found is not None
    assert int(found[1]) >= min(hard, 4 * WORKERS_MAX)
    assert "BATCHD_WORKER=" not in (proc / "environ").read_text()


@pytest.mark.fault
def test_a_client_that_dies_leaves_a_batch_that_goes_on(house: House, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.bench import *;"
        "house = House(Path(sys.argv[1]));"
        "session = house.start([('work', 0.1, 0), ('announce', sys.argv[2], 600), ('announce', sys.argv[2], 600)]);"
        "pump_until(session, lambda: False, 'killed')"
    )
    door = tmp_path / "door"
    with listening(door) as hear:
        process = subprocess.Popen([sys.executable, "-c", program, str(house.folder), str(door)], cwd=ROOT)
        workers = [hear()[0], hear()[0]]
        supervisor = house.supervisor
        process.kill()
        process.wait()
        for pid in (*workers, supervisor):
            await_death(pid)
    facts = house.facts()
    assert (facts.size, facts.done.size, facts.is_attached) == (3, 1, False)
    assert house.outcomes() == {0: 0}


def test_two_clients_in_two_processes_share_one_supervisor(house: House) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.bench import *;"
        "house = House(Path(sys.argv[1]));"
        "session = house.start([('same', n) for n in range(500)], 'theirs');"
        "pid = house.supervisor; house.finish(session); print(pid, sum(house.outcomes('theirs').values()))"
    )
    session = house.start(same(500), "ours")
    command = [sys.executable, "-c", program, str(house.folder)]
    theirs = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=WAIT_S)
    pid = house.supervisor
    house.finish(session)
    assert theirs.stdout.split() == [str(pid), str(sum(range(500)))]
    assert house.outcomes("ours") == {index: index for index in range(500)}


# --- Signals ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("H3")
def test_a_term_lets_running_jobs_finish_and_the_rest_waits(house: House, tmp_path: Path) -> None:
    door = str(tmp_path / "door")
    with listening(tmp_path / "door") as hear:
        session = house.start([("announce", door, 0.2), ("announce", door, 0.2), *same(50)], workers=2)
        workers = hear(session) + hear(session)
        assert len(set(workers)) == 2
        pid = house.supervisor
        os.kill(pid, signal.SIGTERM)
        pump_until(session, lambda: session.is_put_down, "it is put down")
    assert session.progress["done"] >= 2
    await_death(pid)  # Although this client has not hung up.
    assert not house.recorder.exists()
    assert not house.notes, "the client started another supervisor against the order to stop"
    facts = house.facts()
    assert not facts.histories.marked(), "somebody was charged for a planned stop"
    assert {0, 1} <= {index for start, stop in facts.done for index in range(start, stop)}


@pytest.mark.covers("S7")
def test_a_second_term_ends_running_jobs(house: House, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        session = house.start([("announce", str(tmp_path / "door"), 600)])
        (worker,) = hear(session)
        pid = house.supervisor
        os.kill(pid, signal.SIGTERM)
        pump_until(
            session, lambda: "asked to stop: draining" in (house.folder / "supervisor.log").read_text(), "drain"
        )
        with pytest.raises(SupervisorError, match="the supervisor was asked to stop"):
            house.session("other").open()
        os.kill(pid, signal.SIGTERM)
        pump_until(session, lambda: session.is_put_down, "it is put down")
        await_death(worker)
        await_death(pid)
    assert session.progress["done"] == 0


@pytest.mark.fault
@pytest.mark.covers("S3", "P9")
def test_workers_are_gone_with_a_supervisor_that_was_killed(house: House, tmp_path: Path) -> None:
    door = str(tmp_path / "door")
    with listening(tmp_path / "door") as hear:
        session = house.start([("start_a_child", door), ("announce", door, 600)])
        pids = hear(session) + hear(session)
        os.kill(house.supervisor, signal.SIGKILL)
        for pid in pids:
            await_death(pid, GONE_S)
    assert len(pids) == 3


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.covers("S1")
def test_no_attempt_is_given_twice_however_often_the_supervisor_is_killed(house: House, tmp_path: Path) -> None:
    jobs, kills = 600, 4
    written = tmp_path / "written"
    session = house.start([("write_down", str(written), 0.003)] * jobs)
    for kill in range(1, kills + 1):
        wanted = kill * jobs // (kills + 2)
        # By the next supervisor, however far the one before had come when that was heard of.
        pump_until(session, lambda: session.restarts == kill - 1 and session.progress["done"] >= wanted, "progress")  # noqa: B023
        os.kill(house.supervisor, signal.SIGKILL)
    house.finish(session)
    assert house.outcomes() == {index: index for index in range(jobs)}
    counted = Counter(written.read_text().split())
    assert max(counted.values()) == 1, f"given twice: {counted.most_common(3)}"
    begun = Counter(line.partition(":")[0] for line in counted)
    assert len(begun) == jobs
    again = sum(count - 1 for count in begun.values())
    assert again <= 2 * kills, f"{again} jobs ran again, more than the two in flight at each kill"
    assert len(house.notes) == kills
    assert all("the supervisor died; started another" in note for note in house.notes)


# --- Batches and clients ---------------------------------------------------------------------------------------


def test_a_batch_can_be_open_once_only(house: House) -> None:
    session = house.start([("work", 0.01, n) for n in range(20)])
    with pytest.raises(SupervisorError, match=f"batch b is being run by process {os.getpid()}"):
        house.session().open()
    house.finish(session)
    assert house.session().open()["state"] == "finished"


@pytest.mark.covers("C4")
def test_a_resubmission_is_not_doubled(house: House) -> None:
    session = house.session()
    session.open()
    line = session._connection
    assert line is not None
    bodies = [b"".join(block for _, block in input_blocks(same(count))) for count in (3, 4)]
    for sequence, body in ((1, bodies[0]), (1, bodies[0]), (2, bodies[1]), (1, bodies[0]), (2, bodies[1])):
        line.tell("submit", body, batch="b", client="c", sequence=sequence, checkpoint=f"after {sequence}")
    line.ask("seal", batch="b")
    pump_until(session, lambda: session.progress["state"] == "finished", "it is finished")
    assert session.progress["size"] == 7
    session.leave(at_once=False)
    pump_until(session, lambda: session.is_put_down, "it is put down")
    assert list(house.outcomes().values()) == [0, 1, 2, 0, 1, 2, 3]
    assert house.facts().sequences == {"c": (2, 3)}, "only the client itself may say that it asks no more"
    assert house.session().open()["checkpoint"] == "after 2"


def test_of_clients_that_left_in_order_nothing_is_kept(house: House) -> None:
    """Unless a submission of theirs was not answered. Who opens the batch next is told of nobody before."""

    def submit_and_leave(session: Session, *, is_answered: bool) -> None:
        assert "sequences" not in session.open()
        session.submit(b"".join(block for _, block in input_blocks(same(1))))
        if is_answered:
            pump_until(session, lambda: session.is_answered, "it is answered")
        session.leave(at_once=False)
        pump_until(session, lambda: session.is_put_down, "it is put down")
        session.close()

    for _ in range(3):
        submit_and_leave(house.session(), is_answered=True)
    assert house.facts().sequences == {}
    hasty = house.session()
    submit_and_leave(hasty, is_answered=False)
    assert house.facts().sequences == {hasty._client: (1, 3)}


SUBMIT = """
import sys
from pathlib import Path
from batchd.formats.segment import input_blocks
from tests.bench import House, pump_until
session = House(Path(sys.argv[1])).session()
session.open()
session.submit(b"".join(block for _, block in input_blocks([("same", 1)])))
pump_until(session, lambda: session.is_answered, "it is answered")
print("there", flush=True)
sys.stdin.read()
"""


def test_of_clients_that_are_dead_nothing_is_kept(house: House) -> None:
    """One that hangs up and lives may ask again."""
    session = house.session()
    session.open()
    session.submit(b"".join(block for _, block in input_blocks(same(1))))
    pump_until(session, lambda: session.is_answered, "it is answered")
    session.close()
    with subprocess.Popen(
        [sys.executable, "-c", SUBMIT, house.folder], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        assert len(house.facts().sequences) == 2
        os.kill(house.supervisor, signal.SIGSTOP)  # So that it sees at once that it hung up and is dead.
        process.kill()
        process.wait()
        os.kill(house.supervisor, signal.SIGCONT)
    await_death(house.supervisor)
    assert house.facts().sequences == {session._client: (1, 0)}


def test_input_that_grew_is_run_behind_the_old(house: House) -> None:
    assert len(house.run(same(5))) == 5
    session = house.session()
    assert session.open()["state"] == "finished"
    session.feed(iter([next(iter(_more(range(5, 9))))]))
    house.finish(session)
    assert house.outcomes() == {index: index for index in range(9)}


def _more(numbers: range) -> Iterator[Any]:
    from tests.bench import blocks_of

    return blocks_of([("same", number) for number in numbers])


def test_a_batch_that_nobody_runs_can_be_cancelled_and_retried(house: House) -> None:
    house.run([("fail", "always"), ("same", 1)], keep_going=True)
    assert request(house.folder, "reopen", batch="b", states=[int(JobState.FAILED)])["counts"] == {"3": 1, "4": 0}
    assert request(house.folder, "cancel", batch="b", reason="enough")["state"] == "cancelled"
    assert house.outcomes() == {0: Failure("Cancelled", "cancelled", bytes(8)), 1: 1}
    with pytest.raises(BatchNotFound, match="there is no batch nothing"):
        request(house.folder, "cancel", batch="nothing", reason="enough")


def test_the_worker_count_follows_an_order(house: House, tmp_path: Path) -> None:
    door = str(tmp_path / "door")
    with listening(tmp_path / "door") as hear:
        session = house.start([("announce", door, 600)] * 4, workers=1)
        pids = hear(session)
        assert request(house.folder, "scale", workers=3) == {"number": 2, "before": 1, "workers": 3}
        pump_until(session, lambda: session.busy == 3, "three workers are busy")
        pids += hear(session) + hear(session)
        status = request(house.folder, "status")
        assert {row["pid"] for row in status["workers"]} == set(pids)
        assert sorted(row["job"] for row in status["workers"]) == [0, 1, 2]
        assert all(row["memory_bytes"] > 0 and row["batch"] == "b" for row in status["workers"])
        assert status["batches"]["b"]["size"] == 4
        with pytest.raises(UsageError, match="cannot run 0 workers"):
            request(house.folder, "scale", workers=0)


def test_a_task_that_does_not_import_makes_no_batch(house: House) -> None:
    session = house.session()
    session._open_fields |= {"key": "k2", "key_spec": {**asdict(key_spec("nowhere_at_all:run")), "payload": ""}}
    with pytest.raises(TaskError, match="No module named 'nowhere_at_all'"):
        session.open()
    assert list((house.folder / "batches").iterdir()) == []


def test_a_batch_that_cannot_be_made_costs_nobody_else_anything(house: House) -> None:
    session = house.start([("work", 0.01, n) for n in range(20)])
    pid = house.supervisor
    (house.folder / "batches" / ".new-other").write_text("in the way")
    with pytest.raises(JournalError, match="cannot make a batch"):
        house.session("other").open()
    house.finish(session)
    assert house.outcomes() == {index: index for index in range(20)}
    assert pid == holder_of(house.folder)["pid"]


# --- Limits ----------------------------------------------------------------------------------------------------


def test_a_time_limit_ends_the_job_that_is_over_it(house: House) -> None:
    items = same(30)
    items[7] = ("work", 600)
    items[8] = ("hold_gil", 600)
    found = house.run(items, timeout_s=0.3, keep_going=True)
    assert {index: value for index, value in found.items() if index not in {7, 8}} == {
        index: index for index in range(30) if index not in {7, 8}
    }
    for index in (7, 8):
        assert found[index].type == "JobTimeout"
    with closing(BatchJournal(house.folder / "batches" / "b")) as journal:
        assert journal.read_usage()["busy_s"] > 0.6  # Of the two that were ended; the others take no time.
        assert re.fullmatch(r"timed out after \d+\.\d s", found[index].message)


@pytest.mark.covers("W11", "P19")
def test_a_memory_limit_ends_the_job_that_is_over_it(house: House) -> None:
    items = [*same(10), ("eat", 200 << 20), *same(10)]
    found = house.run(items, memory_bytes_max=100 << 20, keep_going=True)
    assert [index for index, value in found.items() if isinstance(value, Failure)] == [10]
    assert found[10].type == "JobOverMemory"
    assert re.fullmatch(r"memory \d+M > 100M \(memory per job\)", found[10].message)
    assert found[10].details["memory_peak_bytes"] > 100 << 20


@pytest.mark.fault
def test_a_job_that_kills_its_worker_is_quarantined_and_nobody_else(house: House) -> None:
    items = same(200)
    items[50], items[120] = ("segfault",), ("close_descriptors",)
    found = house.run(items, allowances=Allowances(crashes_max=2))
    assert {index for index, value in found.items() if isinstance(value, Failure)} == {50, 120}
    assert found[50].message == "killed by SIGSEGV"
    assert found[120].message == "closed descriptors it did not open"
    assert house.facts().counts == {JobState.SUCCEEDED: 198, JobState.QUARANTINED: 2}


# --- A full disk -----------------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize("durability", ["disk", "process"])
@pytest.mark.covers("D1", "P29")
def test_a_full_disk_pauses_a_batch_and_space_lets_it_go_on(small_disk: Path, durability: str) -> None:
    house = House(small_disk / "journal")
    try:
        jobs = 100
        spec = {"durability": durability}
        session = house.start([("work", 0.01, "x" * 20_000)] * jobs, spec=spec)
        pump_until(session, lambda: session.progress["done"] >= 5, "some are done")
        pid = house.supervisor
        filler = fill(small_disk)
        pump_until(session, lambda: session.progress["trouble"], "trouble is told")
        assert full_disk(house.folder).fullmatch(session.progress["trouble"])
        assert session.progress["done"] < jobs
        assert request(house.folder, "status")["trouble"]
        filler.unlink()
        house.finish(session)
        assert session.progress["trouble"] == ""
        assert house.outcomes() == dict.fromkeys(range(jobs), "x" * 20_000)
        assert holder_of(house.folder)["pid"] == pid, "the supervisor died of it"
    finally:
        house.close()


@pytest.mark.parametrize(
    ("code", "ends", "is_left"),
    [(0, "never", False), (3, "never", True), (3, "before", False), (3, "meanwhile", False)],
)
def test_a_throw_away_journal_is_left_to_its_process_where_a_supervisor_stops_for_the_disk(
    tmp_path: Path, code: int, ends: str, is_left: bool
) -> None:
    """That starts the next supervisor, if it lives; it may have ended when it could leave the folder to this one."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as owner:
        assert owner.stdin is not None
        folder = open_folder(tmp_path / f"batchd-{os.geteuid()}-{owner.pid}-x")
        recorder = recorder_path(folder, journal_id(folder))
        program = (
            "import sys; from batchd.supervisor import __main__ as started;"
            f"started.Supervisor.run = lambda self: {code}; started.OWNER_WAIT_S = {0.1 if is_left else WAIT_S};"
            f"sys.argv[1:] = [{str(folder)!r}, '1', 'throw-away']; sys.exit(started.main())"
        )
        if ends == "before":
            owner.stdin.close()
            owner.wait()
        with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as supervisor:
            assert supervisor.stdout is not None
            assert supervisor.stdout.read() == b"ready"
            if ends == "meanwhile":
                owner.stdin.close()
                owner.wait()
            assert supervisor.wait() == code
        assert (folder.exists(), recorder.exists()) == (is_left, is_left)
        recorder.unlink(missing_ok=True)
