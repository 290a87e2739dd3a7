"""`batchd run` in the foreground of a terminal, where Ctrl-C is typed: the kernel signals whoever is in its group."""

import codecs
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.commands import Desk, dead, summary_of, until

CTRL_C = b"\x03"
JOBS = 2
"""That run at once, until somebody lets them go on."""


class Terminal:
    """A terminal with one command in its foreground, which leads its session."""

    def __init__(self, desk: Desk, *args: str) -> None:
        self._keyboard, device = os.openpty()
        self._screen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # What is read may end within a character.
        os.set_blocking(self._keyboard, False)
        # Whoever leads a session and opens a terminal that is nobody's has it, and is in its foreground.
        exec_there = 'exec "$@" <"$0" >"$0" 2>&1'
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", exec_there, os.ttyname(device), sys.executable, "-m", "batchd", *args],
            env=desk.environ,
            cwd=desk.folder,
            text=True,
            start_new_session=True,
        )
        self._device = device

    def await_foreground(self) -> None:
        """Wait until the command has the terminal, which nobody else holds open then."""
        until(lambda: os.tcgetpgrp(self._keyboard) == self.process.pid, "it is in the foreground", self.process)
        os.close(self._device)

    def type(self, keys: bytes) -> None:
        os.write(self._keyboard, keys)

    def screen(self) -> str:
        """Return all that was written to it so far."""
        with suppress(BlockingIOError, OSError):  # The latter when nobody has it open any more.
            while said := os.read(self._keyboard, 1 << 16):
                self._screen += self._decoder.decode(said)
        return self._screen

    def wait_for(self, words: str) -> None:
        until(lambda: words in self.screen(), f"it says {words!r}", self.process)

    def end(self) -> int:
        """Wait until the command has ended, and return its exit code."""

        def is_over() -> bool:
            self.screen()  # Who is not read from waits.
            return self.process.poll() is not None

        until(is_over, "it ends")
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._keyboard)


@pytest.fixture
def terminal(desk: Desk) -> Iterator[Terminal]:
    """Give a terminal where as many jobs run as there are workers, and more wait."""
    made = Terminal(desk, "run", desk.task("talks"), "--range", "0:20", "-j", f"{JOBS}", "--name", "b")
    try:
        made.await_foreground()
        until(lambda: made.screen() and len(desk.attempts()) == JOBS, "the jobs run", made.process)
        yield made
    finally:
        made.close()


def heard_by_the_supervisor(desk: Desk) -> str:
    """Return what a supervisor wrote down that was asked to stop by a signal, '' if none came."""
    log = (desk.journal / "supervisor.log").read_text()
    return "".join(line for line in log.splitlines() if "asked to stop" in line)


@pytest.mark.covers("P24")
def test_ctrl_c_drains_once_and_reaches_the_client_alone(desk: Desk, terminal: Terminal) -> None:
    supervisor, workers = desk.supervisor(), desk.workers()
    assert len(workers) == JOBS
    terminal.type(CTRL_C)
    terminal.wait_for("stopping: running jobs may finish; again to end them")
    assert desk.supervisor() == supervisor
    assert desk.workers() == workers
    (desk.folder / "go").touch()
    assert terminal.end() == 4
    assert terminal.screen().count("stopping:") == 1
    assert "ending running jobs" not in terminal.screen()
    assert "run the same command again" in terminal.screen()
    assert not heard_by_the_supervisor(desk)
    shown = summary_of(desk.run("show", "b", "--json").stdout)
    assert (shown["succeeded"], shown["failed"], len(desk.attempts())) == (JOBS, 0, JOBS)


@pytest.mark.covers("P24")
def test_a_second_ctrl_c_ends_what_runs(desk: Desk, terminal: Terminal) -> None:
    workers = desk.workers()
    terminal.type(CTRL_C)
    terminal.wait_for("stopping: running jobs may finish; again to end them")
    assert desk.workers() == workers
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    assert terminal.screen().count("ending running jobs") == 1
    until(lambda: all(map(dead, workers)), "what ran is ended")
    assert not heard_by_the_supervisor(desk)
    shown = summary_of(desk.run("show", "b", "--json").stdout)
    assert (shown["succeeded"], len(desk.attempts())) == (0, JOBS)
