"""Leaving while jobs run: it is told what is waited for, waiting costs nothing, and an interrupt ends it in order."""

import asyncio
import os
import signal
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest

import batchd
from batchd.client import request
from batchd.client.world import library_folder
from batchd.edge.lock import holder_of
from batchd.edge.shelf import find_batch
from batchd.engine import Engine
from batchd.mapping import job_options
from tests.commands import Desk, until
from tests.contract.calls import WAIT_S, Door, nap, square
from tests.faces.programs import Programs


class CountingEngine(Engine):
    """It counts how often its thread looks whether there is something to do."""

    turns = 0

    def _turn(self) -> None:
        self.turns += 1
        super()._turn()


def test_waiting_for_what_runs_is_no_work(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)
    options = job_options(1, 0, None, 3, keep_going=True)
    engine = CountingEngine(options, library_folder(desk.journal, "jobs")[0], "jobs", is_queue=True)
    future = engine.submit(door.enter, (7,), {})
    until(door.came, "it runs")
    (attachment,) = engine.let_go(False)
    until(lambda: attachment._stopping is not None, "it leaves")
    before = engine.turns
    nap(0.2)  # Thousands of turns, of a thread that wakes itself.
    door.open()
    attachment.end.result(WAIT_S)
    assert future.result() == 7
    assert engine.turns - before < 20


def test_of_programs_that_ended_in_order_a_batch_remembers_nobody(desk: Desk) -> None:
    """They seal it and leave in one breath."""
    for count in (1, 2):
        assert (
            list(batchd.map(square, range(count), journal=desk.journal, name="map", workers=1))[-1]
            == (count - 1) ** 2
        )
        with batchd.Executor(1, journal=desk.journal, name="executor") as executor:
            assert executor.submit(square, count).result(WAIT_S) == count**2
    for name in ("map", "executor"):
        with closing(find_batch(desk.journal, name)) as journal:
            assert (journal.facts.size, journal.facts.sequences) == (2, {})


def test_whoever_leaves_may_think_again_and_leave_at_once(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)
    client = batchd.Client(desk.journal, workers=1)
    job = client.submit(door.enter)
    until(door.came, "it runs")
    (attachment,) = client.let_go(False)
    until(lambda: attachment._stopping is not None, "it leaves")
    client.let_go(True)
    attachment.end.result(WAIT_S)
    assert client.job(job.id).state == "queued"


def test_whoever_has_left_may_ask_for_it_again(desk: Desk, tmp_path: Path) -> None:
    """As when it was put down while the word to do that at once was on its way; the others go on."""
    door = Door(tmp_path)
    with batchd.Client(desk.journal, workers=1) as client:
        job = client.submit(door.enter, 7)
        until(door.came, "it runs")
        request(desk.journal, "detach", batch=job.batch, at_once=True)
        door.open()
        assert job.result(WAIT_S) == 7
        assert door.came() == ["7"]


# --- What is told -------------------------------------------------------------------------------------------------


def test_what_a_close_waits_for_is_told(desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    door = Door(tmp_path)
    client = batchd.Client(desk.journal, workers=3)
    jobs = [client.submit(door.enter, x) for x in range(2)]
    batch = client.submit_batch(door.enter, ["of a batch"])
    until(lambda: len(door.came()) == 3, "all run")
    leaving = threading.Thread(target=client.close)
    leaving.start()
    until(lambda: caplog.messages, "it is told")
    door.open()
    leaving.join(WAIT_S)
    (told,) = caplog.messages
    assert told.startswith(f"waiting for 3 running jobs of queue jobs and batch {batch.id}; an interrupt (Ctrl-C) or")
    assert [job.result() for job in jobs] == [0, 1]


def test_who_need_not_wait_is_told_nothing(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    with batchd.Client(desk.journal, workers=1) as client:
        assert client.submit(square, 3).result(WAIT_S) == 9
    assert caplog.messages == []


# --- Interrupts of real programs ----------------------------------------------------------------------------------

HEAD = """
import asyncio
from tests.contract.calls import Door
door = Door(Path.cwd())
"""
WAYS = {
    "queue": """
with batchd.Client(workers=1) as client:
    client.submit(door.enter).result()
""",
    "batch": """
with batchd.Client(workers=1) as client:
    client.submit_batch(door.enter, [1]).wait()
""",
    "asyncio": """
async def main():
    async with batchd.AsyncClient(workers=1) as client:
        await (await client.submit(door.enter)).result()

asyncio.run(main())
""",
    "batch in asyncio": """
async def main():
    async with batchd.AsyncClient(workers=1) as client:
        await (await client.submit_batch(door.enter, [1])).wait()

asyncio.run(main())
""",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_second_interrupt_ends_the_program_and_no_job_is_charged(programs: Programs, way: str) -> None:
    door = Door(programs.folder)
    process = programs.start(HEAD + WAYS[way])
    until(door.came, "the job runs", process)
    process.send_signal(signal.SIGINT)
    told = lines_until(process, "waiting for 1 running job of ")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == -signal.SIGINT, told
    assert standing(programs) == (False, False)  # It has left in order, before it ended.
    door.open()
    with batchd.Client(programs.journal, workers=1) as client:
        assert client.batch("last").wait(WAIT_S).succeeded == 1


STUCK = """
from functools import partial

async def watch():
    try:
        await asyncio.sleep(3_600)
    finally:
        print("interrupted twice", flush=True)

async def main():
    async with batchd.AsyncClient(workers=1) as client:
        watching = asyncio.create_task(watch())
        job = await client.submit(door.enter)
        try:
            print("waiting", flush=True)
            await job.result()
        finally:  # Told when it leaves: an interrupt before that would be one of this coroutine's.
            asyncio.get_running_loop().call_later(0.1, partial(print, "interrupted once", flush=True))

asyncio.run(main())
"""


def test_a_third_interrupt_waits_for_nobody(programs: Programs) -> None:
    """As when the supervisor is stuck: neither the event loop nor the interpreter's end holds the program."""
    door = Door(programs.folder)
    process = programs.start(HEAD + STUCK)
    until(door.came, "the job runs", process)
    supervisor = int(holder_of(programs.journal)["pid"])
    os.kill(supervisor, signal.SIGSTOP)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"  # Its job may run before it waits for it.
        for word in ("once", "twice"):
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == f"interrupted {word}\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT_S)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert process.returncode == -signal.SIGINT


def test_a_client_that_is_never_closed_does_not_hold_the_program(programs: Programs) -> None:
    """Whether or not an executor was used beside it, whose calls would be waited for."""
    process = programs.start(
        HEAD
        + """
with batchd.Executor(1) as executor:
    assert executor.submit(abs, -1).result() == 1
client = batchd.Client(workers=1)
client.submit(door.enter)
while not door.came():
    nap(0.01)
"""
    )
    assert process.communicate(timeout=WAIT_S) == ("", "")
    assert process.returncode == 0
    until(lambda: standing(programs) == (False, False), "it was let go, and nothing is done")


def lines_until(process: "subprocess.Popen[str]", beginning: str) -> list[str]:
    """Return what a program complained of, up to the line that begins so."""
    assert process.stderr is not None
    told: list[str] = []
    while not (told and told[-1].startswith(beginning)):
        line = process.stderr.readline()
        assert line, told
        told.append(line)
    return told


def standing(programs: Programs) -> tuple[bool, bool]:
    """Return whether somebody has the only batch open, and whether its job is done or was charged with anything."""
    with closing(find_batch(programs.journal, "last")) as journal:
        facts = journal.facts
        return facts.is_attached, bool(facts.done) or any(facts.histories.get(0)[1:])


# --- Asyncio ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["at_once", "cancelled"])
def test_an_asyncio_client_need_not_wait(desk: Desk, tmp_path: Path, way: str) -> None:
    door = Door(tmp_path)

    async def main() -> None:
        client = batchd.AsyncClient(desk.journal, workers=1)
        await client.submit(door.enter)
        await asyncio.to_thread(until, door.came, "it runs")
        if way == "at_once":
            await client.close(at_once=True)
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.close(), 0.05)

    asyncio.run(main())
    with closing(find_batch(desk.journal, "jobs")) as journal:
        assert not journal.facts.is_attached
        assert not journal.facts.done
