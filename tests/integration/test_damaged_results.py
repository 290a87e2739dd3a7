"""What a damaged outcome costs who wants the results: its own jobs, and never a file that may be better."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import batchd
from batchd.cli import results
from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Gap, Outcomes
from batchd.formats import tables
from batchd.formats.report import Failure, fingerprint
from tests.ruin import change, flipped, stored
from tests.written import Run, failed, make, succeeded

WHY = "checksum does not match"


def thirty(folder: Path) -> Path:
    """Make a batch of 30 jobs in three records."""
    make(folder, "abc1", size=30)
    place = folder / "batches" / "abc1"
    with closing(BatchJournal(place, is_writer=True)) as journal:
        for first in (0, 10, 20):
            journal.commit([succeeded("abc1", first, *(f"value {index}" for index in range(first, first + 10)))])
        journal.commit([e.Sealed("abc1")])
    return place


def damage(place: Path, first: int, at: int = -1, generation: int = 0) -> None:
    """Flip a bit of an outcome record."""
    key = tables.OUTCOME.pack(generation, first)
    record = stored(place, tables.OUTCOMES)[key]
    change(place, tables.OUTCOMES, key, flipped(record, at % len(record)))


@pytest.mark.covers("J1")
def test_a_damaged_record_costs_its_own_jobs(folder: Path, run: Run) -> None:
    damage(thirty(folder), 10)
    why = "outcome record near job 10: block of jobs 10..: checksum does not match"
    for json_too in (False, True):
        code, out, err = run(results.results, values=True, json=json_too)
        assert code == 3
        found = json.loads(out)["results"] if json_too else out.splitlines()
        assert found == [f"value {index}" for index in (*range(10), *range(20, 30))]
        assert (err.count("abc1: jobs 10-19: batch abc1: " + why), len(err.splitlines())) == (1, 1)
    code, out, err = run(results.results)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert [line["index"] for line in lines] == list(range(30))
    assert [line["state"] for line in lines] == ["succeeded"] * 10 + ["damaged"] * 10 + ["succeeded"] * 10
    assert why in lines[10]["error"]["message"]
    code, out, err = run(results.results, batch="abc1:15")
    assert (code, json.loads(out)["state"], "abc1:15: batch abc1: outcome record near job 15" in err) == (
        3,
        "damaged",
        True,
    )
    assert run(results.results, batch="abc1:25", values=True) == (0, "value 25\n", "")


@pytest.mark.covers("J1")
@pytest.mark.parametrize("values", [False, True])
def test_a_file_of_results_is_not_replaced_by_a_damaged_one(
    folder: Path, run: Run, tmp_path: Path, values: bool
) -> None:
    damage(thirty(folder), 20)
    file = tmp_path / "out.jsonl"
    file.write_text('{"index": 0, "state": "succeeded", "result": "the last copy"}\n')
    code, _, err = run(results.results, output=str(file), values=values)
    assert code == 3
    assert "the last copy" in file.read_text()
    lines = 20 if values else 30
    assert f"{file} may have them: it is as it was, and what can be read is in {file}.partial" in err
    assert len(Path(f"{file}.partial").read_text().splitlines()) == lines


def pieces(place: Path) -> Iterator[tuple[int, int, str]]:
    """Give (start, stop, state) of everything that has an outcome."""
    with closing(BatchJournal(place)) as journal:
        for piece in Outcomes(journal).pieces(journal.facts.done, journal.facts.generation):
            yield piece.start, piece.stop, "damaged" if isinstance(piece, Gap) else piece.state.name.lower()


@pytest.mark.covers("J1")
def test_a_damaged_record_of_a_retry_costs_what_it_may_have_held(folder: Path) -> None:
    """How far it reached is not known. What had succeeded before is no part of it."""
    no = Failure("ValueError", "no", fingerprint("no"))
    make(folder, "abc1", size=30)
    place = folder / "batches" / "abc1"
    with closing(BatchJournal(place, is_writer=True)) as journal:
        journal.commit([succeeded("abc1", 0, *range(3))])
        journal.commit([failed("abc1", 3, no)])
        journal.commit([succeeded("abc1", 4, *range(16))])
        journal.commit([failed("abc1", 20, no, state=JobState.QUARANTINED)])
        journal.commit([succeeded("abc1", 21, *range(9))])
        journal.commit([e.Sealed("abc1"), e.Reopened("abc1", 1, ((3, 4),), JobState.FAILED)])
        journal.commit([succeeded("abc1", 3, "at last")])
    sound = [(0, 3), (3, 4), (4, 20), (20, 21), (21, 30)]
    assert [piece[:2] for piece in pieces(place)] == sound
    damage(place, 3, generation=1)
    states = ["succeeded", "damaged", "succeeded", "damaged", "succeeded"]
    assert list(pieces(place)) == [(*jobs, state) for jobs, state in zip(sound, states, strict=True)]


@pytest.mark.covers("J1")
def test_a_damaged_block_costs_no_other_of_its_record(folder: Path) -> None:
    no = Failure("ValueError", "no", fingerprint("no"))
    make(
        folder,
        "abc1",
        succeeded("abc1", 0, *range(5)),
        failed("abc1", 5, no, no),
        succeeded("abc1", 7, *range(3)),
        size=10,
    )
    place = folder / "batches" / "abc1"
    (record,) = stored(place, tables.OUTCOMES).values()
    middle = failed("abc1", 5, no, no).block
    damage(place, 0, record.index(middle) + len(middle) - 1)
    assert list(pieces(place)) == [(0, 5, "succeeded"), (5, 7, "damaged"), (7, 10, "succeeded")]


@pytest.mark.covers("J1")
def test_a_damaged_value_file_is_damage(folder: Path, run: Run) -> None:
    made = list(batchd.map("x".ljust, [1, 2 << 20, 1], name="b", journal=folder, workers=1))
    assert list(map(len, made)) == [1, 2 << 20, 1]
    (file,) = (path for path in folder.glob("batches/*/values/*") if path.stat().st_size > 1 << 20)
    file.write_bytes(flipped(file.read_bytes(), 1 << 20))
    code, out, err = run(results.results)
    assert (code, err.count("`batchd journal salvage`")) == (3, 1)
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["succeeded", "damaged", "succeeded"]
    code, out, err = run(results.results, values=True)
    assert (code, out, err.count("`batchd journal salvage`")) == (3, "x\nx\n", 1)
