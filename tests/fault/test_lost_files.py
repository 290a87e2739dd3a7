"""Files of a running batch that somebody takes away: LMDB goes on with what it opened, and nobody else sees that."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from batchd.client.connection import LOG_NAME
from batchd.edge.damage import check_batch
from batchd.errors import JournalDamaged
from tests.bench import House, await_death, pump_until
from tests.commands import Desk, squares
from tests.fault import tasks
from tests.fault.ledger import Tally
from tests.ruin import deadly

pytestmark = pytest.mark.fault


CONSEQUENCE = {
    "lock.mdb": "its readers would no longer be seen. Nothing that was recorded is lost",
    "data.mdb": "what was recorded since is lost with it. Put the batch's own file back, or one of a backup",
}


def remove(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    copy = file.with_name("copy")
    copy.write_bytes(file.read_bytes())
    copy.rename(file)


@pytest.mark.covers("J3")
@pytest.mark.parametrize(
    ("name", "lose"),
    [("lock.mdb", remove), pytest.param("lock.mdb", replace, marks=pytest.mark.slow), ("data.mdb", remove)],
)
def test_a_batch_whose_files_are_taken_away_stops_and_no_other_does(
    house: House, tmp_path: Path, name: str, lose: Callable[[Path], None]
) -> None:
    jobs, marks = 300, tmp_path / "marks"
    ill = house.start([("work", 600)] + [("write_down", str(marks), 0.005)] * (jobs - 1), "ill")
    well = house.start([("work", 0.005, index) for index in range(jobs)], "well")
    pump_until(ill, lambda: ill.progress["is_sealed"] and ill.progress["done"] > 20, "the one runs")
    pump_until(well, lambda: well.progress["done"] > 0, "the other runs")
    place = house.folder / "batches" / "ill"
    file, aside = place / name, tmp_path / "aside"
    os.link(file, aside)
    lose(file)
    pump_until(ill, lambda: ill.progress["state"] == "stopped", "it stops")
    told = f"{file} was removed or replaced while the batch ran: {CONSEQUENCE[name]}; run it again to go on"
    assert ill.progress["reason"] == told
    house.finish(ill)  # At once: its first job is not waited for.
    house.finish(well)
    assert house.outcomes("well") == {index: index for index in range(jobs)}
    assert (house.folder / LOG_NAME).read_text().count("batch ill is stopped: ") == 1
    assert ill.restarts == well.restarts == 0

    if name == "data.mdb":
        aside.rename(file)
    recorded = list(house.facts("ill").done)
    assert sum(stop - start for start, stop in recorded) == ill.progress["done"], "something was lost"
    again = house.session("ill")
    again.open()
    pump_until(again, lambda: again.progress["done"] == jobs - 1, "it goes on")
    again.leave(at_once=True)
    pump_until(again, lambda: again.is_put_down, "it is put down")
    outcomes = house.outcomes("ill")
    assert outcomes == {index: index for index in range(1, jobs)}
    runs = Counter(int(line.split(":")[0]) for line in marks.read_text().split())
    assert all(runs[index] == 1 for start, stop in recorded for index in range(start, stop)), (
        "recorded, and ran again"
    )
    assert check_batch(place).is_well


def cut_to_a_tenth(data: bytes) -> bytes:
    return data[: len(data) // 10]


def cut_to_a_quarter(data: bytes) -> bytes:
    return data[: len(data) // 4]


def of_one_bit(_: bytes) -> bytes:
    """Of another batch: which bit is deadly is known there."""
    return deadly()


@pytest.mark.parametrize(
    ("ruin", "why"),
    [
        pytest.param(cut_to_a_tenth, "was cut off; put a copy of it back", marks=pytest.mark.covers("J2", "J3")),
        pytest.param(
            cut_to_a_quarter,
            "was cut off; put a copy of it back",
            marks=[pytest.mark.covers("J2", "J3"), pytest.mark.slow],
        ),
        pytest.param(of_one_bit, "whoever opens it dies: it was killed", marks=pytest.mark.covers("J1", "J3")),
    ],
)
def test_a_batch_that_was_damaged_when_its_supervisor_died_keeps_no_other_from_running(
    desk: Desk, ruin: Callable[[bytes], bytes], why: str, tally: Tally
) -> None:
    """The next start looks what had begun of it, and LMDB dies of what is there, or is not."""
    process = desk.start("run", f"{tasks.__file__}:page_text", "--range", "0:400", "-j", "2", "--name", "ill")
    desk.wait_for_jobs(60, process)
    supervisor = desk.supervisor()
    process.kill()
    os.kill(supervisor, signal.SIGKILL)
    process.communicate()
    await_death(supervisor)
    (place,) = (desk.journal / "batches").iterdir()
    data = place / "data.mdb"
    data.write_bytes(ruin(data.read_bytes()))
    ran = desk.run("run", f"{tasks.__file__}:short_work", "--range", "0:5", "--name", "well", "--out", "out.jsonl")
    assert ran.returncode == 0, ran.stderr
    assert desk.values() == squares(5)
    assert f"batch {place.name} stays as it is: " in (desk.journal / LOG_NAME).read_text()
    for verb in (("run", f"{tasks.__file__}:page_text", "--range", "0:400", "--name", "ill"), ("show", place.name)):
        told = desk.run(*verb)
        assert (told.returncode, why in told.stderr) == (3, True), told
    listed = desk.run("ls")
    assert (listed.returncode, why in listed.stderr) == (0, True), listed
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [
        [next(each.name for each in place.parent.iterdir() if each != place), "well"],
        [place.name, "damaged"],
    ]
    tally.injected(1)


@pytest.mark.covers("J2")
def test_a_supervisor_asked_for_a_batch_that_was_cut_off_refuses_it_and_goes_on(house: House) -> None:
    """No client has looked at it before."""
    assert house.run([("same", str(index) * 9_000) for index in range(100)], "ill")
    data = house.folder / "batches" / "ill" / "data.mdb"
    os.truncate(data, 3 * data.stat().st_size // 4)
    well = house.start([("work", 600)], "well")
    with pytest.raises(JournalDamaged, match=f"{data} was cut off"):
        house.session("ill").open()
    well.leave(at_once=True)
    pump_until(well, lambda: well.is_put_down, "it is put down")
    assert well.restarts == 0
