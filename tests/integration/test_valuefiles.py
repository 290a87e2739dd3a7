"""Large values in files of their own: read by everybody, named by one record, gone with it, and missed when gone."""

import json
import os
import signal
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchd
from batchd.client import batch_id, request
from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.edge import removal
from batchd.edge.backup import back_up
from batchd.edge.damage import check_batch
from batchd.edge.folder import disk_bytes, open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.edge.salvage import Salvage
from batchd.errors import InputChanged
from batchd.formats import tables
from batchd.settings import VALUE_FILE_BYTES_MIN
from batchd.worker import main, valuefiles
from batchd.worker.valuefiles import VALUES_NAME, ValueFiles, is_value
from tests.bench import await_death
from tests.commands import Desk, dead, until
from tests.contract.calls import note, notes
from tests.fault.ledger import Tally
from tests.ruin import brought_out
from tests.values import JOBS, author, files_of, large, locks_of, named_in

_NUMBERS = VALUE_FILE_BYTES_MIN // 8 + 1


def results_of(place: Path) -> list[Any]:
    journal = BatchJournal(place)
    spans = Outcomes(journal).spans(journal.facts.done, journal.facts.generation)
    found = [value for span in spans for value in span.values()]
    journal.close()
    return found


# --- In a journal -----------------------------------------------------------------------------------------------


def test_values_are_read_back_and_nothing_is_left_over(tmp_path: Path) -> None:
    journal = author(tmp_path / "b")
    assert [Outcomes(journal).input_value(index) for index in range(JOBS)] == [large(index) for index in range(JOBS)]
    assert journal.bytes_used() == disk_bytes(tmp_path / "b") > 6 * VALUE_FILE_BYTES_MIN
    assert (tmp_path / "b" / "data.mdb").stat().st_size < VALUE_FILE_BYTES_MIN
    journal.close()
    assert results_of(tmp_path / "b") == [large(0, "out"), large(1, "out")]
    assert files_of(tmp_path / "b") == set(named_in(tmp_path / "b", tables.INPUTS, tables.OUTCOMES))
    assert check_batch(tmp_path / "b").is_well
    for file in (tmp_path / "b" / VALUES_NAME).iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "b" / VALUES_NAME).stat().st_mode) == 0o700


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.covers("J8")
@pytest.mark.parametrize(
    ("ruin", "told"),
    [(cut, "bytes are there"), (flip, "its checksum does not match"), (Path.unlink, "is missing")],
    ids=["torn", "changed", "missing"],
)
def test_what_happened_to_a_file_is_told_by_its_job_and_costs_that_job_alone(
    tmp_path: Path, ruin: Callable[[Path], None], told: str, tally: Tally
) -> None:
    place = tmp_path / "b"
    author(place).close()
    ruin(place / VALUES_NAME / named_in(place, tables.OUTCOMES)[0])
    ruin(place / VALUES_NAME / named_in(place, tables.INPUTS)[3])
    tally.injected(2)
    first, second = check_batch(place).findings
    assert (first.table, first.start, first.stop) == ("inputs", 3, 4)
    assert (second.table, second.start, second.stop) == ("outcomes", 0, 1)
    assert all(told in finding.what for finding in (first, second))
    with Salvage(place) as salvage:
        outcomes, inputs = brought_out(salvage)
        assert outcomes == {1: (JobState.SUCCEEDED, large(1, "out"))}
        assert inputs == {0: large(0), 2: large(2)}
        assert list(salvage.lost_outcomes) == [(0, 1)]
        assert list(salvage.lost_inputs) == [(3, 4)]


def test_a_backup_has_copies_of_its_own(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "journal")
    author(folder / "batches" / "b").close()
    (folder / "batches" / "b" / VALUES_NAME / "not ours").write_text("x")
    (copied,) = back_up(folder, tmp_path / "copy")
    place = tmp_path / "copy" / "batches" / "b"
    assert (copied.batch, copied.trouble) == ("b", "")
    assert copied.disk_bytes > 6 * VALUE_FILE_BYTES_MIN
    assert files_of(place) == set(named_in(place, tables.INPUTS, tables.OUTCOMES))
    for file in (folder / "batches" / "b" / VALUES_NAME).iterdir():
        file.unlink()
    assert check_batch(place).is_well
    assert results_of(place) == [large(0, "out"), large(1, "out")]
    (place / VALUES_NAME / named_in(place, tables.OUTCOMES)[0]).unlink()
    (again,) = back_up(tmp_path / "copy", tmp_path / "another")
    assert "outcomes, job 0" in again.trouble
    assert "is missing" in again.trouble


def test_values_go_with_the_records_that_are_trimmed(tmp_path: Path) -> None:
    place = tmp_path / "b"
    author(place, is_throwaway=True).close()
    before = {*named_in(place, tables.INPUTS)[1:], *named_in(place, tables.OUTCOMES)[1:]}
    journal = BatchJournal(place, is_writer=True)
    journal.commit([e.Trimmed("b", ((0, 1),))])
    journal.close()
    assert files_of(place) == before
    assert check_batch(place).is_well


def test_values_go_with_a_batch_that_is_pruned(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "journal")
    author(folder / "batches" / "b").close()
    removal.set_aside(folder, "b")
    assert removal.sweep(folder) == []
    assert list((folder / "batches").iterdir()) == []


# --- With processes ---------------------------------------------------------------------------------------------


def doubled(path: str, array: Any) -> Any:
    note(path, int(array[0]))
    return array * 2


def array_of(number: int) -> Any:
    return np.full(_NUMBERS, float(number))


def negative(array: Any) -> Any:
    return -array


class TornFile:
    """Stands for `os` in a worker: it dies in the middle of a value."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, fd: int, data: memoryview) -> int:
        os.write(fd, data[:1_000])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


def torn_at_first(number: int) -> Any:
    if batchd.current_job().attempt == 1 and number == 2:
        vars(valuefiles)["os"] = TornFile()
    return array_of(number)


def batch_of(desk: Desk) -> Path:
    (place,) = (desk.journal / "batches").iterdir()
    return place


def check_clean(desk: Desk, place: Path) -> None:
    """Have the batch taken up once more, and see that every file is named by a record, and that all is well."""
    needed = named_in(place, tables.INPUTS, tables.OUTCOMES)

    def is_swept() -> bool:
        request(desk.journal, "reopen", batch=place.name, states=[int(JobState.FAILED)])
        return files_of(place) == set(needed) and not locks_of(place)

    until(is_swept, "nothing is there that no record names")
    assert len(needed) == len(set(needed))
    assert check_batch(place).findings == []


@pytest.mark.slow
@pytest.mark.covers("S1", "J8")
def test_arrays_go_in_and_out_while_the_supervisor_is_killed(desk: Desk, tmp_path: Path, tally: Tally) -> None:
    jobs, ran = 24, str(tmp_path / "ran")
    with batchd.Executor(2, journal=desk.journal, name="arrays") as executor:
        futures = [executor.submit(partial(doubled, ran), array_of(number)) for number in range(jobs)]
        for kill in range(3):
            futures[4 * kill].result(60)
            pid = until(lambda: 0 if dead(found := desk.supervisor()) else found, "a supervisor lives")
            os.kill(pid, signal.SIGKILL)
            await_death(pid)
        made = [future.result(60) for future in futures]
    tally.injected(3)
    assert all(np.array_equal(array, 2 * array_of(number)) for number, array in enumerate(made))
    assert all(array.flags.writeable for array in made)
    assert set(map(int, notes(ran))) == set(range(jobs))
    place = batch_of(desk)
    assert sum(map(is_value, files_of(place))) >= 2 * jobs
    until(lambda: not desk.supervisor(), "the supervisor is gone")
    check_clean(desk, place)


def noted_at_first(number: int) -> Any:
    """Have the worker die when its report is in the transcript, and the pipe has nothing of it."""
    if batchd.current_job().attempt == 1 and number == 2:
        vars(main)["send_all"] = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    return array_of(number)


@pytest.mark.covers("W2", "J8")
@pytest.mark.parametrize(("task", "kept"), [(torn_at_first, 0), (noted_at_first, 1)])
def test_a_dead_workers_file_is_kept_for_the_next_supervisor_if_its_transcript_names_it(
    desk: Desk, task: Any, kept: int
) -> None:
    found = list(batchd.map(task, range(5), journal=desk.journal, name="n", workers=1))
    assert all(np.array_equal(array, array_of(number)) for number, array in enumerate(found))
    until(lambda: not desk.supervisor(), "the supervisor is gone")
    place = batch_of(desk)
    assert len(files_of(place)) == 5 + kept
    check_clean(desk, place)
    assert len(files_of(place)) == 5


class UntoldFile:
    """Stands for `os` in a worker: it dies when a value is whole and nobody knows."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def close(self, _: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def untold_at_first(number: int) -> Any:
    if batchd.current_job().attempt <= 2:
        vars(valuefiles)["os"] = UntoldFile()
    return array_of(number)


@pytest.mark.covers("W2", "J8")
def test_workers_that_die_all_the_time_do_not_fill_the_disk(desk: Desk, tally: Tally) -> None:
    jobs = 6
    with batchd.Client(journal=desk.journal, workers=1) as client:
        for number in range(jobs):  # One by one, for workers that die of several in a row stop a batch.
            assert np.array_equal(client.submit(untold_at_first, number).result(), array_of(number))
        tally.injected(2 * jobs)
        place, pid = batch_of(desk), desk.supervisor()
        assert len(named_in(place, tables.OUTCOMES)) == jobs
        # Not when it is taken up again: while it runs.
        until(lambda: files_of(place) == set(named_in(place, tables.OUTCOMES)), "what nobody was told of is gone")
        assert desk.supervisor() == pid
    assert check_batch(place).is_well


def test_a_throwaway_journal_gives_the_disk_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with batchd.Executor(2) as executor:
        for number in range(100):
            assert executor.submit(negative, array_of(number)).result(60)[7] == -number
        until(
            lambda: len(list(tmp_path.glob(f"batchd-*/batches/*/{VALUES_NAME}/*"))) < 80, "what was read is forgotten"
        )


def test_a_durable_map_knows_large_items_again(desk: Desk, tmp_path: Path) -> None:
    ran = str(tmp_path / "ran")
    for _ in range(2):
        arrays = [array_of(number) for number in range(4)]
        made = list(batchd.map(partial(doubled, ran), arrays, journal=desk.journal, name="known", workers=2))
        assert all(np.array_equal(array, 2 * array_of(number)) for number, array in enumerate(made))
    assert sorted(map(int, notes(ran))) == list(range(4))
    keyed = [{"id": number, "array": array_of(number)} for number in range(3)]
    for _ in range(2):
        totals = batchd.map(total_of, keyed, journal=desk.journal, name="keyed", key="id", workers=1)
        assert list(totals) == [number * _NUMBERS for number in range(3)]
    journal = BatchJournal(desk.journal / "batches" / batch_id(["name", "keyed"]))
    assert journal.facts.size == 3
    journal.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda first: [np.full(1_000, first + number) for number in range(200)],
        lambda first: np.full((400, 800), first, dtype=np.float64).T,
        lambda first: np.full(200_000, first, dtype=object),
    ],
)
def test_large_items_without_one_buffer_are_known_again_and_others_are_refused(
    desk: Desk, make: Callable[[int], Any]
) -> None:
    def go(first: int) -> list[int]:
        return list(batchd.map(len, [make(first)], journal=desk.journal, name="known", workers=1))

    assert go(1) == go(1)
    with pytest.raises(InputChanged):
        go(2)


def total_of(row: dict[str, Any]) -> float:
    return float(row["array"].sum())


@pytest.mark.covers("J8")
def test_a_job_whose_file_is_gone_fails_and_says_why(desk: Desk) -> None:
    """Of an input its job fails, of a result its reader is told; both name the file."""
    with batchd.Client(journal=desk.journal) as client:
        batch = client.submit_batch(total_of, [{"array": array_of(1)}, {"array": array_of(2)}], name="gone")
        assert list(batch.results()) == [float(_NUMBERS), 2.0 * _NUMBERS]
    place = batch_of(desk)
    (place / VALUES_NAME / named_in(place, tables.INPUTS)[1]).unlink()
    ran = desk.run("rerun", f"{place.name}:1")
    assert "the file of the value is missing" in ran.stderr + ran.stdout
    assert desk.run("rerun", f"{place.name}:0").returncode == 0
    assert "inputs, job 1 (page" in (told := desk.run("journal", "check").stdout)
    assert "the file of the value is missing" in told


def test_commands_read_large_results(desk: Desk) -> None:
    command = ("run", f"{Path(__file__)}:long_text", "--range", "0:3", "--out", "out.jsonl", "--name", "b", "-j", "2")
    ran = desk.run(*command)
    assert ran.returncode == 0, ran.stderr
    assert desk.values() == [long_text(index) for index in range(3)]
    place = batch_of(desk)
    assert len(named_in(place, tables.OUTCOMES)) == 3
    assert long_text(2) in desk.run("results", "b").stdout
    assert desk.run("show", "b").returncode == 0
    to = desk.folder / "out"
    salvaged = desk.run("journal", "salvage", "b", "--to", str(to))
    assert salvaged.returncode == 0, salvaged.stderr
    assert long_text(1) in (to / "outcomes.jsonl").read_text()


def long_text(index: int) -> str:
    return f"{index} " * VALUE_FILE_BYTES_MIN


def length_of(row: dict[str, str]) -> int:
    return len(row["text"])


@pytest.mark.covers("J8")
def test_large_lines_that_a_command_reads_are_files_and_a_killed_command_leaves_none(desk: Desk) -> None:
    rows = [{"text": str(number) * (VALUE_FILE_BYTES_MIN if number % 2 else 5)} for number in range(6)]
    (desk.folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ("run", f"{Path(__file__)}:length_of", "rows.jsonl", "--name", "b", "-j", "1", "--out", "out.jsonl")
    ran = desk.run(*command)
    assert ran.returncode == 0, ran.stderr
    assert desk.values() == [len(row["text"]) for row in rows]
    place = batch_of(desk)
    assert len(named_in(place, tables.INPUTS)) == 3
    unsent = ValueFiles(place, is_synced=True)
    assert unsent.keep([large(1)])
    unsent.close()  # As a death does.
    with (desk.folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"text": "x" * VALUE_FILE_BYTES_MIN}) + "\n")
    ran = desk.run(*command)
    assert ran.returncode == 0, ran.stderr
    assert len(desk.results()) == 7
    assert len(named_in(place, tables.INPUTS)) == 4
    check_clean(desk, place)
