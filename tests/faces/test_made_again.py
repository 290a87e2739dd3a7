"""A batch that is removed and made again under its id is another batch, whoever still remembers the first.

The first leaves an idle worker that has its file open, lanes and transcripts in the flight recorder, and clients that
had it open. Each test makes the second while these are there, and looks for anything of the first in it.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import batchd
from batchd.client import request
from batchd.edge.lock import holder_of
from batchd.edge.removal import sweep
from batchd.errors import BatchNotFound
from tests.bench import await_death
from tests.commands import Desk, until
from tests.contract.calls import WAIT_S, Door
from tests.faces.jobs import enter_new, half, identity

JOBS = 30
OLD, NEW = ([(age, number) for number in range(JOBS)] for age in ("old", "new"))


@pytest.fixture
def keeper(desk: Desk) -> Iterator[batchd.Client]:
    """A client that keeps the supervisor alive whoever comes and goes."""
    with batchd.Client(desk.journal, workers=1, queue="keeper") as made:
        assert made.submit(pow, 2, 3).result() == 8
        yield made


@pytest.fixture
def client(desk: Desk) -> Iterator[batchd.Client]:
    """A client with one worker, which stays for whatever comes next."""
    with batchd.Client(desk.journal, workers=1) as made:
        yield made


def prune(journal: Path, batch: str) -> None:
    request(journal, "prune", batch=batch)
    assert sweep(journal) == []


def remove_by_hand(journal: Path, batch: str) -> None:
    shutil.rmtree(journal / "batches" / batch)


@pytest.mark.covers("X8")
@pytest.mark.usefixtures("keeper")
def test_a_command_runs_its_new_input_and_arguments_after_a_prune(desk: Desk) -> None:
    (desk.folder / "up.py").write_text("def up(line, mark):\n    return line.strip().upper() + mark\n")

    def run(word: str, mark: str) -> list[str]:
        (desk.folder / "in.txt").write_text("".join(f"{word} {number}\n" for number in range(JOBS)))
        done = desk.run(
            "run", "up.py:up", "in.txt", "--name", "up", "--arg", f"mark={mark}", "--out", "out.jsonl", "-j", "1"
        )
        assert done.returncode == 0, done.stderr
        return desk.values()

    assert run("old", "?") == [f"OLD {number}?" for number in range(JOBS)]
    supervisor = desk.supervisor()
    assert desk.run("prune", "up", "--yes").returncode == 0
    assert run("new", "!") == [f"NEW {number}!" for number in range(JOBS)]
    assert desk.supervisor() == supervisor


@pytest.mark.parametrize("remove", [prune, remove_by_hand])
@pytest.mark.usefixtures("keeper")
def test_workers_read_the_batch_that_is_there(
    client: batchd.Client, desk: Desk, ran: str, remove: Callable[[Path, str], None]
) -> None:
    work = partial(identity, ran)
    first = client.submit_batch(work, OLD, name="nightly")
    assert list(first.results()) == OLD
    first.close()
    (worker,) = until(lambda: len(found := desk.workers()) == 1 and found, "the keeper's has left")
    remove(desk.journal, first.id)
    second = client.submit_batch(work, NEW, name="nightly")
    assert list(second.results()) == NEW
    assert desk.workers() == [worker], "the one that ran the first ran the second"


@pytest.mark.covers("X6")
@pytest.mark.usefixtures("keeper")
def test_workers_read_what_was_put_back_from_a_copy(client: batchd.Client, desk: Desk, ran: str) -> None:
    """Its first jobs are those of the batch that was removed, and what is added now is not."""
    work = partial(identity, ran)
    batch = client.submit_batch(work, OLD[:5], name="nightly", seal=False)
    assert list(batch.results()) == OLD[:5]
    batch.close()
    place = desk.journal / "batches" / batch.id
    shutil.copytree(place, desk.folder / "copy")
    batch.add(OLD[5:])
    assert batch.wait(WAIT_S).succeeded == JOBS
    batch.close()
    prune(desk.journal, batch.id)
    shutil.copytree(desk.folder / "copy", place)
    again = client.batch(batch.id)
    assert again.add(NEW[5:]) == JOBS - 5
    again.wait(WAIT_S)
    assert list(again.results()) == [*OLD[:5], *NEW[5:]]


@pytest.mark.usefixtures("keeper")
def test_tracebacks_are_told_again(client: batchd.Client, desk: Desk) -> None:
    """Workers tell each once, and the second batch has none of the first one's."""
    for _ in range(2):
        batch = client.submit_batch(half, [1], name="nightly")
        batch.wait(WAIT_S)
        (group,) = batch.failures()
        assert "in half" in group.traceback
        batch.close()
        prune(desk.journal, batch.id)


@pytest.mark.fault
@pytest.mark.covers("X8")
@pytest.mark.usefixtures("keeper")
def test_a_restart_believes_nothing_that_was_said_of_the_first(desk: Desk, tmp_path: Path) -> None:
    """One worker waits in a new job; the recorder describes its lease, and its earlier ones on the first batch."""
    door = Door(tmp_path)
    work = partial(enter_new, door)
    with batchd.Client(desk.journal, workers=1) as client:
        first = client.submit_batch(work, OLD, name="nightly")
        assert list(first.results()) == OLD
        first.close()
        prune(desk.journal, first.id)
        second = client.submit_batch(work, NEW, name="nightly")
        until((tmp_path / "came").exists, "a job of the second waits")
        pid = int(holder_of(desk.journal)["pid"])
        os.kill(pid, signal.SIGKILL)
        await_death(pid)
        door.open()
        assert list(second.results()) == NEW
        assert second.wait(WAIT_S).succeeded == JOBS


def test_a_reader_goes_on_with_the_one_that_it_opened(desk: Desk, ran: str) -> None:
    work = partial(identity, ran)
    with batchd.Client(desk.journal, workers=1) as client:
        first = client.submit_batch(work, OLD, name="nightly")
        first.wait(WAIT_S)
        reading = first.results()
        assert next(reading) == OLD[0]
        first.close()
        prune(desk.journal, first.id)
        second = client.submit_batch(work, NEW, name="nightly")
        assert list(second.results()) == NEW
        assert list(reading) == OLD[1:]
        assert list(second.results()) == NEW


@pytest.mark.usefixtures("keeper")
def test_who_added_to_the_first_adds_nothing_to_the_second(client: batchd.Client, desk: Desk, ran: str) -> None:
    work = partial(identity, ran)
    first = client.submit_batch(work, OLD, name="nightly")
    first.wait(WAIT_S)
    first.close()
    prune(desk.journal, first.id)
    second = client.submit_batch(work, NEW, name="nightly")
    second.wait(WAIT_S)
    second.close()
    with pytest.raises(BatchNotFound, match=r"removed while it was in use, and another was made"):
        first.add(OLD)
    assert list(client.batch("nightly").results()) == NEW
