"""A full disk under a throw-away journal: its program waits with a word, goes on, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from batchd.edge.folder import journal_id
from batchd.edge.orphans import tagged
from tests.bench import ROOT
from tests.commands import Desk, dead, until
from tests.disks import fill, full_disk

pytestmark = pytest.mark.fault

JOBS = 12
HEAD = "import sys, batchd; from tests.fault.tasks import wide_text_in_time as task\n"
MAP = "results = batchd.map(task, range(JOBS), workers=2)\n"
POOL = "pool = batchd.Executor(2); results = [pool.submit(task, n) for n in range(JOBS)]\n"
TELL = "for n, each in enumerate(results):\n    got = each if TEXT else each.result()\n"
TELL += "    assert got == f'{n:04}' * (1 << 20)\n    print(n, flush=True)\n"
PROGRAMS = {"map": HEAD + MAP + TELL, "pool": HEAD + POOL + TELL + "pool.shutdown()\n"}


class Program:
    """A program whose throw-away journal lies on a small disk."""

    def __init__(self, desk: Desk, disk: Path, kind: str) -> None:
        self.disk, self.kind = disk, kind
        self.go = desk.folder / "go"
        environ = {**desk.environ, "TMPDIR": str(disk), "GO": str(self.go), "PYTHONPATH": str(ROOT)}
        text = PROGRAMS[kind].replace("JOBS", str(JOBS)).replace("TEXT", str(kind == "map"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", text], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._desk = desk

    def fill_disk(self) -> None:
        """Wait until some jobs ran and fill the disk, which it says."""
        until(lambda: len(self._desk.attempts()) > 3, "some jobs ran", self.process)
        (self.folder,) = self.disk.glob("batchd-*")
        self._id = journal_id(self.folder)
        self.filler = fill(self.disk)
        self.go.touch()
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        assert full_disk(self.folder).match(self.said)

    def ended(self) -> tuple[int, str, str]:
        """Wait for the end of the program and of all it started; return exit code, output and errors."""
        out, err = self.process.communicate(timeout=60)
        until(lambda: all(map(dead, tagged(self._id))), "no worker is left")
        until(lambda: list(self.disk.iterdir()) in ([], [self.filler]), "nothing is left on the disk")
        return self.process.returncode, out, err


@pytest.fixture(params=["map", "pool"])
def program(desk: Desk, small_disk: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    made = Program(desk, small_disk, request.param)
    try:
        made.fill_disk()
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


@pytest.mark.covers("D1", "J8")
def test_a_program_waits_for_space_with_a_word_and_goes_on(program: Program, desk: Desk) -> None:
    assert list(program.folder.glob("batches/*/values/*")), "no value had a file of its own"
    program.filler.unlink()
    code, out, err = program.ended()
    assert (code, out.split()) == (0, [str(number) for number in range(JOBS)]), err
    told = err.splitlines()  # Where commits are slow it may become full once more, before results are forgotten.
    assert told[::2] == ["going on"] * (len(told) // 2 + 1), err
    assert all(line.startswith("disk full: paused until ") for line in told[1::2]), err
    assert sorted(desk.attempts()) == [(number, 1) for number in range(JOBS)], "something ran twice"


@pytest.mark.covers("D1")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_program_that_ends_while_the_disk_is_full_leaves_nothing(program: Program, number: int) -> None:
    """An executor's pending calls are done at the exit, as ever: who does not want them says so again."""
    process, err = program.process, ""
    os.kill(process.pid, number)
    if number == signal.SIGINT and program.kind == "pool":
        assert process.stderr is not None
        while not err.endswith("KeyboardInterrupt\n"):
            line = process.stderr.readline()
            assert line, f"it ended: {err}"
            err += line
        for _ in range(10):  # One that comes before the exit has begun to wait may be lost in what Python ends first.
            os.kill(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
                break
    code, _, rest = program.ended()
    assert code in {-number, 1}
    assert ("KeyboardInterrupt" in err + rest) == (number == signal.SIGINT)
