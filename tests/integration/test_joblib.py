"""batchd under joblib: what joblib's own process backend promises, and a crash that is told as what it was."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

import batchd
import batchd.joblib
from tests.commands import Desk, dead, until
from tests.contract.calls import WAIT_S, Door, Refuses, fail, kill_myself, nap, note, notes, square, survive_from

joblib = pytest.importorskip("joblib", reason="joblib is not installed: pip install joblib")
np = pytest.importorskip("numpy", reason="numpy is not installed: pip install numpy")
pytestmark = pytest.mark.usefixtures("registered")
ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def run(function: Callable[..., Any], items: Any, n_jobs: int = 2, **options: Any) -> Any:
    """Call the function with each item, in a `Parallel` call of two workers unless told otherwise."""
    options.setdefault("backend", "batchd")
    return joblib.Parallel(n_jobs=n_jobs, **options)(joblib.delayed(function)(item) for item in items)


def configured(**options: Any) -> Any:
    return joblib.parallel_config(backend="batchd", **{"n_jobs": 2, **options})


def pids() -> set[int]:
    return set(run(lambda _: os.getpid(), range(8), batch_size=1))


# --- Results -----------------------------------------------------------------------------------------------------


def test_results_come_in_order() -> None:
    assert run(square, range(50)) == [x * x for x in range(50)]


def test_many_short_calls_are_put_together() -> None:
    jobs = run(lambda _: batchd.current_job().index, range(3_000))
    assert len(set(jobs)) < 1_000
    assert len(jobs) == 3_000


def test_functions_without_a_name_and_their_surroundings_travel() -> None:
    offset = 3
    assert run(lambda x: x + offset, range(4)) == [3, 4, 5, 6]


def test_the_calls_run_beside_each_other_in_workers(door: Door) -> None:
    with configured():
        results: list[Any] = []
        caller = threading.Thread(target=lambda: results.append(run(door.enter, "ab")))
        caller.start()
        until(lambda: len(door.came()) == 2, "both run at once")
        door.open()
        caller.join(WAIT_S)
    assert results == [["a", "b"]]
    assert os.getpid() not in pids()


def test_the_backend_is_chosen_by_a_context_and_uses_all_cpus_unless_told() -> None:
    with joblib.parallel_config(backend="batchd"):
        parallel = joblib.Parallel()
        assert type(parallel._backend).__name__ == "BatchdBackend"
        assert parallel.n_jobs == -1
        assert parallel(joblib.delayed(square)(x) for x in range(3)) == [0, 1, 4]


def test_one_parallel_object_serves_several_calls() -> None:
    with joblib.Parallel(n_jobs=2, backend="batchd") as parallel:
        first = parallel(joblib.delayed(square)(x) for x in range(3))
        second = parallel(joblib.delayed(square)(x) for x in range(3, 6))
    assert (first, second) == ([0, 1, 4], [9, 16, 25])


@pytest.mark.parametrize(("return_as", "late"), [("generator", 1), ("generator_unordered", 0)])
def test_results_may_be_taken_as_they_come(return_as: str, late: int, door: Door) -> None:
    def work(x: int) -> int:
        return int(door.pass_through(x)) if x == late else x

    results = run(work, range(6), return_as=return_as, batch_size=1)
    first = next(results)
    door.open()
    assert first != late
    assert sorted([first, *results]) == list(range(6))


# --- How many ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [None, 1, 2, 5, -1, -2, -100])
def test_n_jobs_means_what_it_means_to_joblib(n_jobs: int | None) -> None:
    with joblib.parallel_config(backend="loky"):
        expected = joblib.effective_n_jobs(n_jobs)
    with joblib.parallel_config(backend="batchd"):
        assert joblib.effective_n_jobs(n_jobs) == expected


def test_no_jobs_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="n_jobs == 0"):
        run(square, range(3), n_jobs=0)


def test_one_job_runs_here() -> None:
    assert set(run(lambda _: os.getpid(), range(3), n_jobs=1)) == {os.getpid()}


# --- The workers -------------------------------------------------------------------------------------------------


def test_the_next_call_finds_the_workers_of_the_last() -> None:
    first = pids()
    assert pids() <= first | pids()
    assert len(first | pids()) <= 2
    batchd.joblib.release_workers()
    until(lambda: all(map(dead, first)), "the workers are gone")
    assert pids().isdisjoint(first)


def test_workers_nobody_calls_again_go_after_their_time() -> None:
    with configured(idle_worker_timeout=0.05):
        workers = set(run(lambda _: os.getpid(), range(8), backend=None))
    until(lambda: all(map(dead, workers)), "the workers are gone")


def test_another_folder_or_environment_means_other_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert set(run(lambda _: os.environ.get("COLOUR"), range(3))) == {None}
    monkeypatch.setenv("COLOUR", "mauve")
    monkeypatch.chdir(tmp_path)
    assert set(run(lambda _: (os.environ.get("COLOUR"), str(Path.cwd())), range(3))) == {("mauve", str(tmp_path))}


def test_the_threads_of_libraries_are_as_many_as_joblib_says(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)

    def threads(_: int) -> tuple[str | None, ...]:
        return tuple(os.environ.get(name) for name in names)

    expected = str(max(joblib.cpu_count() // 2, 1))
    assert set(run(threads, range(2))) == {(expected,) * 3}
    with configured(inner_max_num_threads=3):
        assert set(run(threads, range(2), backend=None)) == {("3",) * 3}


# --- Errors ------------------------------------------------------------------------------------------------------


def test_what_a_call_raises_is_raised() -> None:
    with pytest.raises(KeyError, match="mauve") as caught:
        joblib.Parallel(n_jobs=2, backend="batchd")(joblib.delayed(fail)(KeyError, "mauve") for _ in range(3))
    assert "# the line that failed" in str(caught.value.__cause__)
    assert run(square, range(3)) == [0, 1, 4]


def test_a_crash_is_told_as_one_and_the_next_call_works() -> None:
    with pytest.raises(batchd.JobCrashed, match="killed by SIGSEGV") as caught:
        run(kill_myself, [signal.SIGSEGV])
    assert caught.value.signal == signal.SIGSEGV
    assert run(square, range(3)) == [0, 1, 4]


def test_an_error_ends_what_runs(tmp_path: Path) -> None:
    door, path = Door(tmp_path), tmp_path / "pid"

    def work(x: int) -> None:
        if x == 1:
            door.pass_through()
            raise ValueError("no such colour")
        note(path, os.getpid())
        door.open()
        nap(600)

    began = monotonic()
    with pytest.raises(ValueError, match="no such colour"):
        run(work, range(2), batch_size=1)
    assert dead(int(notes(path)[0]))
    assert monotonic() - began < WAIT_S


def test_a_call_that_takes_longer_than_the_parallel_allows_ends_it(tmp_path: Path) -> None:
    def work(_: int) -> None:
        note(tmp_path / "pid", os.getpid())
        nap(600)

    run(square, range(4))  # Workers that are there already come within the time.
    with pytest.raises(multiprocessing.TimeoutError):
        run(work, range(2), timeout=2.0)
    assert notes(tmp_path / "pid")
    assert all(dead(int(pid)) for pid in notes(tmp_path / "pid"))


@pytest.mark.parametrize("at", [0, 40], ids=["at once", "in the executor's thread"])
def test_an_argument_that_does_not_pickle_is_an_error_not_a_hang(at: int) -> None:
    with pytest.raises(Exception, match="it refuses to travel"):
        run(id, (Refuses() if x == at else x for x in range(60)), batch_size=1)


@pytest.mark.parametrize("at", [0, 40], ids=["at once", "in the executor's thread"])
def test_an_input_that_fails_is_an_error_not_a_hang(at: int) -> None:
    def items() -> Iterator[int]:
        yield from range(at)
        raise ValueError("no more colours")

    with pytest.raises(ValueError, match="no more colours"):
        run(square, items(), batch_size=1)


def test_a_generator_that_is_given_up_ends_what_runs(tmp_path: Path) -> None:
    def work(x: int) -> int:
        if x:
            note(tmp_path / "pid", os.getpid())
            nap(600)
        return x

    results = run(work, range(4), return_as="generator", batch_size=1)
    assert next(results) == 0
    until(lambda: notes(tmp_path / "pid"), "another call runs")
    with pytest.warns(UserWarning, match="have been cancelled"):
        results.close()
    assert all(dead(int(pid)) for pid in notes(tmp_path / "pid"))


def test_generators_of_one_context_may_overlap() -> None:
    with configured():
        first = run(square, range(30), backend=None, return_as="generator", batch_size=1)
        assert next(first) == 0
        assert run(square, range(5), backend=None) == [0, 1, 4, 9, 16]
        assert list(first) == [x * x for x in range(1, 30)]


# --- Calls within calls ------------------------------------------------------------------------------------------


def test_calls_within_calls_run_in_threads_and_then_one_by_one() -> None:
    def inner(_: int) -> tuple[str, str]:
        below = joblib.Parallel(n_jobs=2)
        return threading.current_thread().name, type(below._backend).__name__

    def outer(_: int) -> tuple[str, list[tuple[str, str]]]:
        parallel = joblib.Parallel(n_jobs=2)
        return type(parallel._backend).__name__, parallel(joblib.delayed(inner)(x) for x in range(2))

    for kind, found in run(outer, range(4)):
        assert kind == "ThreadingBackend"
        assert all(name != "MainThread" for name, _ in found)
        assert {below for _, below in found} == {"SequentialBackend"}


@pytest.mark.parametrize("backend", ["batchd", "threading", "sequential"])
def test_a_call_may_name_the_backend_below_it(backend: str) -> None:
    def outer(x: int) -> list[int]:
        parallel = joblib.Parallel(n_jobs=2, backend=backend)
        found: list[int] = parallel(joblib.delayed(square)(each) for each in range(x))
        return found

    assert run(outer, range(1, 4)) == [[0], [0, 1], [0, 1, 4]]


def test_below_threads_no_more_workers_are_started() -> None:
    def below(_: int) -> set[int]:
        with pytest.warns(UserWarning, match="below threads"):
            return set(run(lambda _: os.getpid(), range(2)))

    found = joblib.Parallel(n_jobs=2, backend=_nested_threads())(joblib.delayed(below)(x) for x in range(1))
    assert found == [{os.getpid()}]


def _nested_threads() -> Any:
    return joblib.parallel.ThreadingBackend(nesting_level=1)


# --- Options -----------------------------------------------------------------------------------------------------


def test_with_a_name_the_calls_are_in_the_journal_one_job_each(desk: Desk) -> None:
    with configured(journal=desk.journal, name="nightly"):
        assert run(square, range(20), backend=None) == [x * x for x in range(20)]
        assert run(square, range(5), backend=None) == [0, 1, 4, 9, 16]
    told = json.loads(desk.run("ls", "--json").stdout)["batches"]
    assert [(batch["name"], batch["succeeded"]) for batch in told] == [("nightly", 25)]


def test_a_limit_is_for_each_call() -> None:
    with configured(timeout=1.0):
        assert run(square, range(40), backend=None) == [x * x for x in range(40)]
        with pytest.raises(batchd.JobTimeout, match="timed out"):
            run(nap, [600, 0.0], backend=None)


def test_calls_are_retried_when_asked(tmp_path: Path) -> None:
    with configured(retries=2):
        work = joblib.delayed(survive_from)(str(tmp_path / "attempts"), 3, fail, ValueError, "not yet")
        assert joblib.Parallel()([work]) == [3]
    assert notes(tmp_path / "attempts") == ["1", "2", "3"]


def test_each_worker_is_initialized(tmp_path: Path) -> None:
    with configured(initializer=note, initargs=(tmp_path / "came", "hello")):
        run(square, range(4), backend=None)
    assert set(notes(tmp_path / "came")) == {"hello"}


def test_an_option_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no option 'retry'; it has .*retries"):
        configured(retry=3)
    assert run(square, [3]) == [9]


# --- Arrays ------------------------------------------------------------------------------------------------------


def test_a_large_array_is_mapped_by_all_and_gone_afterwards(tmp_path: Path) -> None:
    array = np.arange(MIB // 4, dtype=np.float64).reshape(2, -1)

    def work(x: int) -> tuple[str, bool, float, list[str]]:
        base = array
        while not hasattr(base, "filename"):
            base = base.base
        files = [path.name for path in Path(base.filename).parent.iterdir()]
        return str(base.filename), array.flags.writeable, float(array[1, x]), files

    found = run(work, range(12), batch_size=1, temp_folder=str(tmp_path))
    assert len({name for name, *_ in found}) == 1
    assert Path(found[0][0]).is_relative_to(tmp_path)
    assert {len(files) for *_, files in found} == {1}
    assert [value for _, _, value, _ in found] == [float(array[1, x]) for x in range(12)]
    assert {writeable for _, writeable, *_ in found} == {False}
    assert not list(tmp_path.iterdir())


def test_files_of_arrays_that_are_done_with_do_not_gather(tmp_path: Path) -> None:
    def work(array: Any) -> int:
        assert type(array) is np.ndarray
        return len(list(tmp_path.glob("*/*")))

    arrays = (np.full(MIB // 8, x) for x in range(40))
    assert max(run(work, arrays, batch_size=1, temp_folder=str(tmp_path), max_nbytes="100K")) < 20


def test_arrays_are_not_shared_when_they_are_not_to_be(tmp_path: Path) -> None:
    array = np.zeros(MIB)
    for option in ("max_nbytes", "mmap_mode"):
        with configured(**{option: None}, temp_folder=str(tmp_path)):
            assert run(lambda _: array.flags.writeable, range(2), backend=None) == [True, True]
        assert not list(tmp_path.iterdir())


def test_what_workers_write_into_a_mapped_array_is_seen(tmp_path: Path) -> None:
    outcome = np.memmap(tmp_path / "out", dtype=np.int64, mode="w+", shape=(8, 3))

    def work(x: int, row: Any, column: Any) -> None:
        row[:] = x
        column[x] += 100

    call = joblib.delayed(work)
    joblib.Parallel(n_jobs=2, backend="batchd")(call(x, outcome[x], outcome[::1, 1]) for x in range(8))
    assert outcome.tolist() == [[x, x + 100, x] for x in range(8)]


@pytest.mark.parametrize(
    "part",
    [
        lambda a: a,
        lambda a: a[2:5],
        lambda a: a[::2, ::3],
        lambda a: a.T,
        lambda a: a[::-1, ::-2],
        lambda a: np.asarray(a)[3:, 1:],
        lambda a: a[0:0],
        lambda a: a.view(np.int32),
    ],
)
def test_every_view_of_a_mapped_array_arrives_as_it_is(part: Callable[[Any], Any], tmp_path: Path) -> None:
    array = np.memmap(tmp_path / "in", dtype=np.int64, mode="w+", offset=24, shape=(10, 20))
    array[:] = np.arange(200).reshape(10, 20)
    view = part(array)
    assert run(lambda _: view.tolist(), range(2)) == [view.tolist()] * 2


def test_a_private_copy_of_a_mapped_array_arrives_as_it_is_here(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(80))
    array = np.memmap(tmp_path / "in", dtype=np.int64, mode="c")
    array[:] = range(10)
    assert run(lambda _: array.tolist(), range(2)) == [list(range(10))] * 2


# --- What is left ------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys
import joblib, numpy
import batchd.joblib

batchd.joblib.register(make_default=True)
array = numpy.zeros(1 << 20)
print(*set(joblib.Parallel(n_jobs=2)(joblib.delayed(lambda x: os.getpid() + int(array[x]))(x) for x in range(8))))
sys.stdout.flush()
"""


GIVEN_UP = """
import time, warnings
warnings.simplefilter("ignore", UserWarning)
results = joblib.Parallel(n_jobs=2, return_as="generator")(joblib.delayed(time.sleep)(x and 600) for x in range(9))
next(results)
"""


@pytest.mark.parametrize(("end", "code"), [("", 0), (GIVEN_UP, 0), ("os.kill(os.getpid(), 9)", -9)])
def test_nothing_is_left_of_a_program_however_it_ends(end: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM + end],
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path / "tmp"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (code, "")
    workers = [int(pid) for pid in ended.stdout.split()]
    assert 1 <= len(workers) <= 2
    until(lambda: all(map(dead, workers)), "the workers are gone")
    until(lambda: not list((tmp_path / "tmp").iterdir()), "the throw-away journal is gone")
