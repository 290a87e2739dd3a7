"""Real workers: what a job does to its worker costs that job, is told exactly, and leaves nothing behind."""

import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.events import Phase, Position
from batchd.core.job import JobState
from batchd.edge.orphans import kill_tagged
from batchd.formats.report import Failure
from batchd.settings import VALUE_FILE_BYTES_MIN
from batchd.worker.main import EXIT_DESCRIPTORS, PROTOCOL_FD_MIN
from batchd.worker.recorder import POSITION, TRANSCRIPT, phase_word
from tests.bench import Bench, at_work, await_death, is_alive, key_spec, listening

GOOD = JobState.SUCCEEDED


def result_of(bench: Bench, *item: Any) -> Any:
    """Run one job and return its result."""
    ((_, state, value),) = bench.run(at_work(bench, [item]), 0, 1)
    assert state is GOOD, value
    return value


def failure_of(gone: ev.WorkerGone) -> Failure:
    return Failure.decode(gone.failure)


# --- Leases ----------------------------------------------------------------------------------------------------


def test_a_lease_gives_outcomes_in_order_and_its_end(bench: Bench) -> None:
    worker = at_work(bench, [("same", index) for index in range(5_000)])
    assert bench.run(worker, 10, 4_990) == [(index, GOOD, index) for index in range(10, 4_990)]
    assert bench.run(worker, 0, 10, lane=1) == [(index, GOOD, index) for index in range(10)]


def test_leases_that_wait_in_the_pipe_are_run_in_turn(bench: Bench) -> None:
    worker = at_work(bench, [("same", index) for index in range(100)])
    numbers = [bench.lease(worker, 10 * lane, 10 * lane + 10, lane=lane) for lane in range(10)]
    bench.await_event(ev.LeaseEnded, lambda event: event.lease == numbers[-1])
    assert [told.job for number in numbers for told in bench.told(number)] == list(range(100))


def test_a_lease_may_cross_segments_of_every_encoding(bench: Bench) -> None:
    items: list[Any] = [("same", index) for index in range(40_000)]
    worker = at_work(bench, [*items, ("same", [1])])
    assert [told.value for told in bench.run(worker, 39_000, 40_001)] == [*range(39_000, 40_000), [1]]


def test_a_job_of_a_millisecond_is_told_at_once(bench: Bench, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        worker = at_work(bench, [("work", 0.002, "first"), ("announce", str(tmp_path / "door"), 600)])
        number = bench.lease(worker, 0, 2)
        hear()
        bench.until(lambda: bench.told(number), "the first job is told while the second runs")
        assert bench.told(number) == [(0, GOOD, "first")]


def test_constant_arguments_are_given_to_every_job(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "power.py").write_text("def power(x, *, n=1):\n    return x ** n\n")
    bench.batch([2, 3], args={"n": 5})
    assert bench.add_key(key_spec(f"{tmp_path}/power.py:power")) == ""
    assert [told.value for told in bench.run(bench.start(), 0, 2)] == [32, 243]


def test_a_lease_that_is_cut_ends_where_it_was_told_to(bench: Bench, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        items = [("same", 0), ("announce", str(tmp_path / "door"), 0.1), *[("same", index) for index in range(2, 50)]]
        worker = at_work(bench, items)
        number = bench.lease(worker, 0, 50)
        hear()
        bench.pool.perform(c.CutLease(worker.number, number, 0, 10))
        ended = bench.await_event(ev.LeaseEnded)
        assert bench.await_event(ev.LeaseCut).stop == 10
        assert (ended.lease, ended.stop) == (number, 10)
        assert [told.job for told in bench.told(number)] == list(range(10))


def test_a_cut_below_the_running_job_stops_behind_it(bench: Bench, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        items = [("same", 0), ("same", 1), ("announce", str(tmp_path / "door"), 0.1), ("same", 3)]
        worker = at_work(bench, items)
        number = bench.lease(worker, 0, 4)
        hear()
        bench.pool.perform(c.CutLease(worker.number, number, 0, 0))
        assert bench.await_event(ev.LeaseCut).stop == 3
        assert bench.await_event(ev.LeaseEnded).stop == 3
        assert [told.job for told in bench.told(number)] == [0, 1, 2]


def test_a_lease_that_waits_can_be_taken_back_whole(bench: Bench, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        worker = at_work(bench, [("announce", str(tmp_path / "door"), 0.1), ("same", 1), ("same", 2)])
        bench.lease(worker, 0, 1)
        second = bench.lease(worker, 1, 3, lane=1)
        hear()
        bench.pool.perform(c.CutLease(worker.number, second, 1, 1))
        assert bench.await_event(ev.LeaseCut).stop == 1
        assert bench.await_event(ev.LeaseEnded, lambda event: event.lease == second).stop == 1
        assert bench.told(second) == []


def test_a_worker_that_is_stopped_finishes_and_leaves(bench: Bench) -> None:
    worker = at_work(bench, [("work", 0.05, index) for index in range(2)])
    number = bench.lease(worker, 0, 2)
    bench.pool.perform(c.StopWorker(worker.number))
    gone = bench.gone(worker)
    assert gone.cause == "exited with code 0 before finishing"
    assert [told.value for told in bench.told(number)] == [0, 1]
    assert gone.position == Position(number, 1, Phase.IDLE)


# --- Failures of jobs ------------------------------------------------------------------------------------------


@pytest.mark.covers("W5", "R1", "R2", "P14")
def test_every_bad_result_and_exception_costs_its_own_job(bench: Bench) -> None:
    bad = [
        (("leave_politely", 3), "SystemExit", "3"),
        (("leave_politely", 0), "SystemExit", "0"),
        (("interrupt",), "KeyboardInterrupt", ""),
        (("fail", "words"), "ValueError", "words"),
        (("fail_with_two",), "tests.jobs.TwoArguments", "1 and 2"),
        (("lock",), "TypeError", "cannot pickle '_thread.lock' object"),
        (
            ("unreadable",),
            "batchd.errors.ResultUnreadable",
            "could not unpickle the result: ValueError: cannot be read back",
        ),
        (("no_such_job",), "KeyError", "'no_such_job'"),
    ]
    items: list[Any] = [each for item, _, _ in bad for each in (item, ("same", "good"))]
    told = bench.run(at_work(bench, items), 0, len(items))
    assert [each.job for each in told] == list(range(len(items)))
    assert {each.value for each in told[1::2]} == {"good"}
    assert [(each.value.type, each.value.message) for each in told[::2]] == [(kind, text) for _, kind, text in bad]
    explained = [event for event in bench.events if isinstance(event, ev.CauseExplained)]
    assert {event.fingerprint for event in explained} == {each.value.fingerprint for each in told[::2]}
    texts = b"".join(event.text for event in explained).decode()
    assert 'tests/jobs.py", line' in texts
    assert "batchd/worker" not in texts.split("lock")[0], "frames of batchd itself are of no use to the user"


@pytest.mark.covers("I1")
def test_an_input_that_does_not_unpickle_fails_alone(bench: Bench) -> None:
    from tests.jobs import Unreadable

    told = bench.run(at_work(bench, [("same", [1]), ("same", Unreadable()), ("same", [2])]), 0, 3)
    assert [(each.state, each.value) for each in (told[0], told[2])] == [(GOOD, [1]), (GOOD, [2])]
    assert told[1].value.type == "batchd.errors.InputUnreadable"
    assert told[1].value.message == "could not unpickle the input: ValueError: cannot be read back"


def test_what_a_failing_job_printed_is_kept_with_it(bench: Bench) -> None:
    items = [
        ("say", "of job 0"),
        ("say", "no end", ""),
        ("say_and_fail", "mine", "from C\n"),
        ("say_and_fail", "last"),
    ]
    told = bench.run(at_work(bench, items), 0, 4)
    assert told[2].value.output == "mine\nMINE\nfrom C\n"
    assert told[3].value.output == "from C\nlast\nLAST\n"


def test_a_job_reads_nothing_from_its_input(bench: Bench) -> None:
    assert result_of(bench, "read_input") == ("", b"")


def test_a_job_knows_who_it_is(bench: Bench) -> None:
    worker = at_work(bench, [("who",)] * 6)
    assert [told.value for told in bench.run(worker, 2, 4)] == [("b", 2, 1), ("b", 3, 1)]
    assert [told.value for told in bench.run(worker, 4, 6, attempt=7, lane=3)] == [("b", 4, 7), ("b", 5, 7)]


# --- Deaths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "cause", "detail"),
    [
        (("segfault",), "killed by SIGSEGV", {"signal": signal.SIGSEGV}),
        (("kill_myself", int(signal.SIGKILL)), "killed by SIGKILL", {"signal": signal.SIGKILL}),
        (("kill_myself", int(signal.SIGTERM)), "killed by SIGTERM", {"signal": signal.SIGTERM}),
        (("kill_myself", int(signal.SIGABRT)), "killed by SIGABRT", {"signal": signal.SIGABRT}),
        (("leave", 0), "exited with code 0 before finishing", {"exit_code": 0}),
        (("leave", 7), "exited with code 7 before finishing", {"exit_code": 7}),
    ],
)
@pytest.mark.covers("W4", "W5", "P4")
def test_a_death_names_the_job_and_the_cause(bench: Bench, item: Any, cause: str, detail: dict[str, int]) -> None:
    worker = at_work(bench, [("work", 0.002, "good"), ("say", "soon"), item, ("same", "never")])
    pid = worker.pid
    number = bench.lease(worker, 0, 4)
    gone = bench.gone(worker)
    assert (gone.cause, gone.position) == (cause, Position(number, 2, Phase.RUNNING))
    assert (0, GOOD, "good") in bench.told(number)
    failure = failure_of(gone)
    assert (failure.type, failure.message) == ("JobCrashed", cause)
    assert failure.details.items() >= {"pid": pid, **detail}.items()
    assert failure.details["rss_peak_bytes"] > 0  # Nobody measured this worker.
    assert worker.number not in bench.pool.workers
    assert not [event for event in bench.events if isinstance(event, ev.LeaseEnded)]


@pytest.mark.covers("W10")
def test_a_job_that_closes_descriptors_is_found_when_it_runs_again(bench: Bench) -> None:
    """Fast jobs are reported in groups, so the first time nobody is blamed; then they are reported one by one."""
    worker = at_work(bench, [("work", 0.002), ("same", 1), ("close_descriptors",), ("same", 3)])
    bench.lease(worker, 0, 4)
    gone = bench.gone(worker)
    assert gone.position is not None
    assert (gone.cause, gone.position.phase) == ("closed descriptors it did not open", Phase.REPORTING)
    worker = bench.start()
    number = bench.lease(worker, 1, 4, attempt=2, reports_each=True)
    gone = bench.gone(worker)
    assert (gone.cause, gone.position) == ("closed descriptors it did not open", Position(number, 2, Phase.RUNNING))
    assert bench.told(number) == [(1, GOOD, 1)]
    assert failure_of(gone).details["exit_code"] == EXIT_DESCRIPTORS


@pytest.mark.covers("W4", "P27")
def test_a_segfault_leaves_its_python_stack(bench: Bench) -> None:
    worker = at_work(bench, [("segfault",)])
    bench.lease(worker, 0, 1)
    output = failure_of(bench.gone(worker)).output
    assert "Fatal Python error: Segmentation fault" in output
    assert re.search(r'File ".*tests/jobs\.py", line \d+ in segfault', output)


@pytest.mark.covers("P27")
def test_what_a_job_printed_before_its_death_is_kept(bench: Bench) -> None:
    worker = at_work(bench, [("say", "of another"), ("say_and_die", "last words")])
    bench.lease(worker, 0, 2)
    assert failure_of(bench.gone(worker)).output == "last words\n"


@pytest.mark.covers("W3")
def test_a_worker_that_is_killed_at_rest_blames_nobody(bench: Bench) -> None:
    worker = at_work(bench, [("same", 1), ("same", 2)])
    os.kill(worker.pid, signal.SIGKILL)
    assert bench.gone(worker).position is None
    worker = bench.start()
    bench.run(worker, 0, 2)
    os.kill(worker.pid, signal.SIGKILL)
    gone = bench.gone(worker)
    assert gone.position is not None
    assert (gone.cause, gone.position.index) == ("killed by SIGKILL", 1)
    assert gone.position.phase is not Phase.RUNNING


@pytest.mark.covers("P7", "P27")
def test_a_kill_that_was_ordered_gives_its_reason_and_a_stack(bench: Bench, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        worker = at_work(bench, [("announce", str(tmp_path / "door"), 600)])
        number = bench.lease(worker, 0, 1)
        hear()
        bench.pool.perform(c.KillWorker(worker.number, "timed out after 1.0 s", with_stack=True))
        gone = bench.gone(worker)
    assert (gone.cause, gone.position) == ("timed out after 1.0 s", Position(number, 0, Phase.RUNNING))
    failure = failure_of(gone)
    assert failure.type == "JobTimeout"
    assert re.search(r'File ".*tests/jobs\.py", line \d+ in announce', failure.output)


def test_a_worker_can_be_killed_before_it_is_born(bench: Bench) -> None:
    at_work(bench, [])
    bench.pool.perform(c.StartWorker(50, "k"))
    bench.pool.perform(c.KillWorker(50, ""))
    gone = bench.await_event(ev.WorkerGone)
    assert (gone.worker, gone.position) == (50, None)


@pytest.mark.covers("W10", "P12")
def test_of_a_dead_workers_files_those_go_that_it_did_not_tell_of(bench: Bench) -> None:
    large = ("same", bytes(VALUE_FILE_BYTES_MIN))
    worker = at_work(bench, [large] * 4 + [("kill_myself", signal.SIGKILL)])
    bench.lease(worker, 0, 2)
    values = bench.folder / "batches/b/values"
    names = [f"{worker.writer:016x}-{job}" for job in range(5)]
    (values / names[4]).touch()
    bench.lease(worker, 2, 5, lane=1, reports_each=True)
    bench.gone(worker)
    assert sorted(path.name for path in values.iterdir()) == names[:4]


def test_a_slot_that_says_something_old_costs_no_file_that_was_told_of(bench: Bench, tmp_path: Path) -> None:
    large = ("same", bytes(VALUE_FILE_BYTES_MIN))
    with listening(tmp_path / "door") as hear:
        worker = at_work(bench, [large, large, ("announce", str(tmp_path / "door"), 600)])
        bench.lease(worker, 0, 1)
        bench.lease(worker, 1, 3, lane=1, reports_each=True)
        hear()
        worker.slot.words[POSITION] = phase_word(Phase.RUNNING, 0)
        worker.slot.words[TRANSCRIPT] = 0
        os.kill(worker.pid, signal.SIGKILL)
        bench.gone(worker)
    assert len(list((bench.folder / "batches/b/values").iterdir())) == 2


def test_garbage_on_the_report_pipe_ends_the_worker(bench: Bench) -> None:
    worker = at_work(bench, [("work", 0.002, "good"), ("write_garbage",), ("work", 600)])
    number = bench.lease(worker, 0, 3)
    gone = bench.gone(worker)
    assert gone.cause.startswith("sent garbage on its report pipe (not a frame")
    assert bench.told(number)[:1] == [(0, GOOD, "good")]


@pytest.mark.parametrize("job", ["fork_and_return", "fork_and_raise"])
@pytest.mark.covers("W6")
def test_a_child_that_returns_from_the_job_is_silent(bench: Bench, job: str) -> None:
    worker = at_work(bench, [(job,), ("work", 0.002, "next"), (job,), ("pid",)])
    pid = worker.pid
    told = bench.run(worker, 0, 4)
    assert [each.value for each in told] == ["parent", "next", "parent", pid]


def test_a_child_of_a_job_may_print_and_ask_who_it_is(bench: Bench) -> None:
    worker = at_work(bench, [("same", 0), ("fork_and_talk",)])
    assert bench.run(worker, 0, 2)[1].value == ("index 1", 0)


def test_a_child_of_a_jobs_child_has_every_file_that_was_opened(bench: Bench) -> None:
    worker = at_work(bench, [("fork_a_child_that_forks", PROTOCOL_FD_MIN + 10)])
    assert bench.run(worker, 0, 1)[0].value == []


@pytest.mark.fault
@pytest.mark.covers("W7", "P8")
def test_a_daemon_of_a_dead_worker_is_gone_too(bench: Bench) -> None:
    worker = at_work(bench, [("leave_a_daemon",), ("leave", 1)])
    other = bench.start()
    number = bench.lease(worker, 0, 1)
    bench.await_event(ev.LeaseEnded)
    daemon = bench.told(number)[0].value
    assert is_alive(daemon)
    assert os.getsid(daemon) == daemon
    bench.lease(worker, 1, 2, lane=1)
    bench.gone(worker)
    await_death(daemon)
    assert is_alive(other.pid)  # Nobody else's processes are touched.


def test_of_workers_that_die_together_the_children_are_sought_once_and_before_anybody_is_told(bench: Bench) -> None:
    """All processes of the machine are looked through for that, and a job may run again as soon as it is told."""
    workers = [at_work(bench, [("leave_a_daemon",)] * 3), bench.start(), bench.start()]
    daemons = [bench.run(worker, at, at + 1)[0].value for at, worker in enumerate(workers)]
    told_before: list[int] = []

    def look(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code is kill_tagged.__code__:
            told_before.append(sum(isinstance(event, ev.WorkerGone) for event in bench.events))

    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    for worker in workers:
        await_death(worker.pid)
    sys.setprofile(look)
    try:
        for worker in workers:
            bench.gone(worker)
    finally:
        sys.setprofile(None)
    assert told_before == [0]
    for daemon in daemons:
        await_death(daemon)


@pytest.mark.fault
@pytest.mark.covers("S3", "P9")
def test_the_lifeline_ends_workers_whatever_holds_them(bench: Bench, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        busy = at_work(bench, [("start_a_child", str(tmp_path / "door"))])
        idle = bench.start()
        bench.lease(busy, 0, 1)
        pid, child = hear()
    assert pid == busy.pid
    template = bench.pool._templates["k"].process.pid
    os.close(bench.lifeline)  # As the kernel does when the supervisor dies.
    bench.lifeline = -1
    for each in (busy, idle):
        assert bench.gone(each).cause == "killed by SIGKILL"
    for each_pid in (child, template):
        await_death(each_pid)


# --- What a worker is like -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_fresh", [False, True])
@pytest.mark.covers("P22")
def test_a_worker_has_only_its_own_descriptors(bench: Bench, *, is_fresh: bool) -> None:
    # High numbers of the supervisor's must not pass the worker's broom.
    inflated = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(2 * PROTOCOL_FD_MIN)]
    try:
        worker = at_work(bench, [("descriptors",)], is_fresh=is_fresh)
        found: dict[int, str] = bench.run(worker, 0, 1)[0].value
    finally:
        for fd in inflated:
            os.close(fd)
    batch = str(bench.folder / "batches" / "b")
    protocol = {fd: name for fd, name in found.items() if fd > 2 and not name.startswith(batch)}
    assert (found[0], found[1], found[2]) == (os.devnull, *["/memfd:batchd-output (deleted)"] * 2)
    assert sorted(name.partition(":")[0] for name in protocol.values()) == ["/memfd", "pipe", "pipe", "pipe"]
    assert min(protocol) >= PROTOCOL_FD_MIN
    assert len({name for name in protocol.values() if name.startswith("pipe")}) == 3


def test_two_workers_of_a_template_draw_different_numbers(bench: Bench) -> None:
    first = at_work(bench, [("draw",)] * 2)
    second = bench.start()
    drawn = {bench.run(first, 0, 1)[0].value, bench.run(second, 1, 2)[0].value}
    assert len(drawn) == 2


@pytest.mark.covers("P23")
def test_blas_has_one_thread_unless_the_user_says_otherwise(bench: Bench) -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    worker = at_work(bench, [("environ", name) for name in names], environ={"OPENBLAS_NUM_THREADS": "3"})
    assert [told.value for told in bench.run(worker, 0, 4)] == ["1", "3", "1", "1"]


def test_a_worker_leads_a_session_and_is_born_to_the_supervisor(bench: Bench) -> None:
    worker = at_work(bench, [("pid",)])
    assert bench.run(worker, 0, 1)[0].value == worker.pid
    assert os.getsid(worker.pid) == os.getpgid(worker.pid) == worker.pid
    status = Path(f"/proc/{worker.pid}/status").read_text()
    assert re.search(rf"^PPid:\s+{os.getpid()}$", status, re.MULTILINE)


def test_fresh_interpreters_serve_as_well(bench: Bench) -> None:
    worker = at_work(bench, [("pid",), ("who",), ("leave", 5)], is_fresh=True)
    assert [told.value for told in bench.run(worker, 0, 2)] == [worker.pid, ("b", 1, 1)]
    number = bench.lease(worker, 2, 3, lane=1)
    gone = bench.gone(worker)
    assert (gone.cause, gone.position) == ("exited with code 5 before finishing", Position(number, 2, Phase.RUNNING))


def test_the_status_says_what_each_worker_runs(bench: Bench, tmp_path: Path) -> None:
    with listening(tmp_path / "door") as hear:
        worker = at_work(bench, [("same", 0), ("announce", str(tmp_path / "door"), 600)])
        idle = bench.start()
        bench.lease(worker, 0, 2)
        hear()
        bench.pool.observe({}, {})
        rows = {row["worker"]: row for row in bench.pool.status()}
    assert rows[idle.number]["job"] is None
    assert (rows[worker.number]["batch"], rows[worker.number]["job"], rows[worker.number]["pid"]) == (
        "b",
        1,
        worker.pid,
    )
    assert rows[worker.number]["since_s"] >= 0


def test_the_time_of_a_job_runs_while_it_does_and_not_for_ever(bench: Bench, tmp_path: Path) -> None:
    """Else an idle worker has run into each limit, and its supervisor looks 50 times a second whether it has."""
    with listening(tmp_path / "door") as hear:
        worker = at_work(bench, [("same", 0), ("announce", str(tmp_path / "door"), 600)])
        bench.run(worker, 0, 1, is_timed=True)
        idle_at_one = phase_word(Phase.IDLE, 0) | 1
        bench.until(lambda: worker.slot.words[POSITION] == idle_at_one, "it is idle")
        bench.pool.observe({}, {})
        bench.lease(worker, 1, 2, lane=1, is_timed=True)
        hear()
        bench.pool.observe({}, {})
    seen = [event for event in bench.events if isinstance(event, ev.WorkerObserved)]
    assert [event.position.phase for event in seen] == [Phase.IDLE, Phase.RUNNING]
    assert [event.running_s > 0 for event in seen] == [False, True]
