"""A real file system that loses its power, or turns read-only under whoever is writing.

What a power loss takes is decided by the file system here, for every file of the journal: batches, their folders, the
epoch, the lock. test_power.py plays more hostile disks, for the data file of one batch.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from batchd.edge.damage import check_batch
from batchd.edge.journal import BatchJournal
from batchd.edge.orphans import tagged
from batchd.edge.outcomes import Outcomes
from tests.bench import ROOT
from tests.commands import Desk, dead, pause, squares, until
from tests.disks import break_down, cut_power, formatted
from tests.fault import tasks
from tests.fault.ledger import Tally

pytestmark = pytest.mark.fault
TASKS = Path(tasks.__file__)
JOBS = 10_000

CLIENT = """
import json, sys
from pathlib import Path
from tests.bench import House, blocks_of

house = House(Path(sys.argv[1]))
sessions = [house.session(batch, spec={"durability": "disk"}) for batch in sys.argv[3:]]
for session in sessions:
    session.open()
    session.feed(blocks_of([("work", 0.001, index) for index in range(int(sys.argv[2]))]))
while True:
    for session in sessions:
        session.pump(0.01)
        told = {name: session.progress[name] for name in ("batch", "size", "done")}
        print(json.dumps(told), flush=True)
"""


def on(desk: Desk, disk: Path) -> Desk:
    """Put the journal of a desk on a disk."""
    desk.journal = disk / "journal"
    desk.environ["BATCHD_JOURNAL"] = str(desk.journal)
    return desk


def end(supervisor: int, journal_id: str) -> None:
    """Kill the supervisor and see all dead that worked for it, so that the disk can be taken off."""
    if supervisor:
        with suppress(ProcessLookupError):  # A disk without power may have been the end of it.
            os.kill(supervisor, signal.SIGKILL)
    until(lambda: all(map(dead, [supervisor, *tagged(journal_id)])), "all are dead")
    (Path("/dev/shm") / f"batchd-{os.geteuid()}-{journal_id}").unlink(missing_ok=True)


@pytest.mark.covers("D4")
@pytest.mark.parametrize("cuts", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_what_clients_were_told_is_there_after_a_power_loss(desk: Desk, cuts: int, tally: Tally) -> None:
    """Two batches run, the power is cut at a random moment, and the journal is looked at when it is back."""
    dice, image, disk = Random(cuts), desk.folder / "image", desk.folder / "disk"
    told: dict[str, dict[str, Any]] = {}
    for turn in range(cuts + 1):
        with formatted(image, disk, is_new=not turn) as refusal:
            if refusal:
                pytest.skip(f"no file system can be made here: {refusal}")
            on(desk, disk)
            for name, last in told.items():
                check(desk.journal / "batches" / name, last)
            if turn == cuts:
                break
            names = [f"{turn}-a", f"{turn}-b", *list(told)[-1:]]  # One of them goes on from the last time.
            told |= told_until_the_power_is_cut(desk, names, dice)
    tally.injected(cuts)
    tally.count("states after a power loss", cuts)


def told_until_the_power_is_cut(desk: Desk, names: list[str], dice: Random) -> dict[str, dict[str, Any]]:
    """Return the last that was told of each batch before the power was cut."""
    command = [sys.executable, "-c", CLIENT, str(desk.journal), str(JOBS), *names]
    told: dict[str, dict[str, Any]] = {}
    with subprocess.Popen(command, cwd=ROOT, env=desk.environ, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        wanted = dice.randrange(5, 400)
        while not told or told[names[0]]["done"] < wanted:
            line = client.stdout.readline()
            assert line, "the client has ended"
            told[json.loads(line)["batch"]] = json.loads(line)
        pause(dice.uniform(0.0, 0.01))
        os.kill(client.pid, signal.SIGSTOP)  # What it has said by now, it was told before the cut.
        everybody = desk.supervisor(), desk.journal_id()
        cut_power(desk.journal.parent)
        client.kill()
        for line in client.stdout:
            if line.endswith(b"\n"):
                told[json.loads(line)["batch"]] = json.loads(line)
    end(*everybody)
    return told


def check(place: Path, told: dict[str, Any]) -> None:
    """A batch holds at least what was told of it, with the right values, and nothing of it is damaged."""
    assert check_batch(place).is_well
    journal = BatchJournal(place)
    try:
        spans = Outcomes(journal).spans(journal.facts.done, journal.facts.generation)
        done = {span.start + at: value for span in spans for at, value in enumerate(span.values())}
        assert journal.facts.size >= told["size"]
        assert len(done) >= told["done"], "what a client was told to be recorded is lost"
        assert all(value == index for index, value in done.items())
    finally:
        journal.close()


@pytest.mark.covers("D6")
def test_a_disk_that_turns_read_only_under_a_run_is_told_and_the_run_goes_on_later(desk: Desk) -> None:
    """The file system finds something wrong with itself: from then on it can be read, and nothing else."""
    image, disk = desk.folder / "image", desk.folder / "disk"
    command = ("run", f"{TASKS}:short_work", "--range", "0:300", "--name", "b", "--out", "out.jsonl", "-j", "2")
    with formatted(image, disk) as refusal:
        if refusal:
            pytest.skip(f"no file system can be made here: {refusal}")
        process = on(desk, disk).start(*command)
        desk.wait_for_jobs(20, process)
        break_down(disk)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 3, err
        assert "Read-only file system" in err
        assert "Traceback" not in err
        for reading in (["ls"], ["show", "b"], ["results", "b"], ["journal", "check"], ["status"]):
            ran = desk.run(*reading)
            assert ran.returncode == 0, (reading, ran.stderr)
        end(desk.supervisor(), desk.journal_id())
    with formatted(image, disk, is_new=False):
        ran = desk.run(*command)
        assert ran.returncode == 0, ran.stderr
        end(desk.supervisor(), desk.journal_id())
    assert desk.values() == squares(300)
    assert len(set(desk.attempts())) == len(desk.attempts())
