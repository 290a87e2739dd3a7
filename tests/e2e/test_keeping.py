"""Keeping a journal, as its owner does: prune, check, salvage, backup, put back."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from batchd.formats import tables
from tests.bench import await_death
from tests.commands import Desk, summary_of, until
from tests.ruin import PAGE_BYTES, Original


def run_range(desk: Desk, stop: int, name: str, task: str = "square") -> None:
    assert desk.run("run", desk.task(task), "--range", f"0:{stop}", "--name", name, "-q").returncode == 0


def listed(desk: Desk) -> dict[str, str]:
    """Return the batches' states by name."""
    return {row["name"]: row["shown_state"] for row in summary_of(desk.run("ls", "--json").stdout)["batches"]}


def disk_blocks(folder: Path) -> int:
    """Return what `du` says."""
    return sum(path.lstat().st_blocks for path in folder.rglob("*"))


def test_a_journal_that_is_not_there_is_told_of(desk: Desk) -> None:
    for args in (("prune", "--keep", "0"), ("journal", "check"), ("journal", "backup", "copy")):
        told = desk.run(*args)
        assert (told.returncode, told.stdout) == (3, "")
        assert "There is no journal at" in told.stderr


def test_the_help_says_what_there_is(desk: Desk) -> None:
    told = desk.run("journal", "--help").stdout
    assert all(act in told for act in ("check", "salvage", "backup"))
    assert desk.run("journal").returncode == 2
    assert "--older-than TIME" in desk.run("prune", "--help").stdout


@pytest.mark.covers("X8")
def test_a_pruned_batch_gives_its_space_back_and_can_be_run_again(desk: Desk) -> None:
    run_range(desk, 100, "small")
    before = disk_blocks(desk.journal)
    run_range(desk, 100_000, "large")
    assert disk_blocks(desk.journal) > before + 500
    told = desk.run("prune", "large")
    assert told.returncode == 2
    assert "1 batch would be removed" in told.stderr
    told = desk.run("prune", "large", "--yes")
    assert told.returncode == 0
    assert "removed 1 batch" in told.stderr
    assert "next: batchd ls" in told.stderr
    assert disk_blocks(desk.journal) <= before + 16
    assert listed(desk) == {"small": "finished"}
    run_range(desk, 100, "large")
    assert listed(desk) == {"small": "finished", "large": "finished"}


@pytest.mark.slow
@pytest.mark.covers("X8")
def test_a_running_batch_outlives_every_prune(desk: Desk) -> None:
    run_range(desk, 10, "old")
    process = desk.start("run", desk.task("slow_square"), "--range", "0:100000", "--name", "live")
    desk.wait_for_jobs(10, process)
    for args in (["--state", "all"], ["--keep", "0"], ["--max-size", "1", "--older-than", "0"]):
        assert desk.run("prune", *args, "--yes").returncode == 0
    assert listed(desk) == {"live": "running"}
    told = desk.run("prune", "live", "--yes")
    assert told.returncode == 2
    assert "is running: `batchd cancel " in told.stderr
    desk.wait_for_jobs(len(desk.attempts()) + 10, process)
    assert desk.run("cancel", "live").returncode == 0
    process.communicate()
    assert listed(desk) == {"live": "cancelled"}
    assert desk.run("journal", "check").returncode == 0
    assert desk.run("prune", "--older-than", "0", "--yes").returncode == 0
    assert listed(desk) == {}


@pytest.mark.fault
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(("call", "left"), [("rename", 9), ("unlinkat", 0)])
def test_a_prune_that_is_killed_leaves_batches_whole_or_gone(desk: Desk, call: str, left: int) -> None:
    """Before it sets its fourth batch aside, and in the middle of what it deletes."""
    run_range(desk, 100, "made")
    made = next((desk.journal / "batches").iterdir())
    for number in range(11):
        shutil.copytree(made, made.with_name(f"copy{number}"))
    until(lambda: not desk.supervisor(), "nobody else would remove them")
    killed = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", os.devnull),
            *("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when=4"),
            *(sys.executable, "-m", "batchd", "prune", "--keep", "0", "--yes"),
        ],
        env=desk.environ,
        check=False,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed
    assert len(_batches(desk)) == left
    checked = json.loads(desk.run("journal", "check", "--json").stdout)
    assert [each["done"] for each in checked["batches"]] == [100] * len(_batches(desk))
    assert checked["is_well"]
    assert desk.run("prune", "--keep", "0", "--yes").returncode == 0
    assert list((desk.journal / "batches").iterdir()) == []


def _batches(desk: Desk) -> list[Path]:
    return [path for path in (desk.journal / "batches").iterdir() if not path.name.startswith(".")]


@pytest.mark.covers("J1", "X7")
def test_damage_is_found_salvaged_and_run_again(desk: Desk) -> None:
    run_range(desk, 100, "good")
    run_range(desk, 50_000, "bad")
    told = desk.run("journal", "check")
    assert told.returncode == 0
    assert "2 batches: every record reads back as it was written" in told.stdout
    bad = next(row for row in summary_of(desk.run("ls", "--json").stdout)["batches"] if row["name"] == "bad")["batch"]
    data = desk.journal / "batches" / bad / "data.mdb"
    random = Random(1)
    with data.open("r+b") as file:
        for _ in range(8):
            file.seek(random.randrange(3 * 4096, data.stat().st_size) // 512 * 512)
            file.write(bytes(512))
    told = desk.run("journal", "check")
    assert told.returncode == 3
    assert f"{bad}  damaged" in told.stdout
    assert "2 batches: 1 damaged" in told.stdout
    assert f"next: batchd journal salvage {bad} --to salvaged-{bad}" in told.stdout
    assert desk.run("results", "good", "--values").stdout.split() == [str(n * n) for n in range(100)]
    told = desk.run("journal", "salvage", bad, "--to", f"salvaged-{bad}")
    assert told.returncode == 0, told.stderr
    here = desk.folder / f"salvaged-{bad}"
    outcomes = [json.loads(line) for line in (here / "outcomes.jsonl").read_text().splitlines()]
    assert all(line["result"] == line["index"] ** 2 for line in outcomes)
    inputs = [json.loads(line) for line in (here / "inputs.jsonl").read_text().splitlines()]
    assert {line["index"] for line in outcomes}.isdisjoint(inputs)
    report = json.loads((here / "report.json").read_text())
    lost = sum(stop - start for start, stop in report["lost"]["inputs"])
    assert len(outcomes) + len(inputs) + lost == 50_000
    assert len(outcomes) > 10_000
    for step in report["next"]:
        command = step.partition(" (")[0].split()
        assert desk.run(*command[1:], *(["--yes"] if "prune" in command else [])).returncode == 0, step
    if inputs and report["spec"]:  # The page that names the task may be one of the damaged.
        assert desk.values(f"salvaged-{bad}/rest.jsonl") == [n * n for n in inputs]
    assert bad not in {path.name for path in (desk.journal / "batches").iterdir()}


@pytest.mark.slow
@pytest.mark.covers("X6")
def test_an_old_backup_is_put_back_and_goes_on(desk: Desk) -> None:
    args = ("run", desk.task("marked_square"), "--range", "0:2000", "--name", "work", "--out", "out.jsonl")
    process = desk.start(*args)
    desk.wait_for_jobs(100, process)
    told = desk.run("journal", "backup", "copy", "--json")
    assert told.returncode == 0
    assert summary_of(told.stdout)["next"] == ["batchd ls --journal copy"]
    supervisor = desk.supervisor()
    process.communicate()
    assert process.returncode == 0
    await_death(supervisor)  # Or it would still be taking its own things out of what is removed below.
    there = summary_of(desk.run("ls", "--json", "--journal", "copy").stdout)["batches"][0]
    assert (there["shown_state"], there["name"]) == ("interrupted", "work")
    assert 0 < there["done"] < 2000
    shutil.rmtree(desk.journal)
    (desk.folder / "copy").rename(desk.journal)
    begun = len(desk.attempts())
    told = desk.run(*args)
    assert told.returncode == 0
    assert f"{there['done']:,} of " in told.stderr
    assert len(desk.results()) == 2000
    # What was running when the copy was made may run again, what was done may not.
    assert 2000 - there["done"] <= len(desk.attempts()) - begun <= 2000 - there["done"] + 10


def test_a_batch_that_supervisors_die_of_is_told_as_damaged(desk: Desk) -> None:
    desk.run("run", desk.task("raises_on_odd"), "--range", "0:200", "--keep-going", "--name", "bad")
    (batch,) = _batches(desk)
    ruined = bytearray(data := (batch / "data.mdb").read_bytes())
    page = Original(data, {}, {}, 0).leaf(tables.CAUSES)
    ruined[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = bytes(PAGE_BYTES)
    (batch / "data.mdb").write_bytes(ruined)
    told = desk.run("retry", "bad", "--failed")
    assert told.returncode == 3
    assert f"batch {batch.name} is damaged" in told.stderr
    assert f"`batchd journal check {batch.name}`" in told.stderr


def test_nothing_is_the_matter_where_children_are_ignored(desk: Desk) -> None:
    """What a program inherits from a shell's `trap '' CHLD`: nobody learns how a child ended."""

    def run(*words: str) -> str:
        shell = ["sh", "-c", 'trap "" CHLD; exec "$0" "$@"', sys.executable, "-m", "batchd", *words]
        ran = subprocess.run(shell, env=desk.environ, cwd=desk.folder, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran
        return ran.stdout

    run("run", desk.task("square"), "--range", "0:3", "--name", "b", "--out", "out.jsonl")
    assert desk.values() == [0, 1, 4]
    assert "b" in run("ls").splitlines()[1].split()
    assert len(run("results", "b").splitlines()) == 3
