"""Where an answer cannot go as it is, or nothing can be asked from here: one line, and the exit code that says so."""

import subprocess
import sys
from typing import Any

import pytest

from tests.commands import Desk, squares


def ask(desk: Desk, *words: str, **given: Any) -> "subprocess.CompletedProcess[bytes]":
    environ = {**desk.environ, **given.pop("environ", {})}
    del environ["BATCHD_JOURNAL"]
    command = [sys.executable, "-m", "batchd", *words]
    return subprocess.run(
        command, env=environ, stderr=subprocess.PIPE, cwd=given.pop("cwd", desk.folder), check=False, **given
    )


@pytest.mark.parametrize(("word", "unbuffered"), [("ls", ""), ("--help", "1")])
def test_a_full_standard_output_is_one_line(desk: Desk, word: str, unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        told = ask(desk, word, stdout=full, environ={"PYTHONUNBUFFERED": unbuffered})
    assert told.stderr == b"batchd: standard output could not be written: No space left on device\n"
    assert told.returncode == 3


def closing(desk: Desk, streams: str, *command: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a command that finds these of its streams closed."""
    words = ["/bin/sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, *command]
    return subprocess.run(
        words,
        env=desk.environ,
        cwd=desk.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("words", [("ls",), ("journal", "check")])
def test_a_closed_standard_output_is_one_line(desk: Desk, words: tuple[str, ...]) -> None:
    told = closing(desk, ">&-", "-m", "batchd", *words)
    assert told.stderr == b"batchd: standard output could not be written: Bad file descriptor\n"
    assert told.returncode == 3


@pytest.mark.parametrize("streams", ["2>&-", "<&- >&- 2>&-"])
def test_where_standard_error_is_closed_all_is_done_in_silence(desk: Desk, streams: str) -> None:
    (desk.folder / "own.py").write_text(
        "import batchd\n"
        "found = list(batchd.map(abs, [-1, -2]))\n"
        "with open('own.out', 'w') as file:\n"
        "    print(found, file=file)\n"
    )
    ran = closing(
        desk, streams, "-m", "batchd", "run", desk.task("fast_square"), "--range", "0:3", "--out", "out.jsonl"
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    assert desk.values() == squares(3)
    ran = closing(desk, streams, "own.py")
    assert (ran.returncode, ran.stdout) == (0, b"")
    assert (desk.folder / "own.out").read_text() == "[1, 2]\n"


def test_who_cannot_be_asked_is_told_what_to_say(desk: Desk) -> None:
    assert desk.run("run", desk.task("fast_square"), "--range", "0:3").returncode == 0
    told = closing(desk, "<&-", "-m", "batchd", "prune", "last")
    assert (told.returncode, b"--yes removes them" in told.stderr) == (2, True)


def test_what_the_encoding_lacks_is_shown_by_its_number(desk: Desk) -> None:
    home = desk.folder / "hölle"
    told = ask(desk, "ls", stdout=subprocess.PIPE, environ={"XDG_STATE_HOME": str(home), "PYTHONIOENCODING": "ascii"})
    assert (told.returncode, told.stderr) == (0, b"")
    assert b"h\\xf6lle" in told.stdout


def test_a_folder_that_is_gone_or_may_not_be_looked_at_is_one_line(desk: Desk) -> None:
    gone = desk.folder / "gone"
    gone.mkdir()
    command = f"rmdir {gone}; exec {sys.executable} -m batchd run builtins:abs --range 0:3"
    told = subprocess.run(["/bin/sh", "-c", command], env=desk.environ, cwd=gone, capture_output=True, check=False)
    assert told.stderr == b"batchd: the current folder does not exist any more: change to another\n"
    assert told.returncode == 3
    told = ask(desk, "ls", stdout=subprocess.PIPE, environ={"XDG_STATE_HOME": "/" + 300 * "x"})
    assert told.stderr.endswith(b"cannot be used: File name too long\n")
    assert (told.returncode, told.stderr.count(b"\n")) == (3, 1)
