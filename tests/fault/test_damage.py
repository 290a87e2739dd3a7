"""A batch that was damaged under its supervisor: it is told of, and the other batches run as if nothing were."""

import os
import signal
from pathlib import Path

import pytest

from batchd.errors import JournalError
from batchd.formats import pages
from tests.bench import House, pump_until
from tests.ruin import PAGE_BYTES

pytestmark = pytest.mark.fault


def ruin(place: Path) -> None:
    """Damage the tree of free pages: all can be read, and nothing be written."""
    data = place / "data.mdb"
    with data.open("r+b") as file:
        headers = [pages.header_of(file.read(PAGE_BYTES)) for _ in range(2)]
        for header in headers:
            if header.free.root != pages.NO_PAGE:
                file.seek(header.free.root * PAGE_BYTES)
                file.write(b"\xff" * PAGE_BYTES)


@pytest.mark.covers("J1", "S1")
def test_a_batch_that_cannot_be_written_keeps_no_other_from_running(house: House) -> None:
    """The supervisor dies of it: the next one finds what was begun, and cannot write that down."""
    jobs = 200
    ill, well = (house.start([("work", 0.01, index) for index in range(jobs)], name) for name in ("ill", "well"))
    pump_until(ill, lambda: ill.progress["done"] > 10, "it runs")
    pid = house.supervisor
    os.kill(pid, signal.SIGSTOP)
    ruin(house.folder / "batches" / "ill")
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(JournalError, match=r"cannot write to the batch in .*/ill: .*MDB_CORRUPTED"):
        pump_until(ill, lambda: ill.is_over, "it is over")
    ill.close()
    house.finish(well)
    assert house.outcomes("well") == {index: index for index in range(jobs)}
    assert len(house.outcomes("ill")) > 10, "what was recorded can be read"
    assert len(house.notes) <= 2, "the supervisor died of it again and again"
