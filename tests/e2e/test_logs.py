"""What jobs say about themselves, as a person sees it: `batchd status`, `batchd logs`, and results that went on."""

import json
import os
import re
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from batchd.cli.logs import _Log
from batchd.edge.journal import BatchJournal
from batchd.edge.shelf import is_newest
from batchd.formats.joblog import LOG_NAME
from batchd.worker.joblog import append
from tests.commands import Desk, status_of


def let_go(desk: Desk) -> None:
    desk.marks.with_name("go").touch()


def end_well(process: "subprocess.Popen[str]") -> None:
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def texts(out: str) -> list[str]:
    """Return the lines of the log without their times."""
    return [line.partition("  ")[2] if line[0] != " " else line for line in out.splitlines()]


def line_of(process: "subprocess.Popen[str]") -> str:
    """Return the next line that a command writes."""
    assert process.stdout is not None
    return process.stdout.readline().partition("  ")[2].strip()


def rest_of(process: "subprocess.Popen[str]") -> list[str]:
    """Return the lines that `line_of` did not, of a command that ends well; some of them may be read already."""
    assert process.stdout is not None
    rest = process.stdout.read()
    end_well(process)
    return texts(rest)


def test_status_shows_how_far_each_job_is(desk: Desk) -> None:
    process = desk.start("run", desk.task("talks"), "--range", "0:2", "-j", "2")
    desk.wait_for_jobs(2, process)
    assert [row["progress"] for row in status_of(desk)["workers"]] == [0.42, 0.42]
    supervisor, batch, *workers = desk.run("status").stdout.splitlines()
    assert ": 2 workers; memory of the machine " in supervisor
    assert re.fullmatch(r"batch \w+: 0 of 2\+? done, running", batch)
    assert [line.endswith(", 42%") for line in workers] == [True, True]
    let_go(desk)
    end_well(process)


def test_logs_are_shown_whole_or_of_one_job_or_as_they_stand(desk: Desk) -> None:
    let_go(desk)
    assert desk.run("run", desk.task("talks"), "--range", "5:8", "-j", "1", "--name", "mine").returncode == 0
    two_lines = ["end 6", "    in \\x1b[31mtwo lines"]
    everything = desk.run("logs")
    assert len(texts(everything.stdout)) == 9
    for which in ("mine:1", "last:1"):
        shown = desk.run("logs", which)
        assert texts(shown.stdout) == ["1: begin 6", f"1: {two_lines[0]}", two_lines[1]]
        assert shown.stderr == ""
    told = [json.loads(line) for line in desk.run("logs", "mine", "--json").stdout.splitlines()]
    assert [(line["index"], line["attempt"], line["text"].split("\n")[0]) for line in told] == [
        (index, 1, f"{what} {5 + index}") for index in range(3) for what in ("begin", "end")
    ]


def test_where_nothing_was_logged_it_says_so(desk: Desk) -> None:
    desk.run("run", desk.task("square"), "--range", "0:3", "--name", "silent:7")
    for which, words in (
        ("last", "no job has logged anything"),
        ("last:2", "job 2 has logged nothing"),
        ("silent:7", "no job has logged anything"),
    ):
        shown = desk.run("logs", which)
        assert (shown.returncode, shown.stdout) == (0, "")
        assert words in shown.stderr
    for which in ("nobody", "nobody:3"):
        refused = desk.run("logs", which)
        assert refused.returncode == 2
        assert "there is no batch 'nobody'" in refused.stderr


def test_following_shows_lines_as_they_come_and_ends_with_the_batch(desk: Desk) -> None:
    process = desk.start("run", desk.task("talks"), "--range", "0:2", "-j", "1")
    desk.wait_for_jobs(1, process)
    follower = desk.start("logs", "last", "-f")
    assert line_of(follower) == "0: begin 0"
    let_go(desk)
    assert line_of(follower) == "0: end 0"
    assert line_of(follower) == "in \\x1b[31mtwo lines"
    end_well(process)
    assert rest_of(follower) == ["1: begin 1", "1: end 1", "    in \\x1b[31mtwo lines"]


@pytest.mark.fault
def test_following_goes_on_when_the_supervisor_was_replaced(desk: Desk) -> None:
    process = desk.start("run", desk.task("talks"), "--range", "0:1", "-j", "1")
    desk.wait_for_jobs(1, process)
    follower = desk.start("logs", "last", "-f")
    assert line_of(follower) == "0: begin 0"
    os.kill(desk.supervisor(), signal.SIGKILL)
    desk.wait_for_jobs(2, process)
    let_go(desk)
    end_well(process)
    assert rest_of(follower) == ["0 (attempt 2): begin 0", "0 (attempt 2): end 0", "    in \\x1b[31mtwo lines"]


def test_following_what_does_not_run_ends_at_once(desk: Desk) -> None:
    process = desk.start("run", desk.task("talks"), "--range", "0:2", "-j", "1")
    desk.wait_for_jobs(1, process)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "stopping" in process.stderr.readline()
    let_go(desk)
    process.communicate(timeout=30)
    assert process.returncode == 4
    shown = desk.run("logs", "-f")
    assert (shown.returncode, texts(shown.stdout)[:2]) == (0, ["0: begin 0", "0: end 0"])


def test_a_job_that_was_killed_goes_on_from_its_checkpoint(desk: Desk) -> None:
    ran = desk.run("run", desk.task("counts_on"), "--range", "0:3", "-j", "2", "--out", "out.jsonl")
    assert ran.returncode == 0, ran.stderr
    assert desk.values() == [[2, 5]] * 3


def test_a_log_that_is_written_later_does_not_make_its_batch_the_newest(tmp_path: Path) -> None:
    (tmp_path / "batches").mkdir()
    for name in ("older", "newer"):
        BatchJournal.create(tmp_path / "batches" / name, {}).close()
    append(tmp_path / "batches" / "older", 0, 1, "late")
    assert (is_newest(tmp_path / "batches" / "older"), is_newest(tmp_path / "batches" / "newer")) == (False, True)


def test_what_is_followed_is_the_log_that_was_there(tmp_path: Path) -> None:
    """Also when its batch is removed meanwhile, and one that is made under the id has a log in its place."""
    with closing(_Log(tmp_path / LOG_NAME, None)) as log:
        assert list(log.lines()) == []
        append(tmp_path, 0, 1, "one")
        assert [line.text for _, line in log.lines()] == ["one"]
        append(tmp_path, 0, 1, "two")
        (tmp_path / LOG_NAME).rename(tmp_path / "aside")
        append(tmp_path, 0, 1, "of another batch, and longer than all that was there before, by far")
        append(tmp_path, 0, 1, "and this as well")
        assert [line.text for _, line in log.lines()] == ["two"]
