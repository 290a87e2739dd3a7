"""Writing the log that all workers of a batch share: whole lines, a bounded file, and no job that fails of it."""

import errno
import os
import subprocess
import sys
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path
from typing import Any

import pytest

from batchd.formats.joblog import LAST_LINE_BYTES, LOG_NAME, Line, decode
from batchd.settings import LOG_BYTES_MAX
from batchd.worker import joblog
from batchd.worker.joblog import append
from tests.bench import ROOT, open_descriptors


def lines_in(folder: Path) -> list[Line | None]:
    return [decode(line) for line in (folder / LOG_NAME).read_bytes().splitlines()]


def texts_in(folder: Path) -> list[str]:
    return [line.text for line in lines_in(folder) if line is not None]


def four_write(folder: Path, text: str, bytes_max: int = LOG_BYTES_MAX) -> None:
    """Have four processes write 200 lines each at once; `text` is an expression of the line's number."""
    program = (
        "import sys; from pathlib import Path; from batchd.worker import joblog;"
        f"joblog.LOG_BYTES_MAX = {bytes_max};"
        f"[joblog.append(Path(sys.argv[1]), int(sys.argv[2]), 1, {text}) for at in range(200)]"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, folder, str(number)], cwd=ROOT) for number in range(4)
    ]
    assert [writer.wait() for writer in writers] == [0] * 4


def test_a_line_tells_when_and_who(tmp_path: Path) -> None:
    append(tmp_path, 17, 2, "half way")
    (line,) = lines_in(tmp_path)
    assert line is not None
    assert (line.index, line.attempt, line.text) == (17, 2, "half way")
    assert len(line.time) == len("2026-01-02T03:04:05.678Z")
    assert (tmp_path / LOG_NAME).stat().st_mode & 0o777 == 0o600


def test_many_processes_write_whole_lines(tmp_path: Path) -> None:
    four_write(tmp_path, "f'{at} ' + 'x' * 5_000")
    found = lines_in(tmp_path)
    assert len(found) == 4 * 200
    for number in range(4):
        mine = [line.text.split()[0] for line in found if line is not None and line.index == number]
        assert mine == [str(at) for at in range(200)]


def test_a_full_log_is_never_larger_and_says_so_once_however_many_write(tmp_path: Path) -> None:
    four_write(tmp_path, "'x' * (1 + 37 * at)", 50_000)
    found = lines_in(tmp_path)
    assert (tmp_path / LOG_NAME).stat().st_size == 50_000
    assert None not in found
    assert [line.text.startswith("the log is full") for line in found if line is not None][-1]
    assert [line.index for line in found if line is not None].count(None) == 1


@pytest.mark.parametrize("end", ["{", '{"time": "2026', "x" * 200])
def test_a_torn_line_takes_no_other_along(tmp_path: Path, end: str) -> None:
    append(tmp_path, 0, 1, "before")
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write(end)
    append(tmp_path, 0, 2, "after")
    append(tmp_path, 0, 2, "and on")
    assert texts_in(tmp_path) == ["before", "after", "and on"]
    assert len(lines_in(tmp_path)) == 4


@pytest.mark.parametrize("missing", range(LAST_LINE_BYTES, LAST_LINE_BYTES + 200, 37))
def test_a_torn_line_at_the_end_of_a_full_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
    monkeypatch.setattr(joblog, "LOG_BYTES_MAX", 5_000)
    (tmp_path / LOG_NAME).write_bytes(b"x" * (5_000 - missing))
    append(tmp_path, 0, 1, "y" * 500)
    assert (tmp_path / LOG_NAME).stat().st_size == 5_000
    assert [text[:15] for text in texts_in(tmp_path)] == ["the log is full"]


def test_without_its_folder_or_room_a_line_is_lost_and_nobody_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tmp_path / "gone", 0, 1, "x")
    assert not (tmp_path / "gone").exists()

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "write", refuse)
        append(tmp_path, 0, 1, "lost")
    append(tmp_path, 0, 1, "kept")
    assert texts_in(tmp_path) == ["kept"]


@pytest.mark.covers("X13")
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LOG_NAME).symlink_to(tmp_path / "elsewhere")
    append(tmp_path, 0, 1, "x")
    assert not (tmp_path / "elsewhere").exists()


def test_a_child_that_was_forked_meanwhile_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child shares the open file, and so the lock on it."""
    copies: list[int] = []

    def lock_and_copy(fd: int, operation: int) -> None:
        flock(fd, operation)
        if operation == LOCK_EX:
            copies.append(os.dup(fd))

    monkeypatch.setattr(joblog, "flock", lock_and_copy)
    append(tmp_path, 0, 1, "x")
    fd = os.open(tmp_path / LOG_NAME, os.O_RDONLY)
    flock(fd, LOCK_EX | LOCK_NB)
    flock(fd, LOCK_UN)
    assert len(copies) == 1
    for each in (fd, *copies):
        os.close(each)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = open_descriptors()
    for _ in range(3):
        append(tmp_path, 0, 1, "x")
        append(tmp_path / "gone", 0, 1, "x")
    assert open_descriptors() == before
