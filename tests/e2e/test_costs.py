"""`batchd run --cost`: the costliest first, through the death of a supervisor and a run that is continued."""

import json
import os
import signal
from collections.abc import Iterable

import pytest

from tests.commands import Desk, until

TASK = """
import os
from select import select
import batchd

def work(row):
    fd = os.open(os.environ["MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d %d\\n" % (batchd.current_job().index, batchd.current_job().attempt))
    select([], [], [], row["cost"] / 50)  # The shortest fills more of a lease than may wait for its turn.
    return row["cost"]

def work_when_mended(row):
    if not os.path.exists("mended"):
        raise ValueError("not yet")
    return work(row)

def work_on_file(path):
    return work({"cost": os.path.getsize(path)})
"""
COSTS = [3, 4, 5, 6, 30, 40, 50]
COSTLIEST_FIRST = [6, 5, 4, 3, 2, 1, 0]


def command(desk: Desk, costs: Iterable[int]) -> tuple[str, ...]:
    (desk.folder / "mine.py").write_text(TASK)
    (desk.folder / "rows.jsonl").write_text("".join(json.dumps({"cost": cost}) + "\n" for cost in costs))
    return ("run", "mine.py:work", "rows.jsonl", "-j", "1", "--out", "out.jsonl")


def started(desk: Desk) -> list[int]:
    return list(dict.fromkeys(index for index, _ in desk.attempts()))


def test_the_costliest_start_first_and_results_keep_their_order(desk: Desk) -> None:
    ran = desk.run(*command(desk, COSTS), "--cost", "cost")

    assert ran.returncode == 0, ran.stderr
    assert started(desk) == COSTLIEST_FIRST
    assert desk.values() == COSTS


def test_files_start_by_their_size(desk: Desk) -> None:
    command(desk, [])
    for name, size in (("a", 3), ("b", 9), ("c", 5)):
        (desk.folder / f"{name}.dat").write_bytes(b"x" * size)
    ran = desk.run("run", "mine.py:work_on_file", "--paths", "*.dat", "-j", "1", "--cost", "size")

    assert ran.returncode == 0, ran.stderr
    assert started(desk) == [1, 2, 0]


@pytest.mark.slow
def test_a_supervisor_that_starts_again_knows_the_costs(desk: Desk) -> None:
    process = desk.start(*command(desk, COSTS), "--cost", "cost")
    desk.wait_for_jobs(2, process)
    os.kill(desk.supervisor(), signal.SIGKILL)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    assert "started another" in err
    assert started(desk) == COSTLIEST_FIRST


def test_a_run_that_is_continued_without_the_option_knows_the_costs(desk: Desk) -> None:
    again = command(desk, COSTS)
    process = desk.start(*again, "--cost", "cost")
    until(lambda: len(desk.attempts()) >= 2, "some jobs ran", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err

    assert desk.run(*again).returncode == 0
    assert started(desk) == COSTLIEST_FIRST
    assert desk.values() == COSTS


@pytest.mark.slow
def test_jobs_that_are_retried_start_the_costliest_first(desk: Desk) -> None:
    _, _, *rest = command(desk, COSTS)
    assert desk.run("run", "mine.py:work_when_mended", *rest, "--cost", "cost", "--keep-going").returncode == 1
    (desk.folder / "mended").touch()
    assert desk.run("retry", "last", "--failed", "-j", "1").returncode == 0
    assert started(desk) == COSTLIEST_FIRST


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ("rows.jsonl", "--cost", "pages"),
            "rows.jsonl:1, {'cost': 3}, has no 'pages', which --cost pages asks",
        ),
        (("bad.jsonl", "--cost", "cost"), "bad.jsonl:4, {'cost': -1}, costs -1 by --cost cost"),
        (("mine.py", "--cost", "cost"), "lines and ranges have neither"),
        (("--range", "0:5", "--cost", "cost"), "lines and ranges have neither"),
        (("--paths", "*.py", "--cost", "bytes"), "write --cost size"),
    ],
)
def test_a_cost_that_cannot_be_had_gets_a_sentence(desk: Desk, args: tuple[str, ...], words: str) -> None:
    command(desk, COSTS)
    (desk.folder / "bad.jsonl").write_text('{"cost": 1}\n\n{"cost": 1}\n{"cost": -1}\n')
    refused = desk.run("run", "mine.py:work", *args)

    assert refused.returncode == 2, refused.stderr
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr
