"""Programs that are interrupted, killed, left early or fed too much: nothing is left behind and nothing piles up."""

import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import batchd
from batchd.client.throwaway import throwaway_folder
from batchd.edge.journal import BatchJournal
from batchd.formats import tables
from tests.commands import dead, until
from tests.contract.calls import notes
from tests.faces.programs import Programs

ENDLESS = """
def job(x):
    note("ran", os.getpid())
    return nap(0.01, x)

for x in batchd.map(job, itertools.count(), workers=2):
    note("got", x)
"""


def workers_of(programs: Programs) -> list[int]:
    return sorted(set(map(int, notes(programs.ran))))


def assert_nothing_is_left(programs: Programs) -> None:
    until(lambda: all(map(dead, workers_of(programs))), "the workers are gone")
    until(lambda: not programs.left_behind(), f"nothing is left behind: {programs.left_behind()}")


def has_got_some(programs: Programs) -> bool:
    return len(notes(programs.folder / "got")) >= 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_a_signal_ends_all_at_once(programs: Programs, number: signal.Signals) -> None:
    """As a terminal does, to the whole process group."""
    process = programs.start(ENDLESS)
    until(lambda: has_got_some(programs), "results come", process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == -number
    assert out == ""
    expected = "KeyboardInterrupt" if number is signal.SIGINT else ""
    assert (err.splitlines() or [""])[-1] == expected
    assert err.count("Traceback") == (1 if expected else 0)
    assert_nothing_is_left(programs)


def test_an_interrupt_while_nothing_comes(programs: Programs) -> None:
    """Waiting for a slow job, and before there is any worker."""
    process = programs.start(
        """
def job(x):
    note("ran", os.getpid())
    nap(60)

try:
    list(batchd.map(job, range(3), workers=1))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    )
    until(lambda: notes(programs.ran), "it runs", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")
    assert_nothing_is_left(programs)


@pytest.mark.parametrize(
    "end",
    ["", "next(iter(results))\nos._exit(0)", "sys.exit(0)", "del results", "results.close()", "kept = [results]"],
)
def test_an_iterator_that_is_left_leaves_nothing(programs: Programs, end: str) -> None:
    programs.told(
        f"""
def job(x):
    note("ran", os.getpid())
    return x

results = batchd.map(job, itertools.count(), workers=2)
for x in results:
    if x == 50:
        break
{end}
"""
    )
    assert_nothing_is_left(programs)


def test_a_thread_that_is_left_with_a_map_holds_nobody_up(programs: Programs) -> None:
    programs.told(
        """
import threading

def job(x):
    note("ran", os.getpid())
    return x

def run():
    for x in batchd.map(job, itertools.count(), workers=1):
        note("got", x)

threading.Thread(target=run, daemon=True).start()
while len(notes("got")) < 50:
    nap(0.01)
"""
    )
    assert_nothing_is_left(programs)


def test_a_map_goes_on_after_another_was_broken(programs: Programs) -> None:
    told = programs.told(
        """
def job(x):
    note("ran", os.getpid())
    return 1 // x

for n in range(3):
    try:
        list(batchd.map(job, [1, 0, 2], workers=1))
    except batchd.JobFailed as error:
        print(type(error.__cause__).__name__, error.index)
print(list(batchd.map(job, [1, 2], workers=1)))
"""
    )
    assert told == "ZeroDivisionError 1\n" * 3 + "[1, 0]\n"
    assert_nothing_is_left(programs)


@pytest.mark.fault
def test_a_supervisor_that_died_is_not_missed_and_leaves_nothing(programs: Programs) -> None:
    told = programs.told(
        """
from batchd.client.throwaway import throwaway_folder
from batchd.edge.folder import journal_id, recorder_path
from batchd.edge.lock import holder_of
from tests.bench import await_death

def job(x):
    note("ran", os.getpid())
    return x

for _ in range(3):
    assert list(batchd.map(job, range(10), workers=1)) == list(range(10))
    folder = throwaway_folder()
    pid = int(holder_of(folder)["pid"])
    os.kill(pid, signal.SIGKILL)
    await_death(pid)
    recorder = recorder_path(folder, journal_id(folder))
    assert recorder.exists()
    print(recorder)
"""
    ).split()
    assert len(told) == 3
    assert not any(Path(recorder).exists() for recorder in told)
    assert_nothing_is_left(programs)


# --- Bounded -----------------------------------------------------------------------------------------------------


def blob(size: int, _: int) -> bytes:
    return os.urandom(size)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("data.mdb"))


def test_the_throw_away_journal_stays_small() -> None:
    sizes: list[int] = []
    before = bytes_of(throwaway_folder())
    results = batchd.map(partial(blob, 1 << 17), range(1_600), workers=2, buffersize=40)
    for number, result in enumerate(results):
        assert len(result) == 1 << 17
        if number % 50 == 0:
            sizes.append(bytes_of(throwaway_folder()) - before)
    assert max(sizes) < 100 << 20  # Of 200 MiB that went through.


def test_the_throw_away_journal_stays_small_with_large_inputs() -> None:
    before = bytes_of(throwaway_folder())
    sizes: list[int] = []
    inputs = (bytes(1 << 20) for _ in range(300))
    for number, length in enumerate(batchd.map(len, inputs, workers=1, buffersize=40)):
        assert length == 1 << 20
        if number % 20 == 0:
            sizes.append(bytes_of(throwaway_folder()) - before)
    assert max(sizes) < 160 << 20  # Of 300 MiB that went through.


def test_the_throw_away_journal_forgets_small_results_as_well() -> None:
    before = bytes_of(throwaway_folder())
    sizes = [
        bytes_of(throwaway_folder()) - before
        for number, _ in enumerate(batchd.map(str, range(400_000), workers=2, buffersize=20_000))
        if number % 50_000 == 0
    ]
    assert max(sizes) < 4 << 20
    assert sizes[-1] <= 2 * max(sizes[:4])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_executor_forgets_the_functions_that_nobody_calls_any_more() -> None:
    """Which are as many as the calls, where each is a partial; one that is called again is there for any worker."""
    with batchd.Executor(1) as executor:
        functions = [partial(len, bytes(1 << 20) + bytes([number])) for number in range(60)]
        batches = throwaway_folder() / "batches"
        before = set(batches.glob("*"))
        for function in functions:
            assert executor.submit(function).result() == (1 << 20) + 1
        (folder,) = {*batches.glob("*")} - before
        journal = BatchJournal(folder)
        with journal.begin() as txn:
            assert txn.stat(db=journal.table(tables.FUNCTIONS))["entries"] < 40
        journal.close()
        assert bytes_of(folder) < 45 << 20  # Of 60 MiB that went through.
        assert executor.submit(functions[0]).result() == (1 << 20) + 1, "a worker that had it"
        with pytest.raises(BrokenProcessPool):
            executor.submit(die).result()
        assert executor.submit(functions[1]).result() == (1 << 20) + 1, "a worker that never had it"


@pytest.mark.covers("P17", "P18")
def test_memory_stays_flat_with_an_endless_input(programs: Programs) -> None:
    told = programs.told(
        """
import resource

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def job(x):
    return x

ordered = sys.argv[1] == "True"
results = batchd.map(job, itertools.count(), workers=2, ordered=ordered, buffersize=20_000)
for _ in itertools.islice(results, 40_000):
    pass
before = peak()
for _ in itertools.islice(results, 400_000):
    pass
print(peak() - before)
results.close()
""",
        True,
    )
    assert int(told) < 16  # MiB


def test_a_large_result_waits_until_it_is_taken(programs: Programs) -> None:
    """Results of a slow consumer lie on disk: the default window is bounded by bytes as well."""
    told = programs.told(
        """
results = batchd.map(lambda n: bytes(1 << 20), itertools.count(), workers=2)
for _ in itertools.islice(results, 100):
    pass
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line))
results.close()
"""
    )
    assert int(told) < 100 << 10  # KiB; what is mapped of the journal is the disk's.


# --- What may be between -----------------------------------------------------------------------------------------


def test_an_item_too_large_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = list(batchd.map(len, ["a", "b" * (40 << 20), "c"], workers=1, on_error="return"))
    assert found == [1, 40 << 20, 1]


def test_input_that_asks_for_results_of_the_same_map() -> None:
    """The classic of a crawler: results become input."""
    waiting = [1]
    found: list[int] = []

    def items() -> Any:
        while waiting:
            yield waiting.pop()

    for x in batchd.map(lambda n: n + 1, items(), workers=1):
        found.append(x)
        if x < 5:
            waiting.append(x)
    assert found[0] == 2  # It ends when the input says so, and does not hang.


def test_no_temporary_folder_is_a_clear_error(programs: Programs) -> None:
    programs.environ["TMPDIR"] = "/no/such/folder"
    assert programs.told("print(list(batchd.map(abs, [-1], workers=1)))") == "[1]\n"  # Python falls back to another.


def test_a_program_from_stdin_and_c(programs: Programs) -> None:
    text = "import batchd\nprint(list(batchd.map(lambda x: x + 1, range(3), workers=1)))"
    for arguments, given in ((["-c", text], None), (["-"], text)):
        ended = subprocess.run(
            [sys.executable, *arguments], input=given, env=programs.environ, cwd=programs.folder,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[1, 2, 3]\n", "")
