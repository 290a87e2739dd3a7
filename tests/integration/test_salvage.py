"""What is damaged costs its own range: everything else is brought out, and nothing that is brought out is wrong."""

import argparse
import json
import os
import pickle
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from batchd.cli import journal as journal_verbs
from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.environment import open_environment
from batchd.edge.folder import open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.salvage import Salvage
from batchd.errors import JournalError, UsageError
from batchd.formats import pages, tables
from batchd.formats.report import Failure
from batchd.formats.segment import HEADER_BYTES, pack_items
from tests.author import submission, success
from tests.fault.ledger import Tally
from tests.ruin import (
    PAGE_BYTES,
    SPEC,
    Original,
    brought_out,
    change,
    flipped,
    original,
    overwritten,
    place_of,
)
from tests.written import Run

Ruin = Callable[[Original, Random], bytes]


def flip_a_bit(made: Original, random: Random) -> bytes:
    page = random.randrange(len(made.data) // PAGE_BYTES)
    offset = random.randrange(64 if random.random() < 0.5 else PAGE_BYTES)
    return flipped(made.data, page * PAGE_BYTES + offset, random.randrange(8))


def lose_a_sector(made: Original, random: Random) -> bytes:
    what = bytes(512) if random.random() < 0.5 else random.randbytes(512)
    return overwritten(made.data, random.randrange(len(made.data) // 512) * 512, what)


def lose_a_page(made: Original, random: Random) -> bytes:
    other = made.page(random.randrange(len(made.data) // PAGE_BYTES))
    what = random.choice((bytes(PAGE_BYTES), random.randbytes(PAGE_BYTES), other))
    return overwritten(made.data, random.randrange(len(made.data) // PAGE_BYTES) * PAGE_BYTES, what)


def cut_off(made: Original, random: Random) -> bytes:
    return made.data[: random.randrange(len(made.data))]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
@pytest.mark.parametrize("ruin", [flip_a_bit, lose_a_sector, lose_a_page, cut_off])
@pytest.mark.covers("J1", "J2", "X7")
def test_nothing_that_is_brought_out_is_wrong(tmp_path: Path, ruin: Ruin, seed: int, tally: Tally) -> None:
    made, random = original(), Random(seed)
    for turn in range(10):
        place = place_of(tmp_path, ruin(made, random))
        where = f"{ruin.__name__}, seed {seed}, turn {turn}"
        with Salvage(place) as salvage:
            outcomes, inputs = brought_out(salvage)
            wrong = {index: told for index, told in outcomes.items() if made.outcomes.get(index) != told}
            assert wrong == {}, where
            assert {index: given for index, given in inputs.items() if made.inputs.get(index, given) != given} == {}
            assert not outcomes.keys() & inputs.keys(), where
            lost = made.outcomes.keys() - outcomes.keys()
            gone = made.inputs.keys() - inputs.keys() - outcomes.keys()
            if lost or gone:
                assert salvage.findings, where
            if ruin is flip_a_bit:
                assert len(lost) <= 60, where
                # A vector of numbers is one record; every other record holds a few jobs.
                assert len(gone) <= 6 or min(gone) >= made.size - 30_000, where
            for index in gone:
                assert index >= salvage.size or index in salvage.lost_inputs, where
    tally.injected(10, "X7", *(["J1"] if ruin is flip_a_bit else ["J2"] if ruin is cut_off else []))
    tally.count("bit flips", 10 if ruin is flip_a_bit else 0)


def test_a_whole_batch_loses_nothing(tmp_path: Path) -> None:
    made = original()
    with Salvage(place_of(tmp_path, made.data)) as salvage:
        assert brought_out(salvage) == (made.outcomes, made.inputs)
        assert (salvage.findings, salvage.size, salvage.unplaced) == ([], made.size, [])
        assert not salvage.lost_outcomes
        assert not salvage.lost_inputs
        assert salvage.spec == SPEC


@pytest.mark.covers("X7")
def test_records_are_found_without_any_tree(tmp_path: Path) -> None:
    made = original()
    data = made.data
    for number in range(made.header.last_page + 1):
        page = made.page(number)
        is_root = number < pages.HEADER_PAGES or pages.flags_of(page) == pages.BRANCH
        if is_root or number in {made.header.main.root, made.tree(tables.INPUTS).root}:
            data = overwritten(data, number * PAGE_BYTES, bytes(PAGE_BYTES))
    with Salvage(place_of(tmp_path, data)) as salvage:
        outcomes, _ = brought_out(salvage)
        assert salvage.findings
        successes = {index for index, (state, _) in made.outcomes.items() if state is JobState.SUCCEEDED}
        assert successes <= outcomes.keys()
        assert all(outcomes[index] == made.outcomes[index] for index in successes)


def test_one_header_is_enough(tmp_path: Path) -> None:
    made = original()
    older = 1 - made.header.number
    with Salvage(place_of(tmp_path, overwritten(made.data, older * PAGE_BYTES, bytes(200)))) as salvage:
        assert brought_out(salvage) == (made.outcomes, made.inputs)
    with Salvage(place_of(tmp_path, overwritten(made.data, made.header.number * PAGE_BYTES, bytes(200)))) as salvage:
        outcomes, _ = brought_out(salvage)
        assert len(outcomes) >= len(made.outcomes) - 4, "more is lost than the last commit"


def test_without_the_table_of_tables_the_one_before_serves(tmp_path: Path) -> None:
    made = original()
    place = place_of(tmp_path, overwritten(made.data, made.header.main.root * PAGE_BYTES, bytes(PAGE_BYTES)))
    with Salvage(place) as salvage:
        outcomes, inputs = brought_out(salvage)
        assert salvage.spec == SPEC
        doubtful = {index for share in salvage.doubtful for index in range(share.start, share.stop)}
        assert len(outcomes.keys() | doubtful) >= len(made.outcomes) - 4
        assert inputs.keys() >= made.inputs.keys() - outcomes.keys()


# --- What counts as the outcome --------------------------------------------------------------------------------


def failed(first: int, count: int) -> e.Recorded:
    failure = Failure("Bad", f"generation of {first}", b"12345678").encode()
    return e.Recorded("b", first, count, JobState.FAILED, failure=failure)


@pytest.fixture
def retried(tmp_path: Path) -> Path:
    """Ten jobs: two of three failures were retried, and one of these succeeded then."""
    journal = BatchJournal.create(tmp_path / "b", SPEC)
    journal.commit([e.Attached("b", 1), submission(journal.facts, list(range(10)))])
    journal.commit([success("b", 0, ["zero", "one"]), failed(2, 3)])
    journal.commit([e.Reopened("b", 1, ((3, 5),), JobState.FAILED)])
    journal.commit([success("b", 3, ["again"])])
    journal.close()
    return tmp_path / "b"


def test_a_job_that_is_to_run_again_has_no_outcome(retried: Path) -> None:
    with Salvage(retried) as salvage:
        outcomes, inputs = brought_out(salvage)
    assert {index: state.name for index, (state, _) in outcomes.items()} == {
        0: "SUCCEEDED",
        1: "SUCCEEDED",
        2: "FAILED",
        3: "SUCCEEDED",
    }
    assert inputs == {index: index for index in range(4, 10)}


def test_an_old_failure_is_not_taken_for_what_became_of_the_job(retried: Path, tmp_path: Path) -> None:
    journal = BatchJournal(retried, is_writer=True)
    journal.commit([e.Detached("b")])  # The checkpoint knows of job 3 now.
    journal.close()
    (tmp_path / "copy").mkdir()
    with closing(open_environment(retried, readonly=True)) as env:
        env.copy(str(tmp_path / "copy"), compact=True)  # Without the pages of earlier transactions.
    data = (tmp_path / "copy" / "data.mdb").read_bytes()
    assert data.count(b"again") == 1
    with Salvage(place_of(tmp_path, flipped(data, data.index(b"again")))) as salvage:
        outcomes, inputs = brought_out(salvage)
        assert 3 not in outcomes
        assert inputs[3] == 3
        assert list(salvage.lost_outcomes) == [(3, 4)]
        assert [(share.start, share.stop) for share in salvage.doubtful] == [(3, 4)]


def test_inputs_with_a_changed_key_keep_their_place(tmp_path: Path) -> None:
    made = original()
    page = made.leaf(tables.INPUTS)
    nodes, _ = pages.nodes_of(made.page(page), is_branch=False)
    number = next(at for at, node in enumerate(nodes) if 0 < at < len(nodes) - 1)
    where = page * PAGE_BYTES + made.page(page).index(nodes[number].key, PAGE_BYTES // 4)
    for bit in (0, 7):
        with Salvage(place_of(tmp_path, flipped(made.data, where + 2, bit))) as salvage:
            assert brought_out(salvage)[1] == made.inputs
            assert not salvage.lost_inputs


def test_inputs_without_a_key_are_brought_out_without_a_place(tmp_path: Path) -> None:
    journal = BatchJournal.create(tmp_path / "b", SPEC)
    for sequence in (1, 2):
        journal.commit([submission(journal.facts, [str(sequence) * 5_000], sequence=sequence)])
    journal.close()
    data = (tmp_path / "b" / "data.mdb").read_bytes()
    leaf = next(
        number
        for number in reversed(range(2, len(data) // PAGE_BYTES))
        if pages.flags_of(page := data[number * PAGE_BYTES :][:PAGE_BYTES]) == pages.LEAF
        and [node.key for node in pages.nodes_of(page, is_branch=False)[0]]
        == [tables.INDEX.pack(0), tables.INDEX.pack(1)]
    )
    with Salvage(place_of(tmp_path, overwritten(data, leaf * PAGE_BYTES, bytes(PAGE_BYTES)))) as salvage:
        known = {share.start for share in salvage.inputs}
        found = [salvage.block(piece).values() for piece in salvage.unplaced]
        # A page of the transaction before may still tell of the first.
        assert sorted(found) == sorted([str(index + 1) * 5_000] for index in {0, 1} - known)
        assert list(salvage.lost_inputs) == list(RangeSet((index, index + 1) for index in {0, 1} - known))


# --- The verb --------------------------------------------------------------------------------------------------


class Deadly:
    """A value that kills whoever reads it back."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _die, ()


class Stubborn:
    """A value that does not read back."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, ()


def _die() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


def _raise() -> None:
    raise RuntimeError("not here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return open_folder(tmp_path / "journal")


@pytest.fixture
def run(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run_verb(act: str, **given: Any) -> tuple[int, str, str]:
        known = {"journal": str(folder), "json": False, "batch": None, "act": act, "to": "out"}
        capfd.readouterr()
        code = journal_verbs.journal(argparse.Namespace(**{**known, **given}))
        return code, *capfd.readouterr()

    return run_verb


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pickles_of(path: Path) -> list[Any]:
    found = []
    with path.open("rb") as file:
        while file.peek(1):
            found.append(pickle.load(file))
    return found


def make(folder: Path, inputs: list[Any], *entries: e.Entry, **spec: Any) -> Path:
    journal = BatchJournal.create(folder / "batches" / "b", {**SPEC, **spec})
    journal.commit([e.Attached("b", 1), submission(journal.facts, inputs), e.Sealed("b"), *entries])
    journal.close()
    return journal.folder


@pytest.mark.parametrize("pages_left", [0, 2])
def test_of_an_emptied_batch_it_is_said_that_all_is_lost(folder: Path, run: Run, pages_left: int) -> None:
    place = make(folder, list("abcdef"), success("b", 0, [1, "two"]))
    os.truncate(place / "data.mdb", pages_left * 4096)
    code, out, _ = run("salvage", batch="b")
    assert code == 3
    assert "lost: all of it" in out
    assert "nothing that the journal knows of" not in out


def test_the_files_hold_what_was_brought_out(folder: Path, run: Run, tmp_path: Path) -> None:
    cause = e.Explained("b", b"12345678", b"Traceback: bad")
    place = make(folder, list("abcdef"), success("b", 0, [1, "two"]), failed(2, 1), cause, e.Noted("b", 4, b"half"))
    (place / "log.jsonl").write_text("said\n")
    code, out, _ = run("salvage", batch="b")
    assert code == 0
    assert "b: 3 outcomes are in out/outcomes.jsonl" in out
    assert "inputs of 3 jobs without an outcome are in out/inputs.jsonl" in out
    assert "lost: nothing that the journal knows of" in out
    assert "next: batchd run tests.jobs:act out/inputs.jsonl --out out/rest.jsonl" in out
    target = tmp_path / "out"
    assert lines_of(target / "outcomes.jsonl") == [
        {"index": 0, "state": "succeeded", "result": 1},
        {"index": 1, "state": "succeeded", "result": "two"},
        {"index": 2, "state": "failed", "error": {"type": "Bad", "message": "generation of 2"}},
    ]
    assert lines_of(target / "inputs.jsonl") == ["d", "e", "f"]
    assert lines_of(target / "causes.jsonl") == [{"fingerprint": b"12345678".hex(), "traceback": "Traceback: bad"}]
    assert pickles_of(target / "values.pickle") == [("note", 4, b"half")]
    assert (target / "log.jsonl").read_text() == "said\n"
    assert [path for path in (target, *target.iterdir()) if path.stat().st_mode & 0o77] == []
    report = json.loads((target / "report.json").read_text())
    assert report["inputs"] == {"count": 3, "jobs": [[3, 6]], "unlike": [], "unreadable": []}
    assert report["spec"]["task"] == ["tests.jobs", "act"]


def test_a_value_that_kills_its_reader_costs_itself(folder: Path, run: Run, tmp_path: Path) -> None:
    payloads = [pickle.dumps(value) for value in ("first", Deadly(), "third", Stubborn(), Deadly(), object, "last")]
    block = pack_items(0, JobState.SUCCEEDED, payloads)
    inputs = ["x"] * 7 + [Deadly(), {"an": "input"}, Stubborn(), b"bytes", float("nan"), (1, 2), object]
    make(folder, inputs, e.Recorded("b", 0, 7, JobState.SUCCEEDED, block))
    code, out, _ = run("salvage", batch="b")
    assert code == 0
    assert "4 results do not read back here" in out
    target = tmp_path / "out"
    told = lines_of(target / "outcomes.jsonl")
    assert [line["index"] for line in told] == list(range(7))
    assert [line.get("result") for line in told] == ["first", None, "third", None, None, None, "last"]
    assert "killed by SIGSEGV" in told[1]["error"]["message"]
    assert "RuntimeError('not here')" in told[3]["error"]["message"]
    assert lines_of(target / "inputs.jsonl") == [{"an": "input"}, "bytes", None, [1, 2]]
    report = json.loads((target / "report.json").read_text())
    assert report["inputs"]["jobs"] == [[8, 9], [10, 13]]
    assert report["inputs"]["unlike"] == [10, 11, 12, 13]
    assert [index for index, _ in report["inputs"]["unreadable"]] == [7, 9]
    kept = {(kind, key) for kind, key, _ in pickles_of(target / "values.pickle")}
    results = {("result", index) for index in (1, 3, 4, 5)}
    assert kept == results | {("input", index) for index in (7, 9, 10, 11, 12, 13)}


def test_what_is_lost_is_told_by_range(folder: Path, run: Run) -> None:
    place = make(folder, list(range(40)), *(success("b", first, [first] * 4) for first in (0, 20)))
    data = (place / "data.mdb").read_bytes()
    at = data.rindex(success("b", 20, [20] * 4).block)
    (place / "data.mdb").write_bytes(flipped(data, at + HEADER_BYTES + 5))
    code, out, _ = run("check")
    assert code == 3
    assert "outcomes, jobs 20-23 (page " in out
    assert "1 batch: 1 damaged" in out
    assert f"next: batchd journal salvage b --to salvaged-b --journal {folder.name}" in out
    code, out, _ = run("salvage", batch="b")
    assert code == 0
    assert "1 damaged places are named in out/report.json" in out
    assert f"batchd prune b --journal {folder.name} (removes the damaged batch)" in out
    told = json.loads(run("salvage", batch="b", to="again", json=True)[1])
    assert told["outcomes"]["count"] == 4
    assert told["inputs"]["jobs"] == [[4, 40]]
    assert told["damage"][0]["start"] == 20


def test_the_check_tells_programs_everything(folder: Path, run: Run) -> None:
    place = make(folder, [1, 2])
    (folder / "batches" / "hollow").mkdir()
    assert run("check", batch="b") == (
        0,
        "b  fine  0 of 2 jobs done\n1 batch: every record reads back as it was written\n",
        "",
    )
    code, out, _ = run("check", json=True)
    assert code == 3
    told = json.loads(out)
    assert (told["is_well"], [each["state"] for each in told["batches"]]) == (False, ["fine", "damaged"])
    assert told["batches"][1]["damage"][0]["text"] == "file: there is no data.mdb"
    change(place, tables.META, tables.META_FORMAT, json.dumps({"format": 99}).encode())
    code, out, _ = run("check", batch="b")
    assert code == 3
    assert "b  newer: " in out
    assert "1 batch: 1 not checked" in out


def test_a_folder_in_use_is_refused(folder: Path, run: Run, tmp_path: Path) -> None:
    make(folder, [1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UsageError, match="out is not empty"):
        run("salvage", batch="b")
    with pytest.raises(JournalError, match=r"mine/deep cannot be written: Not a directory|File exists"):
        run("salvage", batch="b", to="out/mine/deep")
    (folder / "batches" / "hollow").mkdir()
    with pytest.raises(JournalError, match=r"there is no data\.mdb"):
        run("salvage", batch="hollow")
