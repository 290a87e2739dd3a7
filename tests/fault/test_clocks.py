"""Clocks that jump, under every process of a run: nothing that is decided here depends on the time of day.

A few lines of C, preloaded, stand before the clocks (shifted_clock.c); what they add changes while the run goes on.
"""

import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic_ns, time

import pytest

from tests.commands import Desk, pause, squares, until
from tests.fault import tasks
from tests.fault.ledger import Tally

pytestmark = pytest.mark.fault
TASKS = Path(tasks.__file__)
SOURCE = TASKS.with_name("shifted_clock.c")
HOUR_NS = 3_600 * 10**9
JOBS = 12

Shift = Callable[[int, int], None]


@pytest.fixture
def shift(desk: Desk) -> Shift:
    """Put the clocks of everything the desk runs forward or back: (time of day, monotonic), in nanoseconds."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: nothing can be put before the clocks")
    library, file = desk.folder / "shifted_clock.so", desk.folder / "shift"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
    desk.environ |= {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(file)}

    def put(wall_ns: int, monotonic_ns: int = 0) -> None:
        with file.open("r+b") as out:
            out.write(struct.pack("=qq", wall_ns, monotonic_ns))

    file.write_bytes(bytes(16))
    return put


def run(name: str, jobs: int, *args: str) -> tuple[str, ...]:
    return ("run", f"{TASKS}:{name}", "--range", f"0:{jobs}", "--out", "out.jsonl", "--name", "b", "-j", "2", *args)


@pytest.mark.covers("T1", "P30")
def test_the_time_of_day_jumps_by_hours_and_nobody_is_late_or_early(desk: Desk, shift: Shift, tally: Tally) -> None:
    """Jobs of 0.2 s have a limit of 2 s, and one of them waits to be tried again."""
    process = desk.start(*run("tells_the_time", JOBS, "--timeout", "2s", "--retries", "1"))
    jumps = (HOUR_NS, -HOUR_NS, 24 * HOUR_NS, -24 * HOUR_NS, 0)
    for number, jump in enumerate(jumps, 1):
        desk.wait_for_jobs(2 * number, process)
        shift(jump, 0)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = desk.values()
    assert [square for square, _ in lines] == [index * index for index in range(JOBS)]
    told = [at - time() for _, at in lines]
    assert max(told) > 1_800, "no job saw the time of day jump forward"
    assert min(told) < -1_800, "no job saw it jump back"
    assert sorted(desk.attempts()) == sorted([*((index, 1) for index in range(JOBS)), (tasks.BAD, 2)])
    tally.injected(len(jumps))


@pytest.mark.covers("T1", "P30")
@pytest.mark.parametrize("jump", [-HOUR_NS, pytest.param(HOUR_NS, marks=pytest.mark.slow)])
def test_a_time_limit_is_kept_although_the_time_of_day_jumps(desk: Desk, shift: Shift, jump: int) -> None:
    process = desk.start(*run("waits_600", 1, "--timeout", "1s"))
    until(desk.marks.exists, "it runs", process)
    shift(jump, 0)
    process.communicate(timeout=30)
    assert process.returncode == 1
    (line,) = desk.results()
    assert line["error"]["message"].startswith("timed out after 1.")


@pytest.mark.covers("T2")
@pytest.mark.slow
@pytest.mark.parametrize("asleep_s", [2.0, 60.0])
def test_a_machine_that_slept_ends_nobody_for_it(desk: Desk, shift: Shift, asleep_s: float, tally: Tally) -> None:
    """All processes are stopped. When they go on, an hour has passed, and none of it for the monotonic clock."""
    process = desk.start(*run("takes_a_second", 6, "--timeout", "1.4s"))
    desk.wait_for_jobs(1, process)
    everybody = [process.pid, desk.supervisor(), *desk.processes()]
    began_ns = monotonic_ns()
    for pid in everybody:
        with suppress(ProcessLookupError):  # It ended since it was listed.
            os.kill(pid, signal.SIGSTOP)
    pause(asleep_s)
    shift(HOUR_NS, began_ns - monotonic_ns())
    for pid in everybody:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert desk.values() == squares(6)
    assert [attempt for _, attempt in desk.attempts()] == [1] * 6
    tally.saw(f"asleep for {asleep_s:g} s")
