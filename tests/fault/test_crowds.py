"""So many read a batch that there is no place for another: nobody takes that for damage, and no job is to blame."""

import json
from pathlib import Path

import pytest

from batchd.core import events as ev
from batchd.edge.damage import check_batch
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.errors import JournalCrowded
from tests.author import submission
from tests.bench import Bench, is_alive, key_spec, listening
from tests.commands import Desk, squares, until
from tests.fault import tasks
from tests.fault.ledger import Tally
from tests.fault.test_clients import program

pytestmark = pytest.mark.fault
WORDS = "4096 readers are in"

CROWD = """
import sys, lmdb
env = lmdb.open(sys.argv[1], readonly=True, max_dbs=9, max_spare_txns=0)
txns = []
try:
    while True:
        txns.append(env.begin())
except lmdb.ReadersFullError:
    print("there", flush=True)
sys.stdin.read()
"""


@pytest.mark.covers("J6")
def test_a_full_table_of_readers_is_an_error_in_words_and_over_when_they_go(tmp_path: Path, tally: Tally) -> None:
    """4096 readers; the process that holds them is killed, and its slots are free again."""
    BatchJournal.create(tmp_path / "b", {}).close()
    with program(CROWD, tmp_path / "b"):
        with pytest.raises(JournalCrowded, match=WORDS):
            BatchJournal(tmp_path / "b")
        with pytest.raises(JournalCrowded, match=WORDS):
            check_batch(tmp_path / "b")
    reader = BatchJournal(tmp_path / "b")
    assert list(Outcomes(reader).spans(reader.facts.done, 0)) == []
    reader.close()
    tally.injected(4096)


@pytest.mark.covers("J6")
def test_who_has_the_batch_open_is_told_the_same_and_can_go_on(tmp_path: Path) -> None:
    writer = BatchJournal.create(tmp_path / "b", {})
    writer.commit([submission(writer.facts, [1, 2])])
    with program(CROWD, tmp_path / "b"):
        with pytest.raises(JournalCrowded, match=WORDS):
            writer.read_usage()
        with pytest.raises(JournalCrowded, match=WORDS), writer.held():
            pass
        assert writer.bytes_reusable() == 0
        writer.commit([submission(writer.facts, [3], sequence=2)])
    assert writer.was_crowded
    assert writer.read_usage() == {}, "the dead have no place any more"
    with writer.held() as txn:
        assert txn is not None
    for _ in range(2):
        writer.clear_places()  # The second time it was put down meanwhile.
        writer.close()


@pytest.mark.covers("J6")
def test_who_opens_it_beside_a_reader_of_the_same_process_is_told_the_same(tmp_path: Path) -> None:
    BatchJournal.create(tmp_path / "b", {}).close()
    reader = BatchJournal(tmp_path / "b")
    with program(CROWD, tmp_path / "b"), pytest.raises(JournalCrowded, match=WORDS):
        BatchJournal(tmp_path / "b")
    another = BatchJournal(tmp_path / "b")
    assert another.read_usage() == {}, "the dead have no place any more"
    another.close()
    assert reader.read_usage() == {}, "nor has it closed the tables of the other"
    reader.close()


@pytest.mark.covers("J6")
def test_under_a_running_batch_readers_are_refused_and_jobs_go_on(desk: Desk, tally: Tally) -> None:
    """Whoever wants results as they come is told and may come again."""
    jobs, go = 50, desk.folder / "go"
    desk.environ["GO"] = str(go)
    task = (f"{tasks.__file__}:waits_for_go", "--range", f"0:{jobs}", "-j", "2", "--name", "b")
    process = desk.start("run", *task, "--out", "out.jsonl")
    desk.wait_for_jobs(2, process)
    (folder,) = (desk.journal / "batches").iterdir()
    with program(CROWD, folder):
        go.touch()
        _, err = process.communicate(timeout=60)
        assert (process.returncode, WORDS in err, "Traceback" in err) == (3, True, False), err
        listed = desk.run("ls")
        assert listed.stdout.splitlines()[1].split() == [folder.name, "crowded"]
        assert WORDS in listed.stderr
        for verb in (("show", "b"), ("show", folder.name)):
            shown = desk.run(*verb)
            assert (shown.returncode, WORDS in shown.stderr) == (3, True), shown.stderr
        (told,) = json.loads(desk.run("journal", "check", "--json").stdout)["batches"]
        assert (told["state"], told["damage"]) == ("unreadable", [])
        assert WORDS in told["error"]
    again = desk.run("run", *task, "--out", "out.jsonl")
    assert again.returncode == 0, again.stderr
    assert desk.values() == squares(jobs)
    tally.injected(4096)


@pytest.mark.covers("J6")
def test_readers_that_were_killed_under_a_running_batch_are_in_nobodys_way(desk: Desk) -> None:
    desk.environ["GO"] = str(desk.folder / "go")
    process = desk.start("run", f"{tasks.__file__}:waits_for_go", "--range", "0:2", "-j", "1", "--name", "b")
    desk.wait_for_jobs(1, process)
    (folder,) = (desk.journal / "batches").iterdir()
    with program(CROWD, folder):
        pass
    until(lambda: desk.run("show", "b").returncode == 0, "it can be read again", process)
    (desk.folder / "go").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.mark.covers("J6")
def test_a_worker_waits_for_its_place_and_its_job_that_has_ended_is_not_timed(bench: Bench, tmp_path: Path) -> None:
    """Once before it has the batch open, and once at the next segment: there are two."""
    door, folder = tmp_path / "door", tmp_path / "journal" / "batches" / "b"
    journal = BatchJournal.create(folder, {})
    journal.commit([submission(journal.facts, [("announce", str(door)), ("announce", str(door), 0.2)])])
    journal.commit([submission(journal.facts, [("same", "next")], sequence=2)])
    journal.close()
    assert bench.add_key(key_spec()) == ""
    worker = bench.start()
    with listening(door) as hear:
        with program(CROWD, folder):
            number = bench.lease(worker, 0, 3, is_timed=True)
            for _ in range(5):
                bench.turn()
            assert is_alive(worker.pid)
            assert bench.told(number) == []
        hear()
        hear()
        with program(CROWD, folder):
            bench.until(lambda: len(bench.told(number)) == 2, "the first two are over")
            at = ev.Position(number, 1, ev.Phase.REPORTING)
            seen: list[ev.Position | None] = []

            def stays() -> bool:
                seen.append(worker.slot.position())
                return seen[-3:] == [at] * 3

            bench.until(stays, "it waits, as one that reports")
            assert is_alive(worker.pid)
    ended = bench.await_event(ev.LeaseEnded)
    assert ended.stop == 3
    assert [told.value for told in bench.told(number)][2] == "next"
