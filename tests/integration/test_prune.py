"""Batches go whole and only those that were meant; their space comes back; whoever runs one keeps it."""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from batchd.cli import prune as prune_verb
from batchd.client import request
from batchd.client.connection import connect
from batchd.core import entries as e
from batchd.edge import removal
from batchd.edge.census import Row, take_census
from batchd.edge.folder import disk_bytes
from batchd.edge.journal import BatchJournal
from batchd.edge.lock import holder_of, vacant
from batchd.errors import BatchNotFound, JournalError, SupervisorError, UsageError
from batchd.formats import tables
from batchd.settings import FORMAT_VERSION
from tests.author import submission, success
from tests.bench import House
from tests.ruin import PAGE_BYTES, SPEC, change
from tests.written import Run

DAY_S = 86_400.0


@pytest.fixture
def run(folder: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def run_verb(*batches: str, **given: Any) -> tuple[int, str, str]:
        known: dict[str, Any] = {
            "older_than": None,
            "state": [],
            "keep": None,
            "max_size": None,
            "dry_run": False,
            "yes": True,
        }
        capfd.readouterr()
        args = {"journal": str(folder), "json": False, "batch": list(batches), **known, **given}
        code = prune_verb.prune(argparse.Namespace(**args))
        return code, *capfd.readouterr()

    return run_verb


def make(
    folder: Path, batch: str, state: str = "finished", *, age_s: float = 0.0, jobs: int = 3, kind: str = "text"
) -> Path:
    """Make a batch that was written for the last time so long ago."""
    spec = {**SPEC, "name": f"name of {batch}", "input": {"kind": kind}}
    journal = BatchJournal.create(folder / "batches" / batch, spec)
    end = [e.Sealed(batch)] * (kind != "queue")
    journal.commit([e.Attached(batch, 1), submission(journal.facts, [f"{at:01000}" for at in range(jobs)]), *end])
    last: dict[str, list[e.Entry]] = {
        "finished": [success(batch, 0, [1] * jobs)],
        "stopped": [e.Stopped(batch, "enough")],
        "cancelled": [e.CancelOrdered(batch, "why not")],
        "interrupted": [],
    }
    journal.commit([*last[state], e.Detached(batch)])
    journal.close()
    then = journal.folder.stat().st_mtime - age_s
    for path in (journal.folder / "data.mdb", journal.folder):
        os.utime(path, (then, then))
    return journal.folder


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "batches").iterdir()}


# --- Which go --------------------------------------------------------------------------------------------------


def test_nothing_goes_when_nothing_was_asked_for(folder: Path, run: Run) -> None:
    make(folder, "a")
    with pytest.raises(UsageError, match=r"say what to remove: .*--older-than 30d.*--dry-run only shows"):
        run()
    assert names(folder) == {"a"}


def test_batches_that_are_not_over_stay_unless_they_are_meant(folder: Path, run: Run) -> None:
    for state in ("finished", "stopped", "cancelled", "interrupted"):
        make(folder, state[:3], state)
    code, out, err = run(keep=0, dry_run=True)
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()[1:]} == {"fin", "can"}
    assert "batches that are not over are kept: 1 stopped, 1 interrupted" in err
    assert "would remove 2 batches" in err
    assert run(state=["stopped,interrupted"])[0] == 0
    assert names(folder) == {"fin", "can"}
    assert run(state=["all"])[0] == 0
    assert names(folder) == set()


def test_a_queue_goes_only_by_its_name_or_while_nothing_waits_by_that(folder: Path, run: Run) -> None:
    make(folder, "idle", "finished", kind="queue")
    make(folder, "waits", "interrupted", kind="queue")
    assert {row.batch: row.state for row in take_census(folder)} == {"idle": "idle", "waits": "interrupted"}
    for states in ("all", "interrupted", "finished"):
        code, _, err = run(state=[states])
        assert (code, names(folder)) == (0, {"idle", "waits"})
        assert "2 queues kept: a queue goes by its name, or while nothing waits by --state idle" in err
    run(state=["idle"])
    assert names(folder) == {"waits"}
    run("waits")
    assert names(folder) == set()


def test_a_batch_goes_only_if_everything_agrees(folder: Path, run: Run) -> None:
    for age in range(6):
        make(folder, f"b{age}", age_s=age * DAY_S)
    assert run(older_than="2d", keep=4)[0] == 0
    assert names(folder) == {"b0", "b1", "b2", "b3"}
    assert run("b0", "b3", older_than="1d")[0] == 0
    assert names(folder) == {"b0", "b1", "b2"}
    assert run("b0", state=["cancelled"])[0] == 0
    assert names(folder) == {"b0", "b1", "b2"}
    assert run(keep=5)[0] == 0
    assert names(folder) == {"b0", "b1", "b2"}


def test_the_oldest_go_until_the_journal_is_small_enough(folder: Path, run: Run) -> None:
    places = [make(folder, f"b{age}", age_s=age * DAY_S, jobs=400) for age in range(4)]
    make(folder, "open", "interrupted", age_s=9 * DAY_S)
    size = sum(map(disk_bytes, places)) + disk_bytes(folder / "batches" / "open")
    assert run(max_size=str(size))[0] == 0
    assert len(names(folder)) == 5
    assert run(max_size=str(size - 1))[0] == 0
    assert names(folder) == {"b0", "b1", "b2", "open"}
    code, _, err = run(max_size="1", older_than="12h")
    assert code == 0
    assert names(folder) == {"b0", "open"}
    assert "is more than 1, and nothing else may go" in err


def test_a_batch_is_as_old_as_its_last_change(folder: Path, run: Run) -> None:
    place = make(folder, "a", age_s=40 * DAY_S)
    journal = BatchJournal(place, is_writer=True)
    journal.commit([e.Attached("a", 2)])
    journal.close()
    os.utime(place, (0, 0))
    run(older_than="30d", state=["all"])
    assert names(folder) == {"a"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"state": ["running"]}, "'running' is not a state to choose by: write finished, cancelled"),
        ({"keep": -1}, "cannot keep -1 batches"),
        ({"older_than": "soon"}, "is not a duration"),
        ({"max_size": "much"}, "is not a size"),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Run, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(**given)


def test_a_name_that_means_nothing_is_refused_before_anything_goes(folder: Path, run: Run) -> None:
    make(folder, "a")
    with pytest.raises(BatchNotFound):
        run("a", "zzz")
    assert names(folder) == {"a"}


# --- Damaged ones ----------------------------------------------------------------------------------------------


def test_a_damaged_batch_goes_when_it_is_meant_and_hides_no_other(folder: Path, run: Run) -> None:
    make(folder, "good")
    place = make(folder, "bad", jobs=400)
    os.truncate(place / "data.mdb", 3 * PAGE_BYTES)
    (folder / "batches" / "hollow").mkdir()
    assert {row.batch: row.state for row in take_census(folder)} == {
        "good": "finished",
        "bad": "damaged",
        "hollow": "damaged",
    }
    run(keep=0)
    assert names(folder) == {"bad", "hollow"}
    run(state=["damaged"])
    assert names(folder) == set()


def test_a_batch_that_kills_who_opens_it_costs_its_own_row(folder: Path) -> None:
    for batch in ("a", "b", "c"):
        make(folder, batch, "interrupted", jobs=400)
    opened: list[str] = []

    def die(path: Path) -> BatchJournal:
        if path.name == "b":
            os.abort()
        opened.append(path.name)
        return BatchJournal(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("batchd.edge.census.open_batch", die)
        rows = {row.batch: (row.state, row.error) for row in take_census(folder)}
    assert rows["a"] == rows["c"] == ("interrupted", "")
    assert rows["b"] == ("damaged", "whoever opens it dies: it was killed by SIGABRT")
    assert opened == [], "it was opened in this process"


def test_a_newer_batch_is_not_taken_for_a_damaged_one(folder: Path, run: Run) -> None:
    newer = json.dumps({"format": FORMAT_VERSION + 1}).encode()
    change(make(folder, "new"), tables.META, tables.META_FORMAT, newer)
    assert [row.state for row in take_census(folder)] == ["newer"]
    run(state=["all"])
    assert names(folder) == {"new"}
    run("new")
    assert names(folder) == set()


def test_a_batch_that_only_could_not_be_opened_stays(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make(folder, "a")

    def refuse(_: Path) -> BatchJournal:
        raise JournalError("cannot map the batch: the address space is limited")

    monkeypatch.setattr("batchd.edge.census.open_batch", refuse)
    code, _, err = run(state=["damaged"])
    assert code == 0
    assert "a is not removed, it could not be opened: cannot map the batch" in err
    assert names(folder) == {"a"}


# --- How they go -----------------------------------------------------------------------------------------------


@pytest.mark.covers("X8")
def test_the_space_is_given_back(folder: Path, run: Run) -> None:
    make(folder, "a", jobs=2_000)
    before = disk_bytes(folder / "batches" / "a")
    assert before > 2_000_000
    told = json.loads(run("a", json=True)[1])
    assert told["removed"] == [
        {
            "batch": "a",
            "name": "name of a",
            "state": "finished",
            "disk_bytes": before,
            "changed": told["removed"][0]["changed"],
        }
    ]
    assert (told["freed_bytes"], told["left"], told["left_bytes"], told["failed"]) == (before, 0, 0, [])
    assert names(folder) == set()


def test_no_supervisor_is_started_for_it(folder: Path, run: Run) -> None:
    make(folder, "a")
    run("a")
    assert not (folder / "supervisor.log").exists()
    assert holder_of(folder) == {}


def test_what_a_cut_off_prune_left_is_deleted_by_the_next(folder: Path, run: Run) -> None:
    for batch in ("a", "b"):
        make(folder, batch)
    removal.set_aside(folder, "a")  # And then it died.
    (folder / "batches" / ".old-a" / "data.mdb").unlink()
    assert [row.batch for row in take_census(folder)] == ["b"]
    make(folder, "a")
    assert removal.set_aside(folder, "a").name == ".old-a.1"
    assert run("b", dry_run=True)[0] == 0
    assert names(folder) == {".old-a", ".old-a.1", "b"}
    code, _, err = run("b")
    assert code == 0
    assert "what an earlier prune left behind is deleted as well" in err
    assert names(folder) == set()


def test_a_batch_that_is_gone_is_said_to_be(folder: Path) -> None:
    with pytest.raises(BatchNotFound, match="there is no batch a"):
        removal.set_aside(folder, "a")
    shutil.rmtree(folder / "batches")
    assert removal.left_aside(folder) == []


def test_a_batch_that_was_linked_in_leaves_with_its_link(folder: Path, run: Run, tmp_path: Path) -> None:
    place = make(folder, "a")
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    code, _, err = run("a")
    assert code == 3
    assert f"{tmp_path / 'elsewhere'} was linked into the journal from elsewhere and is still there" in err
    assert names(folder) == set()
    assert (tmp_path / "elsewhere" / "data.mdb").exists()


def test_what_cannot_be_deleted_is_said_and_tried_again(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder, "a")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("batchd.edge.removal.shutil.rmtree", refuse)
        code, _, err = run("a")
    assert code == 3
    assert "cannot be deleted: [Errno 13] Permission denied" in err
    assert "the next `batchd prune` tries again" in err
    assert names(folder) == {".old-a"}
    make(folder, "b")
    assert run("b")[0] == 0
    assert names(folder) == set()


def test_a_rename_that_is_not_durable_deletes_nothing(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder, "a")

    def refuse(_: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("batchd.edge.removal.sync", refuse)
        patch.setattr("batchd.cli.prune.sweep", lambda _: [])
        code, _, err = run("a")
    assert code == 3
    assert "a is not removed" in err
    assert "Input/output error" in err
    assert (folder / "batches" / ".old-a" / "data.mdb").exists()


@pytest.mark.covers("D1", "X8")
def test_a_full_disk_does_not_keep_it_from_making_room(folder: Path) -> None:
    """Not a byte can be written: the limit on the size of files stands for a disk without a free block."""
    make(folder, "a")
    (folder / "supervisor.lock").touch()
    process = subprocess.run(
        [sys.executable, "-m", "batchd", "prune", "a", "--yes", "--journal", str(folder)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert names(folder) == set()


# --- Asking ----------------------------------------------------------------------------------------------------


def test_nothing_goes_without_a_yes(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make(folder, "a")
    with pytest.raises(UsageError, match=r"1 batch would be removed.*--yes removes them"):
        run("a", yes=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for said in ("\n", "n\n", "", "nay\n"):
        monkeypatch.setattr("sys.stdin.readline", lambda said=said: said, raising=False)
        code, out, err = run("a", yes=False)
        assert code == 0
        assert "a      name of a  finished" in out
        assert "remove 1 batch" in err
        assert "nothing was removed" in err
    with pytest.raises(UsageError):
        run("a", yes=False, json=True)
    assert names(folder) == {"a"}
    monkeypatch.setattr("sys.stdin.readline", lambda: "Y\n", raising=False)
    assert run("a", yes=False)[0] == 0
    assert names(folder) == set()


def test_what_changed_while_the_question_stood_there_stays(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [make(folder, batch, age_s=40 * DAY_S) for batch in ("a", "b")]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    def answer() -> str:
        os.utime(places[0] / "data.mdb")  # Somebody ran it again.
        return "yes\n"

    monkeypatch.setattr("sys.stdin.readline", answer, raising=False)
    assert run(older_than="30d", yes=False)[0] == 0
    assert names(folder) == {"a"}


# --- Beside a supervisor ---------------------------------------------------------------------------------------


@pytest.mark.covers("X8")
def test_a_running_batch_stays_and_others_go(house: House, run: Run, folder: Path) -> None:
    make(house.folder, "old")
    make(house.folder, "older")
    session = house.start([("work", 0.01, n) for n in range(50)], "live")
    with pytest.raises(UsageError, match="batch live is running: `batchd cancel live` ends it"):
        run("live")
    with pytest.raises(SupervisorError, match="batch live is running: `batchd cancel live` ends it"):
        request(house.folder, "prune", batch="live")
    assert request(house.folder, "prune", batch="old") == {"number": 2, "aside": ".old-old"}
    code, _, err = run(state=["all"])
    assert code == 0
    assert "removed 1 batch" in err
    assert names(house.folder) == {"live"}
    house.finish(session)
    assert house.outcomes("live") == {index: index for index in range(50)}


def test_a_supervisor_that_runs_is_asked_once_the_batch_is_put_down(house: House) -> None:
    session = house.start([("work", 0.0, n) for n in range(5)], "b")
    with connect(house.folder).socket:
        house.finish(session)
        assert request(house.folder, "prune", batch="b")["aside"] == ".old-b"
        with pytest.raises(BatchNotFound):
            request(house.folder, "prune", batch="b")
        for wrong in ("../b", "", ".old-b", "b/c"):
            with pytest.raises(UsageError, match="cannot be a batch's id"):
                request(house.folder, "prune", batch=wrong)
    assert removal.sweep(house.folder) == []
    assert house.run([("work", 0.0, 7)], "b") == {0: 7}


def test_who_asks_starts_a_supervisor_when_there_is_none(house: House) -> None:
    make(house.folder, "b")
    assert request(house.folder, "prune", batch="b")["aside"] == ".old-b"


def test_no_supervisor_starts_while_a_batch_is_taken_out(house: House) -> None:
    make(house.folder, "b")
    connected: list[bool] = []

    def start() -> None:
        connect(house.folder).close()
        connected.append(True)

    with vacant(house.folder) as is_vacant:
        assert is_vacant
        thread = threading.Thread(target=start)
        thread.start()
        thread.join(0.5)
        assert not connected
        removal.set_aside(house.folder, "b")
    thread.join(20)
    assert connected
    with vacant(house.folder) as is_vacant:
        assert not is_vacant


def test_rows_are_told_in_the_order_of_their_last_change(folder: Path) -> None:
    for age, batch in enumerate(("c", "a", "b")):
        make(folder, batch, age_s=age * DAY_S)
    rows = take_census(folder, {"a"})
    assert [(row.batch, row.state) for row in rows] == [("c", "finished"), ("a", "running"), ("b", "finished")]
    assert all(isinstance(row, Row) and row.disk_bytes > 0 for row in rows)
