"""When the lookout warns of a reader: not of one that is late once, is dead, or is the supervisor itself."""

import os
import subprocess
from collections.abc import Iterator
from typing import Any, cast

import pytest

from batchd.settings import LOOK_S
from batchd.supervisor.lookout import Lookout


class Journal:
    """Of a batch, as far as a lookout sees it."""

    def __init__(self) -> None:
        self.late: dict[tuple[int, int], int] = {}
        self.was_crowded = False

    def late_readers(self) -> dict[tuple[int, int], int]:
        return self.late


class Host:
    """A supervisor with two batches, which its scheduler has not heard of."""

    def __init__(self) -> None:
        self.journals = {"b": Journal(), "c": Journal()}
        self.scheduler = self
        self.batches: dict[str, Any] = {}


class Post:
    """A lookout, and the clock it goes by."""

    def __init__(self) -> None:
        self.host, self.now = Host(), 100.0
        self._lookout = Lookout(cast(Any, self.host))

    def look(self, late: dict[tuple[int, int], int], batch: str = "b", *, after_s: float = LOOK_S) -> list[str]:
        self.now += after_s
        self.host.journals[batch].late = late
        self._lookout.look(self.now)
        return self._lookout.warnings


@pytest.fixture
def pid() -> Iterator[int]:
    """Somebody who lives."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        yield process.pid


def test_who_is_late_at_two_looks_is_warned_of_once_and_until_he_ends(
    pid: int, capfd: pytest.CaptureFixture[str]
) -> None:
    post, text = Post(), f"process {pid} (cat) has been reading batch b for 1,{{}} commits: until it ends"
    assert post.look({(pid, 7): 1_024}) == []
    assert post.look({(pid, 7): 1_024}, after_s=LOOK_S / 2) == []  # Not yet looked again.
    (told,) = post.look({(pid, 7): 1_600}, after_s=LOOK_S / 2)
    assert told.startswith(text.format("600"))
    assert told.endswith(f"the batch's file only grows; `kill {pid}` ends it")
    (told,) = post.look({(pid, 7): 1_900})
    assert told.startswith(text.format("900"))
    assert post.look({}) == []
    assert capfd.readouterr().err.count("has been reading") == 1


def test_who_reads_anew_at_each_look_is_not_warned_of(pid: int) -> None:
    post = Post()
    assert [post.look({(pid, transaction): 1_024}) for transaction in range(5)] == [[]] * 5
    post.host.journals["b"].late = {}
    assert post.look({(pid, 4): 1_024}, "c") == []  # Of another batch.


def test_neither_the_dead_nor_the_supervisor_are_warned_of(pid: int) -> None:
    dead = subprocess.Popen(["/bin/true"])
    dead.wait()
    post, late = Post(), {(dead.pid, 1): 5_000, (os.getpid(), 2): 5_000, (pid, 3): 5_000}
    post.look(late)
    assert [warning.split()[1] for warning in post.look(late)] == [str(pid)]
