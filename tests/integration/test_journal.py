"""The journal of a batch on a real disk: what was committed is there, whoever died, and damage is called damage."""

import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from select import select
from typing import Any

import lmdb
import pytest

from batchd import settings
from batchd.core import entries as e
from batchd.core.facts import BatchFacts
from batchd.core.job import JobState
from batchd.core.stored import stored_of
from batchd.edge import environment
from batchd.edge import journal as journal_module
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.errors import JournalDamaged, JournalError, JournalNewer
from batchd.formats import tables
from batchd.formats.report import Failure
from tests.author import Author, submission, success

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30.0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "b"


def told(journal: BatchJournal, stop: int | None = None) -> dict[int, tuple[JobState, Any]]:
    """Return every outcome as a client reads it: the value of a success, the message of a failure."""
    found: dict[int, tuple[JobState, Any]] = {}
    for span in Outcomes(journal).spans(journal.facts.done, journal.facts.generation, 0, stop):
        assert span.start not in found
        if span.state is JobState.SUCCEEDED:
            found |= {span.start + at: (span.state, value) for at, value in enumerate(span.values())}
        else:
            found |= {index: (span.state, failure.message) for index, failure in span.failures()}
    assert list(found) == sorted(found), "not in the jobs' order"
    return found


def notes_in(journal: BatchJournal) -> dict[int, bytes]:
    with journal.begin() as txn:
        return {tables.INDEX.unpack(key)[0]: bytes(note) for key, note in txn.cursor(journal.table(tables.NOTES))}


def reopened(journal: BatchJournal) -> BatchJournal:
    journal.close()
    return BatchJournal(journal.folder, is_writer=True)


# --- What is loaded is what was committed ----------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint_entries", [1, 4, 2_000])
@pytest.mark.parametrize("seed", range(8))
def test_memory_equals_replay_after_every_commit(
    place: Path, monkeypatch: pytest.MonkeyPatch, seed: int, checkpoint_entries: int
) -> None:
    monkeypatch.setattr(journal_module, "CHECKPOINT_ENTRIES", checkpoint_entries)
    monkeypatch.setattr(journal_module, "RECORD_BYTES_MAX", 300)  # So that a commit makes several records.
    monkeypatch.setattr("batchd.core.costs.COSTLY_JOBS_MAX", 8)  # So that there are costs that are forgotten.
    author = Author("b", seed)
    journal = BatchJournal.create(place, {"durability": "process"})
    for turn in range(40):
        journal.commit(author.commit())
        assert journal.facts == author.facts, f"seed {seed}, turn {turn}: memory"
        assert notes_in(journal) == author.notes, f"seed {seed}, turn {turn}: checkpoints of jobs"
        if turn % 7 == 6:
            journal = reopened(journal)
        assert journal.refresh() == author.facts, f"seed {seed}, turn {turn}: replay"
    assert told(journal) == author.outcomes
    journal = reopened(journal)
    assert (journal.facts, told(journal)) == (author.facts, author.outcomes)
    journal.close()


def test_random_journals_are_worth_reading() -> None:
    kinds: set[type[e.Entry]] = set()
    generations = 0
    for seed in range(8):
        author = Author("b", seed)
        kinds |= {type(entry) for _ in range(40) for entry in author.commit()}
        generations += author.facts.generation
    assert len(kinds) == 13, "an entry is never written"
    assert generations > 8


def test_a_restart_reads_only_the_records_behind_the_checkpoint(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "CHECKPOINT_ENTRIES", 10)
    journal = BatchJournal.create(place, {"durability": "process"})
    journal.commit([submission(journal.facts, list(range(1_000)))])
    for first in range(0, 1_000, 10):
        journal.commit([success("b", first, list(range(first, first + 10)))])
    read: list[int] = []
    scan = BatchJournal._outcomes_in_gaps

    def counted(self: BatchJournal, txn: lmdb.Transaction, facts: BatchFacts) -> Iterator[Any]:
        for found in scan(self, txn, facts):
            read.append(1)
            yield found

    monkeypatch.setattr(BatchJournal, "_outcomes_in_gaps", counted)
    journal = reopened(journal)
    assert journal.facts.done.size == 1_000
    assert len(read) < 10
    journal.close()


def test_acks_of_one_commit_become_few_records(place: Path) -> None:
    journal = BatchJournal.create(place, {})
    journal.commit([submission(journal.facts, list(range(500)))])
    # As they come from two workers, which take turns.
    halves = [(first, 250 + first) for first in range(0, 250, 5)]
    journal.commit([success("b", at, [at] * 5) for pair in halves for at in pair])
    with journal.begin() as txn:
        assert txn.stat(db=journal.table(tables.OUTCOMES))["entries"] == 1
    assert told(journal) == {index: (JobState.SUCCEEDED, index - index % 5) for index in range(500)}
    journal.close()


def test_a_commit_is_all_or_nothing(place: Path) -> None:
    journal = BatchJournal.create(place, {})
    journal.commit([submission(journal.facts, [1, 2, 3])])
    journal.commit([success("b", 0, ["first"])])
    before = pickle.dumps(stored_of(journal.facts))
    with pytest.raises(JournalDamaged, match="recorded twice"):
        journal.commit([success("b", 1, ["new"]), success("b", 0, ["second"]), e.Sealed("b")])
    assert pickle.dumps(stored_of(journal.facts)) == before
    journal = reopened(journal)
    assert pickle.dumps(stored_of(journal.facts)) == before
    assert told(journal) == {0: (JobState.SUCCEEDED, "first")}
    journal.close()


def test_progress_says_what_is_durable(place: Path) -> None:
    journal = BatchJournal.create(place, {"any": "thing"})
    made = journal.commit([e.Attached("b", 1), submission(journal.facts, list("abcde")), e.Sealed("b")])
    assert (made.size, made.is_sealed, made.done, made.prefix, made.state) == (5, True, 0, 0, "sealed")
    made = journal.commit([success("b", 3, ["x"])])
    assert (made.done, made.prefix, made.counts) == (1, 0, {JobState.SUCCEEDED: 1})
    made = journal.commit([success("b", 0, ["x", "y", "z"]), e.Stopped("b", "enough")])
    assert (made.done, made.prefix, made.state, made.reason) == (4, 4, "stopped", "enough")
    journal.usage = {"cpu_s": 1.5}
    journal.commit([e.Detached("b")])
    journal = reopened(journal)
    assert (journal.progress(), journal.spec, journal.read_usage()) == (made, {"any": "thing"}, {"cpu_s": 1.5})
    assert journal.bytes_used() > 0
    journal.close()


# --- Outcomes across generations -------------------------------------------------------------------------------


def failed(first: int, count: int, message: str) -> e.Recorded:
    failure = Failure("Bad", message, b"12345678").encode()
    return e.Recorded("b", first, count, JobState.FAILED, failure=failure)


def test_a_job_that_was_retried_has_its_latest_outcome(place: Path) -> None:
    journal = BatchJournal.create(place, {})
    journal.commit([e.Attached("b", 1), submission(journal.facts, list(range(10)))])
    journal.commit([success("b", 0, [0, 1]), failed(2, 6, "first"), success("b", 8, [8, 9])])
    journal.commit([e.Reopened("b", 1, ((2, 4), (6, 8)), JobState.FAILED)])
    assert sorted(told(journal)) == [0, 1, 4, 5, 8, 9]
    journal.commit([success("b", 3, ["again 3"]), failed(6, 1, "second")])
    journal.commit([success("b", 2, ["again 2"]), failed(7, 1, "second")])
    journal.commit([e.Reopened("b", 2, ((6, 7),), JobState.FAILED)])
    journal.commit([success("b", 6, ["at last"])])
    good, bad = JobState.SUCCEEDED, JobState.FAILED
    expected = [(good, 0), (good, 1), (good, "again 2"), (good, "again 3"), (bad, "first"), (bad, "first")]
    expected += [(good, "at last"), (bad, "second"), (good, 8), (good, 9)]
    assert told(journal) == dict(enumerate(expected))
    journal = reopened(journal)
    assert told(journal) == dict(enumerate(expected))
    part = Outcomes(journal).spans(journal.facts.done, 2, 3, 7)
    assert [index for span in part for index in range(span.start, span.stop)] == [3, 4, 5, 6]
    journal.close()


def test_causes_are_told_once_and_found_by_their_mark(place: Path) -> None:
    journal = BatchJournal.create(place, {})
    for text in (b"first words", b"other words"):
        journal.commit([e.Explained("b", b"12345678", text)])
    assert Outcomes(journal).explain(b"12345678") == "first words"
    assert Outcomes(journal).explain(b"87654321") == ""
    journal.close()


def test_inputs_can_be_looked_at(place: Path) -> None:
    journal = BatchJournal.create(place, {})
    journal.commit([submission(journal.facts, ["a", "b"]), e.Attached("b", 1)])
    journal.commit([submission(journal.facts, [{"c": 1}, ["d"]], sequence=2)])
    assert [Outcomes(journal).input_value(index) for index in range(4)] == ["a", "b", {"c": 1}, ["d"]]
    journal.close()


# --- Deaths ----------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from batchd.core import entries as e
from batchd.edge.journal import BatchJournal
from tests.author import submission, success
place = Path(sys.argv[1])
journal = BatchJournal(place, is_writer=True)
while True:
    first = journal.facts.size
    made = [success("b", first + at, [str(first + at)]) for at in range(0, 50, 2)]
    journal.commit([submission(journal.facts, list(range(first, first + 50)), sequence=first + 1), *made])
    print(journal.facts.size, flush=True)
"""


def run_python(source: str, *args: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", source, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, bufsize=0)  # Nothing hides from select.


def lines_of(process: "subprocess.Popen[bytes]", count: int) -> list[bytes]:
    """Return so many lines of a process, each within the deadline."""
    assert process.stdout is not None
    found = []
    for _ in range(count):
        assert select([process.stdout], [], [], WAIT_S)[0], "it says nothing"
        found.append(process.stdout.readline())
    return found


@pytest.mark.fault
@pytest.mark.parametrize("durability", ["disk", "process"])
@pytest.mark.covers("S1")
def test_a_kill_loses_nothing_that_was_acknowledged(
    place: Path, monkeypatch: pytest.MonkeyPatch, durability: str
) -> None:
    BatchJournal.create(place, {"durability": durability}).close()
    acked = 0
    for lines in (1, 7, 20):
        with run_python(WRITER, place) as process:
            said = lines_of(process, lines)
            process.send_signal(signal.SIGKILL)
            assert process.stdout is not None
            said += process.stdout.read().splitlines()
            acked = max(map(int, said))
        journal = BatchJournal(place)
        size = journal.facts.size
        assert size >= acked
        assert size % 50 == 0, "half a commit is there"
        assert told(journal) == {index: (JobState.SUCCEEDED, str(index)) for index in range(0, size, 2)}
        journal.close()
    assert acked >= 50


READER = """
import sys
from pathlib import Path
from batchd.edge.journal import BatchJournal
from tests.integration.test_journal import told
journal = BatchJournal(Path(sys.argv[1]))
print("open", flush=True)
while True:
    facts = journal.refresh()
    found = told(journal)
    assert len(found) == facts.done.size
    assert all(value == "x" * 900 + str(index) for index, (_, value) in found.items())
    print(facts.done.size, flush=True)
    if facts.is_finished:
        break
"""


@pytest.mark.covers("J4", "J5")
def test_a_reader_follows_while_the_writer_writes_and_the_map_grows(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "MAP_BYTES", 1 << 18)
    journal = BatchJournal.create(place, {"durability": "process"})
    with run_python(READER, place) as process:
        assert lines_of(process, 1) == [b"open\n"]
        jobs = 0
        for turn in range(60):
            values = ["x" * 900 + str(index) for index in range(jobs, jobs + 20)]
            made = [submission(journal.facts, values, sequence=turn + 1), success("b", jobs, values)]
            journal.commit(made)
            jobs += 20
            if turn % 20 == 10:
                lines_of(process, 1)
        journal.commit([e.Sealed("b")])
        assert process.stdout is not None
        seen = [int(line) for line in process.stdout.read().splitlines()]
        assert process.wait(WAIT_S) == 0
    assert seen == sorted(seen)
    assert seen[-1] == jobs
    assert journal._env.info()["map_size"] > 1 << 20, "the map had no need to grow"
    journal = reopened(journal)
    assert journal.facts.done.size == jobs
    journal.close()


@pytest.mark.covers("J4")
def test_one_commit_larger_than_the_map_makes_it_grow_until_it_fits(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "MAP_BYTES", 1 << 17)
    journal = BatchJournal.create(place, {})
    items = [f"{index:01000}" for index in range(2_000)]
    journal.commit([submission(journal.facts, items), e.Sealed("b")])
    assert journal.refresh().size == 2_000
    assert Outcomes(journal).input_value(1_999) == items[-1]
    journal.close()


def test_a_death_while_a_batch_is_made_leaves_nothing_of_that_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(RuntimeError):
            BatchJournal.create(place, {"try": 1})
    assert not place.exists()
    (place.with_name(".new-b") / "data.mdb").write_bytes(b"torn")
    journal = BatchJournal.create(place, {"try": 2})
    assert journal.spec == {"try": 2}
    assert [path.name for path in place.parent.iterdir()] == ["b"]
    journal.close()


def test_what_cannot_be_made_is_a_sentence(place: Path) -> None:
    place.with_name(".new-b").write_text("a file where a folder should be")
    with pytest.raises(JournalError, match=r"cannot make a batch in .*Not a directory"):
        BatchJournal.create(place, {})


def test_a_batch_is_its_owners_alone(place: Path) -> None:
    mask = os.umask(0)
    try:
        BatchJournal.create(place, {}).close()
    finally:
        os.umask(mask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (place, *place.iterdir())}
    files = {"data.mdb": 0o600, "lock.mdb": 0o600, "log.jsonl": 0o600}
    assert modes == {"b": 0o700, "values": 0o700, **files}


# --- Refused ---------------------------------------------------------------------------------------------------


def change(place: Path, table: bytes, key: bytes, value: bytes) -> None:
    """Write past the journal, as damage does."""
    with lmdb.open(str(place), max_dbs=8, map_size=1 << 24, lib_version=0) as env:
        db = env.open_db(table, create=False)
        with env.begin(write=True, db=db) as txn:
            txn.put(key, value)


def value_of(place: Path, table: bytes, key: bytes) -> bytes:
    with lmdb.open(str(place), max_dbs=8, readonly=True, lib_version=0) as env:
        db = env.open_db(table, create=False)
        with env.begin(db=db) as txn:
            return bytes(txn.get(key) or b"")


@pytest.fixture
def written(place: Path) -> Path:
    """A closed batch with inputs, outcomes, a log, and a checkpoint."""
    journal = BatchJournal.create(place, {})
    journal.commit([e.Attached("b", 1), submission(journal.facts, list(range(20))), success("b", 0, ["a", "b"])])
    journal.commit([e.Detached("b")])
    journal.commit([e.Attached("b", 2), success("b", 10, ["c"])])
    journal.close()
    return place


@pytest.mark.covers("J7")
def test_a_newer_format_is_refused_with_both_versions(written: Path) -> None:
    newer = settings.FORMAT_VERSION + 1
    change(written, tables.META, tables.META_FORMAT, json.dumps({"format": newer}).encode())
    for is_writer in (True, False):
        with pytest.raises(JournalNewer, match=f"has format {newer}, this batchd reads up to {newer - 1}"):
            BatchJournal(written, is_writer=is_writer)


def test_what_is_not_there_is_no_batch(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").mkdir()
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(JournalError, match="there is no batch in"):
            BatchJournal(folder)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        (tables.META, tables.META_FORMAT, b"{"),
        (tables.META, tables.META_FORMAT, b"[]"),
        (tables.META, tables.META_FORMAT, b"{}"),
        (tables.META, tables.META_FORMAT, b'{"format": null}'),
        (tables.META, tables.META_SPEC, b"\xff\xff"),
        (tables.META, tables.META_CHECKPOINT, b'{"done": 5'),
        (tables.META, tables.META_CHECKPOINT, b'{"done": 5}'),
        (tables.META, tables.META_CHECKPOINT, b"[]"),
        (tables.META, tables.META_CHECKPOINT, b'{"counts": {"x": 1}}'),
        (tables.META, tables.META_CHECKPOINT, b"{}"),
        (tables.LOG, tables.INDEX.pack(3), b"not JSON"),
        (tables.LOG, tables.INDEX.pack(3), b"[5]"),
        (tables.LOG, tables.INDEX.pack(3), b'[{"entry": "Unknown"}]'),
        (tables.LOG, tables.INDEX.pack(3), b'[{"entry": "Sealed", "what": 1}]'),
        (
            tables.LOG,
            tables.INDEX.pack(4),
            b'[{"entry": "Charged", "first": 99, "count": 1, "history": [0, 0, 0, 0]}]',
        ),
        (tables.LOG, b"short", b'[{"entry": "Sealed"}]'),
        (tables.OUTCOMES, tables.OUTCOME.pack(0, 10), b"no block, but long enough for one"),
        (tables.OUTCOMES, tables.OUTCOME.pack(0, 10), b"short"),
        (tables.OUTCOMES, tables.OUTCOME.pack(0, 0) + b"x", b"extra"),
        (tables.OUTCOMES, tables.OUTCOME.pack(0, 1), success("b", 1, ["twice"]).block),
    ],
)
@pytest.mark.covers("J1")
def test_records_that_do_not_read_as_written_are_damage(
    written: Path, table: bytes, key: bytes, value: bytes
) -> None:
    change(written, table, key, value)
    for is_writer in (True, False, True):  # And the refused one is let go, or the next could not open it.
        with pytest.raises(JournalDamaged, match="b"):
            BatchJournal(written, is_writer=is_writer)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 65_536, b"text" * 30_000])
def test_a_file_that_lmdb_did_not_write_is_refused(written: Path, content: bytes) -> None:
    (written / "data.mdb").write_bytes(content)
    for is_writer in (True, False):
        with pytest.raises(JournalError):
            BatchJournal(written, is_writer=is_writer)


@pytest.mark.covers("J1")
def test_a_flipped_bit_in_an_outcome_is_damage_and_names_the_job(written: Path) -> None:
    key = tables.OUTCOME.pack(0, 10)
    value = bytearray(value_of(written, tables.OUTCOMES, key))
    value[-2] ^= 1
    change(written, tables.OUTCOMES, key, bytes(value))
    journal = BatchJournal(written)
    assert told(journal, stop=10) == {0: (JobState.SUCCEEDED, "a"), 1: (JobState.SUCCEEDED, "b")}
    with pytest.raises(JournalDamaged, match=r"batch b: outcome record near job 10: .*checksum does not match"):
        told(journal)
    journal.close()


def test_an_outcome_that_is_missing_is_damage(written: Path) -> None:
    journal = BatchJournal(written, is_writer=True)
    journal.commit([e.Detached("b")])
    journal.close()
    with lmdb.open(str(written), max_dbs=8, map_size=1 << 24, lib_version=0) as env:
        db = env.open_db(tables.OUTCOMES, create=False)
        with env.begin(write=True, db=db) as txn:
            txn.delete(tables.OUTCOME.pack(0, 10))
    with pytest.raises(
        JournalDamaged, match="the checkpoint tells of 2 outcome records and 0 came later, but there are 1"
    ):
        BatchJournal(written)


def test_a_batch_can_be_copied_to_another_place(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "copy")
    journal = BatchJournal(tmp_path / "copy")
    assert journal.facts.done.size == 3
    journal.close()


def test_what_was_read_can_be_forgotten_to_the_last_record(place: Path) -> None:
    journal = BatchJournal.create(place, {"is_throwaway": True})
    given = submission(journal.facts, ["x" * 40_000, "y" * 40_000])
    journal.commit([e.Attached("b", 1), given, success("b", 0, ["x"]), success("b", 1, ["y"])])
    journal.commit([e.Trimmed("b", ((0, 2),))])
    with journal.begin() as txn:
        left = [txn.stat(db=journal.table(name))["entries"] for name in (tables.INPUTS, tables.OUTCOMES)]
    assert left == [0, 0]
    assert journal.facts.done.size == 2
    journal.close()
