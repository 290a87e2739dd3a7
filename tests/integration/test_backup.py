"""A backup is a journal: whole, readable, of its own, made beside whoever writes, and going on where it was made."""

import argparse
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from batchd.cli import journal as journal_verbs
from batchd.core import entries as e
from batchd.edge.backup import back_up
from batchd.edge.damage import check_batch
from batchd.edge.folder import journal_id, open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.shelf import batch_folders, find_batch, is_newest
from batchd.errors import BatchdError, JournalFull, JournalUnsafe, NotAJournal, UsageError
from batchd.formats import tables
from batchd.settings import FORMAT_VERSION
from tests.author import submission, success
from tests.bench import House, pump_until
from tests.ruin import PAGE_BYTES, SPEC, change, flipped, original
from tests.written import Run


@pytest.fixture
def run(folder: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def run_verb(to: Path, **given: Any) -> tuple[int, str, str]:
        capfd.readouterr()
        known = {"journal": str(folder), "json": False, "act": "backup", "to": str(to)}
        code = journal_verbs.journal(argparse.Namespace(**{**known, **given}))
        return code, *capfd.readouterr()

    return run_verb


def make(folder: Path, batch: str, jobs: int = 20) -> Path:
    journal = BatchJournal.create(folder / "batches" / batch, {**SPEC, "name": batch})
    journal.commit([e.Attached(batch, 1), submission(journal.facts, [f"{at:0500}" for at in range(jobs)])])
    journal.commit([success(batch, 0, ["first"]), e.Detached(batch)])
    journal.close()
    return journal.folder


def copied(folder: Path, target: Path) -> dict[str, str]:
    return {each.batch: each.trouble for each in back_up(folder, target)}


def test_a_backup_reads_as_the_journal_does(folder: Path, run: Run, tmp_path: Path) -> None:
    for age, batch in enumerate(("c", "a", "b")):
        place = make(folder, batch)
        (place / "log.jsonl").write_text(f"{batch} said so\n")
        for path in (place / "data.mdb", place):
            os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    target = tmp_path / "deep" / "copy"
    code, out, err = run(target)
    assert (code, err) == (0, "")
    assert out.startswith("3 batches, ")
    assert f"copied to {target}, and every record was read back\nnext: batchd ls --journal {target}\n" in out
    for batch in "abc":
        here, there = (find_batch(journal, batch) for journal in (folder, target))
        assert (here.spec, here.facts) == (there.spec, there.facts)
        here.close()
        there.close()
        assert check_batch(target / "batches" / batch).is_well
        place = target / "batches" / batch
        assert (place / "log.jsonl").read_text() == f"{batch} said so\n"
        assert place.stat().st_mtime == (folder / "batches" / batch).stat().st_mtime, "reading it made it younger"
        assert (place / "data.mdb").stat().st_mtime < 1_700_000_001
    assert is_newest(target / "batches" / "c")


def test_a_backup_is_its_owners_alone_and_no_twin(folder: Path, tmp_path: Path) -> None:
    make(folder, "a")
    mask = os.umask(0)
    try:
        copied(folder, tmp_path / "copy")
    finally:
        os.umask(mask)
    place = tmp_path / "copy" / "batches" / "a"
    for path in (tmp_path / "copy", place.parent, place, place / "values"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir() if path.is_file()} == {0o600}
    told = json.loads((tmp_path / "copy" / "journal.json").read_text())
    assert told["copy_of"] == journal_id(folder)
    assert told["id"] == journal_id(tmp_path / "copy") != told["copy_of"]
    assert told["epoch"] == json.loads((folder / "journal.json").read_text())["epoch"]
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["batches", "journal.json"]


def test_a_backup_of_nothing_is_a_journal(folder: Path, tmp_path: Path) -> None:
    assert copied(folder, tmp_path / "copy") == {}
    assert open_folder(tmp_path / "copy", create=False) == tmp_path / "copy"


def test_a_backup_gives_no_room_to_what_was_freed(folder: Path, tmp_path: Path) -> None:
    place = make(folder, "a", jobs=2_000)
    with closing(BatchJournal(place, is_writer=True)) as journal:
        for _ in range(50):
            journal.commit([e.Detached("a")])
    copied(folder, tmp_path / "copy")
    sizes = [(journal / "batches" / "a" / "data.mdb").stat().st_size for journal in (tmp_path / "copy", folder)]
    assert sizes[0] < sizes[1]


# --- While it runs, and afterwards -----------------------------------------------------------------------------


@pytest.fixture
def house_of_copies(tmp_path: Path) -> Iterator[Callable[[Path], House]]:
    houses: list[House] = []

    def move_in(folder: Path) -> House:
        houses.append(House(folder))
        return houses[-1]

    yield move_in
    for house in houses:
        house.close()


@pytest.mark.covers("X9")
def test_a_backup_of_a_running_batch_goes_on_by_itself(
    house: House, house_of_copies: Callable[[Path], House], tmp_path: Path
) -> None:
    session = house.start([("work", 0.01, n) for n in range(200)])
    pump_until(session, lambda: session.progress["done"] > 20, "some are done")
    assert copied(house.folder, tmp_path / "copy") == {"b": ""}
    other = house_of_copies(tmp_path / "copy")
    done = other.facts().done.size
    assert 20 <= done < 200
    # Both run at once: neither takes the other's processes for its own.
    assert other.facts().is_attached
    going_on = other.session()
    going_on.open()
    other.finish(going_on)
    house.finish(session)
    for each in (house, other):
        assert each.outcomes() == {index: index for index in range(200)}


@pytest.mark.covers("X6")
def test_an_old_backup_can_be_put_back(
    house: House, house_of_copies: Callable[[Path], House], tmp_path: Path
) -> None:
    session = house.start([("work", 0.005, n) for n in range(400)])
    pump_until(session, lambda: session.progress["done"] > 5, "some are done")
    copied(house.folder, tmp_path / "copy")
    house.finish(session)
    house.close()
    shutil.rmtree(house.folder)
    shutil.copytree(tmp_path / "copy", house.folder)
    restored = house_of_copies(house.folder)
    before = restored.facts().done.size
    assert before < 400, "all were done before it was copied"
    session = restored.session()
    session.open()
    assert session.progress["done"] == before
    restored.finish(session)
    assert restored.outcomes() == {index: index for index in range(400)}


def test_a_batch_that_is_removed_meanwhile_is_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [make(folder, batch) for batch in ("a", "b")]

    def list_and_lose(journal: Path) -> list[Path]:
        found = batch_folders(journal)
        shutil.rmtree(places[0])
        return found

    monkeypatch.setattr("batchd.edge.backup.batch_folders", list_and_lose)
    assert copied(folder, tmp_path / "copy") == {"b": ""}
    assert [path.name for path in (tmp_path / "copy" / "batches").iterdir()] == ["b"]


# --- Damage ----------------------------------------------------------------------------------------------------


def test_a_damaged_batch_is_copied_with_its_damage(folder: Path, run: Run, tmp_path: Path) -> None:
    make(folder, "good")
    for batch, data in (("flipped", _with_a_flip()), ("cut", original().data[: 40 * PAGE_BYTES])):
        place = make(folder, batch)
        (place / "data.mdb").write_bytes(data)
        (place / "lock.mdb").unlink()
    (folder / "batches" / "hollow").mkdir()
    code, out, err = run(tmp_path / "copy")
    assert code == 3
    assert "every record was read back" not in out
    assert "flipped is copied with its damage: outcomes, jobs " in err
    assert "cut is copied with its damage: " in err
    assert "hollow is copied with its damage: there is no data.mdb" in err
    assert "good" not in err
    for batch in ("good", "flipped", "cut"):
        here, there = (check_batch(journal / "batches" / batch) for journal in (folder, tmp_path / "copy"))
        assert here.is_well == there.is_well
        assert here.done == there.done
    told = json.loads(run(tmp_path / "again", json=True)[1])
    assert [(each["batch"], bool(each["damage"])) for each in told["batches"]] == [
        ("cut", True),
        ("flipped", True),
        ("good", False),
        ("hollow", True),
    ]


def _with_a_flip() -> bytes:
    made = original()
    page = next(number for number in range(2, 1 << 16) if b"z" * 3_000 in made.page(number))
    return flipped(made.data, page * PAGE_BYTES + 2_000)


def test_a_newer_batch_is_copied_as_it_is(folder: Path, tmp_path: Path) -> None:
    place = make(folder, "a")
    newer = json.dumps({"format": FORMAT_VERSION + 1}).encode()
    change(place, tables.META, tables.META_FORMAT, newer)
    change(place, tables.META, b"something new", b"{}")
    assert copied(folder, tmp_path / "copy") == {"a": ""}


# --- Refused ---------------------------------------------------------------------------------------------------


def test_a_folder_that_is_in_use_is_refused(folder: Path, tmp_path: Path) -> None:
    make(folder, "a")
    used = tmp_path / "used"
    used.mkdir(0o700)
    (used / "mine").touch()
    writable = tmp_path / "writable"
    writable.mkdir()
    writable.chmod(0o777)
    (tmp_path / "file").touch()
    cases: list[tuple[Path, type[BatchdError], str]] = [
        (folder, UsageError, "lies in the journal itself"),
        (folder / "batches" / "copy", UsageError, "lies in the journal itself"),
        (open_folder(tmp_path / "other"), UsageError, "holds a journal already"),
        (used, NotAJournal, "it holds 'mine'"),
        (writable, JournalUnsafe, "chmod 700"),
        (tmp_path / "file", NotAJournal, "is not a folder"),
    ]
    for target, kind, message in cases:
        with pytest.raises(kind, match=message):
            copied(folder, target)
    assert [path.name for path in used.iterdir()] == ["mine"]


def test_a_backup_that_was_cut_off_is_no_journal_and_begun_again(folder: Path, tmp_path: Path) -> None:
    for batch in ("a", "b"):
        make(folder, batch)
    copying = back_up(folder, tmp_path / "copy")
    assert next(copying).batch == "a"
    copying.close()  # Here it was killed.
    with pytest.raises(NotAJournal):
        open_folder(tmp_path / "copy")
    shutil.rmtree(folder / "batches" / "a")
    assert copied(folder, tmp_path / "copy") == {"b": ""}
    assert sorted(path.name for path in (tmp_path / "copy" / "batches").iterdir()) == ["b"]
    assert find_batch(open_folder(tmp_path / "copy", create=False), "b").facts.size == 20


def test_a_disk_that_is_full_is_a_sentence_and_no_journal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder, "a")

    def fill(*_: object) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("batchd.edge.backup._copy_data", fill)
        with pytest.raises(JournalFull, match=r"cannot hold the copy: No space left on device; it is not finished"):
            copied(folder, tmp_path / "copy")
    assert not (tmp_path / "copy" / "journal.json").exists()
    assert copied(folder, tmp_path / "copy") == {"a": ""}


def test_a_limit_on_files_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    make(folder, "a", jobs=2_000)
    process = subprocess.run(
        [sys.executable, "-m", "batchd", "journal", "backup", str(tmp_path / "copy"), "--journal", str(folder)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 3
    assert "cannot hold the copy: File too large" in process.stderr
    assert "Traceback" not in process.stderr
