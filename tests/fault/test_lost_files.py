"""Files of a running batch that somebody takes away: LMDB goes on with what it opened, and nobody else sees that."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from batchd.client.connection import LOG_NAME
from batchd.edge.damage import check_batch
from tests.bench import House, pump_until

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
