"""`Batch`: given in pieces, followed while it runs, steered, found again, continued by whoever comes next."""

import gc
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import batchd
from batchd.door import AttachedDoor
from batchd.edge.lock import holder_of
from batchd.errors import BatchNotFound, CodeChanged, InputChanged, UsageError
from batchd.formats.segment import input_blocks
from tests.bench import await_death
from tests.commands import Desk, until
from tests.contract.calls import WAIT_S, Door, nap, note, notes, square
from tests.faces.jobs import enter_odd, fail_until, half
from tests.faces.programs import Programs

# --- Given and done ----------------------------------------------------------------------------------------------


def test_a_batch_is_given_at_once(client: batchd.Client) -> None:
    batch = client.submit_batch(square, range(1_000), name="n")
    assert (batch.added, batch.skipped, batch.name) == (1_000, 0, "n")
    standing = batch.wait(WAIT_S)
    assert standing == (1_000, 1_000, 1_000, 0, 0, "finished", "")
    assert list(batch.results()) == [x * x for x in range(1_000)]
    assert sorted(batch.results(ordered=False)) == [x * x for x in range(1_000)]
    assert batch.failures() == []
    assert batch.progress() == standing


def test_a_batch_is_given_in_pieces(client: batchd.Client, ran: str) -> None:
    batch = client.submit_batch(square, name="n", seal=False)
    assert batch.progress().state == "open"
    for start in range(0, 100, 20):
        assert batch.add(range(start, start + 20)) == 20
        assert batch.progress().size == start + 20
        assert batch.wait(WAIT_S).done == start + 20  # What was given so far.
        assert len(list(batch.results())) == start + 20
    assert batch.progress().state == "open"
    batch.seal()
    assert batch.progress().state == "finished"
    assert (batch.added, list(batch.results())) == (100, [x * x for x in range(100)])


def test_a_batch_that_was_cancelled_takes_no_more(client: batchd.Client) -> None:
    batch = client.submit_batch(square, range(3), seal=False)
    assert batch.wait(WAIT_S).done == 3
    batch.cancel("stop")
    words = rf"{batch.id} was cancelled and takes no more jobs: `batchd retry {batch.id} --cancelled`"
    with pytest.raises(UsageError, match=words):
        batch.add([3])
    late = AttachedDoor(batch._run())  # Cancelled when its jobs were on their way.
    late.submit(b"".join(block for _, block in input_blocks([3])))
    with pytest.raises(UsageError, match=words):
        late.wait()
    assert (batch.added, batch.progress().size) == (3, 3)
    batch.retry(cancelled=True)
    assert (batch.add([3]), batch.wait(WAIT_S).size, list(batch.results())) == (1, 4, [0, 1, 4, 9])


def test_batches_that_are_done_cost_a_client_nothing(client: batchd.Client) -> None:
    """They are left, with their threads, files and places in the supervisor, and taken up by whoever adds to them."""

    def held() -> tuple[int, int]:
        return threading.active_count(), sum(1 for _ in Path("/proc/self/fd").iterdir())

    assert client.submit(square, 2).result(WAIT_S) == 4
    before = held()
    plain = [client.submit_batch(square, range(3)) for _ in range(5)]
    keyed = client.submit_batch(half, [2, 4], key=str, name="keyed")
    assert {batch.wait(WAIT_S).state for batch in (*plain, keyed)} == {"finished"}
    until(lambda: held() == before, "all are left")
    assert [list(batch.results()) for batch in plain] == [[0, 1, 4]] * 5
    assert (plain[0].add([3]), plain[0].wait(WAIT_S).done, list(plain[0].results())) == (1, 4, [0, 1, 4, 9])
    assert (keyed.add([4, 6]), keyed.wait(WAIT_S).done, list(keyed.results())) == (1, 3, [1, 2, 3])
    assert held() != before, "what is open stays"
    plain[0].seal()
    keyed.seal()
    until(lambda: held() == before, "all are left again")
    plain = []
    gc.collect()
    assert list(client._batches) == [keyed]


def test_a_sealed_batch_is_opened_by_more(client: batchd.Client) -> None:
    batch = client.submit_batch(square, range(3), name="n")
    assert batch.wait(WAIT_S).state == "finished"
    assert batch.add([3, 4]) == 2
    assert batch.wait(WAIT_S)[:2] == (5, 5)
    batch.seal()
    assert batch.progress().state == "finished"


def test_an_empty_batch(client: batchd.Client) -> None:
    batch = client.submit_batch(square, [], name="n")
    assert (batch.wait(WAIT_S).state, list(batch.results())) == ("finished", [])


def test_an_input_that_breaks_leaves_what_came_before(client: batchd.Client) -> None:
    def broken() -> Iterator[int]:
        yield from range(3)
        nap(0.01)
        yield 3
        raise LookupError("the input broke")

    batch = client.submit_batch(square, name="n", seal=False)
    with pytest.raises(LookupError, match="the input broke"):
        batch.add(broken())
    assert batch.add([7]) == 1
    found = list(batch.results())
    assert found == [x * x for x in range(len(found) - 1)] + [49]


def test_batches_without_a_name_are_each_their_own(client: batchd.Client) -> None:
    one, two = client.submit_batch(square, [1]), client.submit_batch(square, [2])
    assert one.id != two.id
    assert (list(one.results()), list(two.results())) == ([1], [4])


def test_large_input_flows(client: batchd.Client) -> None:
    batch = client.submit_batch(len, (bytes(1 << 20) for _ in range(40)), name="n")
    assert list(batch.results()) == [1 << 20] * 40


# --- While it runs -----------------------------------------------------------------------------------------------


def test_waiting_may_end_early(client: batchd.Client, tmp_path: Path) -> None:
    door = Door(tmp_path)
    batch = client.submit_batch(door.pass_through, [1], name="n")
    began = monotonic()
    with pytest.raises(TimeoutError, match=r"is not done after 0\.2 s"):
        batch.wait(0.2)
    assert 0.2 <= monotonic() - began < 5
    with pytest.raises(TimeoutError):
        batch.wait(0)
    door.open()
    assert batch.wait(WAIT_S).done == 1


def test_results_come_while_it_runs(client: batchd.Client, tmp_path: Path) -> None:
    door = Door(tmp_path)
    batch = client.submit_batch(partial(enter_odd, door), [0, 2, 1, 4, 6], name="n", workers=2)
    ordered, any_order = batch.results(), batch.results(ordered=False)
    assert [next(ordered), next(ordered)] == [0, 2]
    assert sorted(next(any_order) for _ in range(4)) == [0, 2, 4, 6]
    assert batch.progress().state == "sealed"
    door.open()
    assert (list(ordered), list(any_order)) == ([1, 4, 6], [1])


def test_waiting_for_a_gap_costs_nothing(client: batchd.Client, tmp_path: Path) -> None:
    door = Door(tmp_path)
    batch = client.submit_batch(partial(enter_odd, door), [1, *range(0, 200, 2)], name="n", workers=2)
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.extend(batch.results()))
    reader.start()
    until(lambda: batch.progress().done == 100, "all but the first are done")
    before = os.times()
    nap(0.5)
    used = os.times()
    assert (used.user + used.system) - (before.user + before.system) < 0.3
    assert found == []
    door.open()
    reader.join(WAIT_S)
    assert found == [1, *range(0, 200, 2)]


def test_many_threads_may_use_one_batch(client: batchd.Client) -> None:
    client.submit_batch(square, range(200), name="n").close()
    batch = client.batch("n")
    told: list[Any] = []

    def follow() -> None:
        told.append(batch.wait(WAIT_S).done)
        told.append(len(list(batch.results())))

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert told == [200] * 8


# --- Failures ----------------------------------------------------------------------------------------------------


def test_failures_are_told_in_groups(client: batchd.Client) -> None:
    batch = client.submit_batch(half, range(52), name="n", keep_going=True)
    assert batch.wait(WAIT_S)[2:4] == (26, 26)
    groups = batch.failures()
    assert sum(group.count for group in groups) == 26
    assert "odd" in groups[0].message
    results = batch.results()
    assert next(results) == 0
    with pytest.raises(batchd.JobFailed) as caught:
        next(results)
    assert (caught.value.index, caught.value.batch) == (1, batch.id)
    assert isinstance(caught.value.__cause__, ValueError)
    assert list(batch.results(on_error="skip")) == list(range(26))
    returned = list(batch.results(on_error="return"))
    assert [type(x) for x in returned[1::2]] == [batchd.JobFailed] * 26


def test_what_failed_is_run_again(client: batchd.Client, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    batch = client.submit_batch(partial(fail_until, str(mended)), range(10), name="n", keep_going=True)
    assert batch.wait(WAIT_S)[2:4] == (5, 5)
    mended.touch()
    assert batch.retry() == 5
    assert batch.wait(WAIT_S)[2:4] == (10, 0)
    assert list(batch.results()) == list(range(0, 100, 10))
    assert batch.retry() == 0


def test_results_wait_for_what_is_run_again(client: batchd.Client, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    batch = client.submit_batch(partial(fail_until, str(mended)), range(10), name="n", keep_going=True)
    assert batch.wait(WAIT_S).failed == 5
    mended.touch()
    batch.retry()
    assert list(batch.results()) == list(range(0, 100, 10))
    assert list(batch.results(ordered=False)) == list(range(0, 100, 10))


def test_retries_and_limits_are_those_of_the_batch(client: batchd.Client, ran: str) -> None:
    def third_time(x: int) -> int:
        note(ran, x)
        if len(notes(ran)) < 3:
            raise ValueError("not yet")
        return x

    assert list(client.submit_batch(third_time, [7], name="n", retries=2).results()) == [7]
    slow = client.submit_batch(nap, [60], name="t", timeout=0.2)
    with pytest.raises(batchd.JobTimeout):
        list(slow.results())


def test_a_job_of_a_batch_or_a_map_may_take_so_much_memory(client: batchd.Client, tmp_path: Path) -> None:
    def take(mib: int) -> int:
        taken = bytearray(mib << 20)
        nap(60 if mib else 0)
        return len(taken)

    hungry = client.submit_batch(take, [0, 200], memory_per_job="100M")
    told = list(hungry.results(on_error="return"))
    assert told[0] == 0
    assert isinstance(told[1], batchd.JobOverMemory)
    mapped: list[Any] = list(batchd.map(take, [200], workers=1, memory_per_job=100 << 20, on_error="return"))
    assert isinstance(mapped[0], batchd.JobOverMemory)


@pytest.mark.parametrize(
    "options", [{"workers": -1}, {"retries": -1}, {"timeout": 0}, {"crashes_max": 0}, {"memory_per_job": 1}]
)
def test_options_that_make_no_sense_are_refused(client: batchd.Client, options: Any) -> None:
    with pytest.raises(UsageError):
        client.submit_batch(square, [1], **options)


# --- Cancelling --------------------------------------------------------------------------------------------------


def test_a_batch_may_be_given_up(client: batchd.Client, tmp_path: Path) -> None:
    door = Door(tmp_path)
    batch = client.submit_batch(partial(enter_odd, door), [0, *range(1, 20, 2)], name="n", workers=1)
    until(door.came, "the first waits")
    batch.cancel("not wanted")
    standing = batch.wait(WAIT_S)
    assert (standing.state, standing.reason, standing.cancelled) == ("cancelled", "not wanted", 10)
    assert list(batch.results(on_error="skip")) == [0]
    with pytest.raises(batchd.JobCancelled):
        list(batch.results())
    door.open()
    assert batch.retry(cancelled=True) == 10
    assert batch.wait(WAIT_S).succeeded == 11


def test_what_ran_when_its_batch_was_given_up_was_cancelled(
    client: batchd.Client, desk: Desk, tmp_path: Path
) -> None:
    """And did not crash, whatever it was that ended its worker."""
    door = Door(tmp_path)
    batch = client.submit_batch(door.enter, range(3), name="n", workers=1)
    until(door.came, "the first runs")
    batch.cancel("no more")
    assert batch.wait(WAIT_S).cancelled == 3
    first, *others = batch.results(on_error="return")
    assert [type(error) for error in (first, *others)] == [batchd.JobCancelled] * 3
    assert str(first) == f"job {batch.id}:0, attempt 1: cancelled while it ran"
    assert str(others[0]) == f"job {batch.id}:1: cancelled"
    assert batch.failures() == []
    told = [json.loads(line) for line in desk.run("results", "n").stdout.splitlines()]
    assert [line["state"] for line in told] == ["cancelled"] * 3
    assert [line["error"]["type"] for line in told] == ["Cancelled"] * 3


def test_a_batch_that_nobody_runs_may_be_given_up(client: batchd.Client) -> None:
    client.submit_batch(square, range(3), name="n", seal=False).close()
    batch = client.batch("n")
    batch.cancel()
    assert batch.wait(WAIT_S).state == "cancelled"


# --- Going on ----------------------------------------------------------------------------------------------------


def test_the_same_batch_again_in_one_client(client: batchd.Client, ran: str) -> None:
    def noted(x: int) -> int:
        note(ran, x)
        return x

    first = client.submit_batch(noted, range(5), name="n")
    second = client.submit_batch(noted, range(8), name="n")
    assert (second.added, second.skipped) == (3, 5)
    assert list(second.results()) == list(range(8))
    assert first.wait(WAIT_S).done == 8
    assert sorted(map(int, notes(ran))) == list(range(8))


def test_the_same_batch_again_is_held_to_its_input_and_code(client: batchd.Client) -> None:
    client.submit_batch(square, range(5), name="n").wait(WAIT_S)
    with pytest.raises(InputChanged, match="item 1 "):
        client.submit_batch(square, [0, 2, 3], name="n")
    with pytest.raises(CodeChanged):
        client.submit_batch(half, range(5), name="n")
    again = client.submit_batch(half, [*range(5), 6], name="n", accept_code=True)
    assert list(again.results()) == [0, 1, 4, 9, 16, 3]


def test_a_batch_is_found_by_name_id_and_last(client: batchd.Client) -> None:
    made = client.submit_batch(square, range(3), name="n")
    made.wait(WAIT_S)
    for name in ("n", made.id, made.id[:5], "last"):
        assert client.batch(name).id == made.id
    with pytest.raises(BatchNotFound):
        client.batch("no such batch")
    with pytest.raises(BatchNotFound):
        client.job("no such batch:0")
    with pytest.raises(BatchNotFound, match="no job 3"):
        client.job("n:3")
    with pytest.raises(UsageError, match="batch:index"):
        client.job("n")
    assert client.job("n:2") == (f"{made.id}:2", "succeeded", 4)


def test_a_finished_batch_is_looked_at_without_running_anything(desk: Desk) -> None:
    with batchd.Client(desk.journal) as client:
        client.submit_batch(square, range(3), name="n").wait(WAIT_S)
    until(lambda: not desk.supervisor(), "the supervisor is gone")
    with batchd.Client(desk.journal) as client:
        batch = client.batch("n")
        assert batch.wait(WAIT_S).state == "finished"
        assert (list(batch.results()), batch.failures(), batch.name) == ([0, 1, 4], [], "n")
        assert client.job("n:1").value == 1
        assert [(info.name, info.state, info.size, info.done) for info in client.batches()] == [
            ("n", "finished", 3, 3)
        ]
    assert not desk.supervisor()


def test_what_another_client_left_is_brought_to_its_end(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)
    with batchd.Client(desk.journal, workers=1) as client:
        client.submit_batch(partial(enter_odd, door), range(1, 9), name="n")
        until(door.came, "the first waits")
        client.close(at_once=True)
    door.open()
    with batchd.Client(desk.journal) as client:
        assert client.batch("n").wait(WAIT_S).succeeded == 8
        assert list(client.batch("n").results()) == list(range(1, 9))


def test_what_another_process_runs_is_followed(programs: Programs, tmp_path: Path) -> None:
    door = Door(tmp_path)
    process = programs.start(
        """
from tests.contract.calls import Door
door = Door(Path.cwd())
with batchd.Client() as client:
    print(client.submit_batch(door.enter, range(3), name="n", workers=1).wait().done)
"""
    )
    until(door.came, "the first waits", process)
    with batchd.Client(programs.journal) as client:
        batch = client.batch("n")
        with pytest.raises(TimeoutError):
            batch.wait(0.2)
        door.open()
        assert batch.wait(WAIT_S).done == 3
        assert list(batch.results()) == [0, 1, 2]
    assert process.communicate(timeout=30) == ("3\n", "")


def test_what_failed_is_run_again_by_the_process_that_has_the_batch(programs: Programs) -> None:
    """What was asked for is on disk: it is not told as refused."""
    door, mended = Door(programs.folder), programs.folder / "mended"
    process = programs.start(
        """
from functools import partial
from tests.contract.calls import Door
from tests.faces.jobs import fail_until
with batchd.Client(workers=1) as client:
    job = partial(fail_until, str(Path("mended").absolute()))
    client.submit_batch(job, range(4), name="n", seal=False, keep_going=True).wait()
    Door(Path.cwd()).enter()
"""
    )
    until(door.came, "all are done", process)
    mended.touch()
    with batchd.Client(programs.journal) as client:
        batch = client.batch("n")
        assert batch.retry() == 2
        assert batch.wait(WAIT_S)[2:4] == (4, 0)
        door.open()
        assert process.communicate(timeout=WAIT_S) == ("", "")


# --- Deaths ------------------------------------------------------------------------------------------------------

ADDING = """
def job(x):
    note("ran", x)
    return x

with batchd.Client(workers=2) as client:
    batch = client.submit_batch(job, name="n", seal=False)
    for start in itertools.count(0, 10):
        batch.add(range(start, start + 10))
        note("told", start + 10)
"""


@pytest.mark.fault
def test_a_client_that_dies_in_the_middle_of_adding(programs: Programs) -> None:
    process = programs.start(ADDING)
    until(lambda: len(notes(programs.folder / "told")) >= 5, "some were added", process)
    process.kill()
    process.communicate()
    told = int(notes(programs.folder / "told")[-1])
    with batchd.Client(programs.journal, workers=2) as client:
        batch = client.batch("n")
        assert batch.add([]) == 0  # Behind what the dead one had sent and was not told of.
        standing = batch.progress()
        assert standing.state == "open"
        assert told <= standing.size
        assert batch.add(range(standing.size, standing.size + 5)) == 5
        batch.seal()
        assert batch.wait(WAIT_S) == (standing.size + 5, standing.size + 5, standing.size + 5, 0, 0, "finished", "")
        assert list(batch.results()) == list(range(standing.size + 5))


@pytest.mark.fault
def test_when_the_process_that_ran_it_dies_whoever_waits_takes_over(programs: Programs) -> None:
    process = programs.start(
        """
def job(x):
    note("ran", x)
    return nap(0.01, x)

with batchd.Client(workers=1) as client:
    print(client.submit_batch(job, range(150), name="n").wait())
"""
    )
    until(lambda: len(notes(programs.ran)) > 20, "it runs", process)
    with batchd.Client(programs.journal, workers=1) as client:
        batch = client.batch("n")
        threading.Timer(0.2, process.kill).start()
        assert batch.wait(WAIT_S).succeeded == 150
    assert sum(times - 1 for times in Counter(notes(programs.ran)).values()) <= 3
    process.communicate()


@pytest.mark.fault
def test_a_killed_supervisor_is_outlived(client: batchd.Client, desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)
    batch = client.submit_batch(partial(enter_odd, door), range(40), name="n", seal=False)
    until(door.came, "the first waits")
    for start in (40, 80):
        pid = int(holder_of(desk.journal)["pid"])
        os.kill(pid, signal.SIGKILL)
        await_death(pid)
        assert batch.add(range(start, start + 40)) == 40
    door.open()
    batch.seal()
    assert list(batch.results()) == list(range(120))
    assert batch.wait(WAIT_S).state == "finished"
