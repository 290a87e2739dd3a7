"""`Client.submit`: what it returned for is on disk, whoever dies; any number of processes hand to one queue."""

import os
import pickle
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import batchd
from batchd.edge.journal import BatchJournal
from batchd.edge.lock import holder_of
from batchd.errors import ClientClosed, UsageError
from tests.bench import await_death
from tests.commands import Desk, dead, until
from tests.contract.calls import WAIT_S, Door, call_with, fail, kill_myself, nap, notes, square, survive_from
from tests.faces.programs import Programs


def kill_supervisor(folder: Path) -> None:
    pid = int(holder_of(folder)["pid"])
    os.kill(pid, signal.SIGKILL)
    await_death(pid)


# --- One after the other -------------------------------------------------------------------------------------------


def test_a_client_that_comes_while_the_last_one_leaves_waits_for_that_and_is_served(desk: Desk) -> None:
    """As when a service is replaced: what the old one began is finished first."""
    first = batchd.Client(desk.journal, workers=1)
    job = first.submit(lambda mark=desk.marks: (mark.touch(), nap(1.5), "first")[2])
    until(desk.marks.exists, "it runs")
    leaving = threading.Thread(target=first.close)
    leaving.start()
    attachment = first._queue._attachment  # When it has asked to leave nobody is told.
    until(lambda: attachment is not None and attachment._stopping is not None, "it leaves")
    with batchd.Client(desk.journal, workers=1) as second:
        assert second.submit(square, 5).result(WAIT_S) == 25
        assert second.job(job.id).value == "first"
    leaving.join()


@pytest.mark.parametrize("way", ["command", "call"])
def test_a_queue_that_was_cancelled_refuses_jobs_until_that_is_taken_back(desk: Desk, way: str) -> None:
    with batchd.Client(desk.journal, workers=1) as client:
        queue = client.submit(square, 3).batch
        assert desk.run("cancel", queue).returncode == 0
    words = f"{queue} was cancelled and takes no more jobs: `batchd retry {queue} --cancelled`"
    with batchd.Client(desk.journal, workers=1) as client, pytest.raises(UsageError, match=words):
        client.submit(square, 4)
    if way == "command":
        assert desk.run("retry", queue, "--cancelled").returncode == 0
    else:
        with batchd.Client(desk.journal, workers=1) as client:
            assert client.batch(queue).retry(cancelled=True) == 0
    with batchd.Client(desk.journal, workers=1) as client:
        assert client.submit(square, 5).result(WAIT_S) == 25


# --- One job -----------------------------------------------------------------------------------------------------


def test_a_job_is_handed_over_and_its_result_comes(client: batchd.Client) -> None:
    job = client.submit(call_with, 1, [2], three=3)
    assert job.result(WAIT_S) == ((1, [2]), {"three": 3})
    assert job.done()
    assert (job.index, job.id, repr(job)) == (0, f"{job.batch}:0", f"<Job {job.batch}:0>")
    assert client.job(job.id) == (job.id, "succeeded", ((1, [2]), {"three": 3}))
    assert [(info.name, info.id, info.size, info.done) for info in client.batches()] == [("jobs", job.batch, 1, 1)]


def test_jobs_are_numbered_in_the_order_they_were_given(client: batchd.Client) -> None:
    jobs = [client.submit(lambda x=x: x * x) for x in range(30)]
    assert [job.index for job in jobs] == list(range(30))
    assert [job.result(WAIT_S) for job in jobs] == [x * x for x in range(30)]


def test_a_job_raises_what_it_raised(client: batchd.Client) -> None:
    job = client.submit(fail, ValueError, "no such colour")
    with pytest.raises(ValueError, match="no such colour"):
        job.result(WAIT_S)
    record = client.job(job.id)
    assert (record.state, type(record.value)) == ("failed", batchd.JobFailed)
    crash = client.submit(kill_myself, signal.SIGKILL)
    with pytest.raises(batchd.JobCrashed):
        crash.result(WAIT_S)
    assert client.job(crash.id).state == "quarantined"
    assert client.submit(square, 3).result(WAIT_S) == 9


def test_the_options_of_the_client_are_those_of_its_jobs(desk: Desk, ran: str) -> None:
    with batchd.Client(desk.journal, workers=1, retries=2, timeout="2s", queue="mine") as client:
        assert client.submit(survive_from, ran, 3, fail, ValueError, "not yet").result(WAIT_S) == 3
        with pytest.raises(batchd.JobTimeout):
            client.submit(nap, 60).result(WAIT_S)
        assert [info.name for info in client.batches()] == ["mine"]


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"retries": -1}, {"timeout": -1}, {"timeout": "soon"}, {"crashes_max": 0}]
)
def test_options_that_make_no_sense_are_refused(desk: Desk, options: Any) -> None:
    with pytest.raises(UsageError):
        batchd.Client(desk.journal, **options)


def test_what_does_not_pickle_is_refused_at_once(client: batchd.Client) -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match="lock"):
        client.submit(square, lock)
    with pytest.raises(TypeError, match="lock"):
        client.submit(lock.locked)
    assert client.submit(square, 2).index == 0  # Nothing was handed over.


def test_a_job_that_has_not_begun_may_be_cancelled(client: batchd.Client, tmp_path: Path) -> None:
    door = Door(tmp_path)
    running = [client.submit(door.enter, x) for x in range(2)]
    waiting = client.submit(square, 3)
    until(lambda: len(door.came()) == 2, "all workers are busy")
    assert waiting.cancel()
    assert waiting.done()
    assert client.job(waiting.id).state == "cancelled"
    assert not running[0].cancel()
    assert client.job(running[0].id) == (running[0].id, "queued", None)
    with pytest.raises(TimeoutError):
        running[0].result(0.05)
    door.open()
    assert [job.result(WAIT_S) for job in running] == [0, 1]


def test_nothing_is_taken_after_the_end(desk: Desk) -> None:
    client = batchd.Client(desk.journal, workers=1)
    assert client.submit(square, 3).result(WAIT_S) == 9
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        client.submit(square, 3)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(client)


def test_what_a_closed_client_did_not_hear_of_is_told(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)
    with batchd.Client(desk.journal, workers=1) as client:
        jobs = [client.submit(door.enter, 7), client.submit(square, 3), client.submit(square, 4)]
        until(door.came, "the first runs")
        assert jobs[2].cancel()
        client.close(at_once=True)
    for job in jobs[:2]:
        assert job.done()
        assert not job.cancel()
        with pytest.raises(ClientClosed, match=rf"before job {job.id} had an outcome: .* the next client"):
            job.result(WAIT_S)
    assert jobs[2].done()
    with pytest.raises(batchd.JobCancelled, match=f"job {jobs[2].id}: cancelled") as caught:
        jobs[2].result()
    assert (caught.value.batch, caught.value.index) == (jobs[2].batch, 2)
    door.open()
    with batchd.Client(desk.journal, workers=1) as client:  # As the error says.
        assert client.submit(square, 5).result(WAIT_S) == 25
        assert [client.job(job.id).value for job in jobs[:2]] == [7, 9]


def test_many_threads_hand_over_at_once(client: batchd.Client) -> None:
    found: dict[int, int] = {}

    def hand_over(number: int) -> None:
        jobs = [client.submit(square, number * 100 + x) for x in range(25)]
        found.update({job.index: job.result(WAIT_S) for job in jobs})

    threads = [threading.Thread(target=hand_over, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(found) == list(range(200))
    assert sorted(found.values()) == sorted((n * 100 + x) ** 2 for n in range(8) for x in range(25))


# --- What stays --------------------------------------------------------------------------------------------------

LEAVES_ONE = """
client = batchd.Client(workers=1)
job = client.submit(note, Path("ran").resolve(), "it ran")
print(job.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.fault
def test_what_was_handed_over_survives_the_death_of_everybody(programs: Programs) -> None:
    process = programs.start(
        """
from tests.contract.calls import Door
client = batchd.Client(workers=1)
client.submit(Door(Path.cwd()).enter)
client.submit(note, Path("ran").resolve(), "it ran")
job = client.submit(pow, 2, 10)
print(job.id, flush=True)
signal.pause()
"""
    )
    assert process.stdout is not None
    job = process.stdout.readline().strip()
    pid = int(holder_of(programs.journal)["pid"])
    os.kill(pid, signal.SIGKILL)
    process.kill()
    process.communicate()
    await_death(pid)
    Door(programs.folder).open()
    assert notes(programs.ran) == []
    with batchd.Client(programs.journal, workers=1) as client:
        until(lambda: client.job(job).state == "succeeded", "it has run")
        assert client.job(job).value == 1024
    assert notes(programs.ran) == ["it ran"]


@pytest.mark.fault
def test_a_process_killed_right_after_submitting(programs: Programs) -> None:
    process = programs.start(LEAVES_ONE)
    job = process.communicate(timeout=60)[0].strip()
    assert process.returncode == -signal.SIGKILL
    with batchd.Client(programs.journal, workers=1) as client:
        until(lambda: client.job(job).state == "succeeded", "it has run")
    assert 1 <= len(notes(programs.ran)) <= 2


def test_what_was_left_waits_for_the_next_client(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)
    with batchd.Client(desk.journal, workers=1) as client:
        jobs = [client.submit(door.enter, x) for x in range(3)]
        until(door.came, "the first runs")
        client.close(at_once=True)
    assert [job.done() for job in jobs] == [True] * 3  # Cancelled, for this process: nobody tells it any more.
    door.open()
    assert "jobs" in desk.run("ls").stdout
    with batchd.Client(desk.journal, workers=1) as client:
        assert client.batch("jobs").wait(WAIT_S).succeeded == 3
        assert client.submit(square, 2).index == 3
        assert [client.job(f"jobs:{x}").value for x in range(3)] == [0, 1, 2]


def test_closing_waits_for_what_runs_and_leaves_the_rest(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)
    client = batchd.Client(desk.journal, workers=1)
    for x in range(3):
        client.submit(door.enter, x)
    until(door.came, "the first runs")
    closing = threading.Thread(target=client.close)
    closing.start()
    nap(0.1)
    assert closing.is_alive()
    door.open()
    closing.join(WAIT_S)
    with batchd.Client(desk.journal, workers=1) as client:
        assert client.job("jobs:0").state == "succeeded"


# --- Several clients ---------------------------------------------------------------------------------------------


def test_two_clients_in_one_process(desk: Desk) -> None:
    with batchd.Client(desk.journal, workers=1) as one, batchd.Client(desk.journal, workers=1) as two:
        jobs = [client.submit(square, x) for x in range(20) for client in (one, two)]
        assert sorted(job.index for job in jobs) == list(range(40))
        assert [job.result(WAIT_S) for job in jobs] == [x * x for x in range(20) for _ in range(2)]
        batch = two.submit_batch(square, range(5), name="n")
        assert one.batch("n").wait(WAIT_S).done == 5
        assert batch.wait(WAIT_S).done == 5


SEVERAL = """
number = int(sys.argv[1])
with batchd.Client(workers=2) as client:
    jobs = [client.submit(pow, number, x) for x in range(40)]
    assert [job.result(60) for job in jobs] == [number ** x for x in range(40)], "another's results"
    print(*(job.index for job in jobs))
"""


def run_several(programs: Programs, *, kills: int = 0) -> list[list[int]]:
    processes = [programs.start(SEVERAL, number) for number in (2, 3, 5)]
    for number in range(kills):
        until(partial(has_jobs, programs.journal, 20 * (number + 1)), "some were handed over")
        kill_supervisor(programs.journal)
    ended = [process.communicate(timeout=90) for process in processes]
    assert [err for _, err in ended if "Traceback" in err] == []
    return [list(map(int, out.split())) for out, _ in ended]


def has_jobs(folder: Path, wanted: int) -> bool:
    return size_of(folder) >= wanted


def size_of(folder: Path) -> int:
    found = list((folder / "batches").glob("[!.]*/data.mdb"))
    if not found:
        return 0
    journal = BatchJournal(found[0].parent)
    journal.close()
    return journal.facts.size


def test_several_processes_on_one_queue(programs: Programs) -> None:
    told = run_several(programs)
    assert sorted(index for indices in told for index in indices) == list(range(120))


@pytest.mark.fault
def test_a_killed_supervisor_of_several_processes(programs: Programs) -> None:
    told = run_several(programs, kills=2)
    assert sorted(index for indices in told for index in indices) == list(range(120))


@pytest.mark.fault
def test_results_that_are_waited_for_come_after_a_supervisors_death(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)
    with batchd.Client(desk.journal, workers=2) as one, batchd.Client(desk.journal, workers=2) as two:
        jobs = [
            client.submit(door.enter, (name, x)) for x in range(5) for name, client in (("one", one), ("two", two))
        ]
        until(lambda: len(door.came()) == 2, "two run")
        kill_supervisor(desk.journal)
        more = [one.submit(square, 7), two.submit(square, 8)]
        door.open()
        assert [job.result(WAIT_S) for job in jobs] == [(name, x) for x in range(5) for name in ("one", "two")]
        assert [job.result(WAIT_S) for job in more] == [49, 64]


def test_whoever_follows_the_queue_keeps_nobody_out(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)
    with batchd.Client(desk.journal, workers=1) as client:
        client.submit(door.enter, 0)
        client.close(at_once=True)
    with batchd.Client(desk.journal, workers=1) as one:
        following = threading.Thread(target=lambda: one.batch("jobs").wait(WAIT_S))
        following.start()
        until(lambda: len(door.came()) >= 1, "it runs")
        with batchd.Client(desk.journal, workers=1) as two:
            job = two.submit(square, 3)
            door.open()
            assert job.result(WAIT_S) == 9
        following.join(WAIT_S)


# --- Forks -------------------------------------------------------------------------------------------------------


FORKING = """
import warnings

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and newer warn of any fork beside threads.
is_client = sys.argv[1] == "client"
made = batchd.Client(workers=1) if is_client else batchd.Executor(1, name="n")
assert made.submit(pow, 2, 3).result() == 8
batch = made.submit_batch(abs, [-1], name="b") if is_client else None
child = os.fork()
if not child:
    refused = [lambda: made.submit(pow, 2, 4)]
    if is_client:
        refused += [lambda: made.submit_batch(abs, [1]), lambda: made.batch("b"), lambda: batch.add([1])]
        refused += [batch.wait, lambda: next(batch.results()), batch.seal, batch.cancel, batch.retry]
    for call in refused:
        try:
            call()
        except RuntimeError as error:
            note("refusals", error)
    if is_client:
        with batchd.Client(workers=1) as mine:
            note("mine", mine.submit(pow, 2, 5).result() + mine.batch("b").wait().done)
            mine.close()
    note("child", os.getpid())
    signal.pause()
while not notes("child"):
    nap(0.01)
note("parent", os.getpid())
os._exit(0)
"""


@pytest.mark.parametrize("kind", ["client", "executor"])
@pytest.mark.covers("C5")
def test_a_fork_is_refused_and_keeps_nothing_alive(programs: Programs, kind: str) -> None:
    """The child outlives its parent; the parent's supervisor does not."""
    process = programs.start(FORKING, kind)
    until(lambda: notes(programs.folder / "parent"), "the parent ends")
    process.wait(WAIT_S)
    child = int(notes(programs.folder / "child")[0])
    refusals = notes(programs.folder / "refusals")
    assert len(refusals) == (9 if kind == "client" else 1)
    parent = f"belongs to process {process.pid}, from which this process ({child}) was forked"
    assert [line for line in refusals if parent not in line] == []
    assert notes(programs.folder / "mine") == (["33"] if kind == "client" else [])
    until(lambda: not programs_supervisor(programs), "the supervisor is gone")
    assert not dead(child)
    os.kill(child, signal.SIGKILL)


def programs_supervisor(programs: Programs) -> bool:
    pid = int(holder_of(programs.journal).get("pid", 0))
    return bool(pid) and not dead(pid)
