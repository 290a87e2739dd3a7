"""What goes wrong around a batch or a client: threads at once, ends in between, results that cannot be read here."""

import asyncio
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

import batchd
from batchd.client import world
from batchd.door import AttachedDoor
from batchd.edge.lock import holder_of
from batchd.errors import BatchdError, SupervisorError, UsageError
from batchd.formats.segment import input_blocks
from tests.bench import await_death
from tests.commands import Desk
from tests.contract.calls import WAIT_S, square

HERE = os.getpid()


def read(process: int) -> int:
    if os.getpid() == process:
        raise ValueError("not here")
    return 7


class ReadElsewhere:
    """Can be unpickled in any process but one."""

    def __init__(self, process: int) -> None:
        self.process = process

    def __reduce__(self) -> Any:
        return read, (self.process,)


def result_for(process: int, number: int) -> Any:
    return ReadElsewhere(process) if number == 1 else number


class Job:
    """A job some of whose results this process cannot read."""

    def __call__(self, number: int) -> Any:
        return result_for(self.process, number)

    def __init__(self) -> None:
        self.process = HERE


def test_many_threads_may_add_to_one_batch(client: batchd.Client) -> None:
    batch = client.submit_batch(square, [], name="n", seal=False)
    added: list[int] = []
    threads = [
        threading.Thread(target=lambda first=first: added.append(batch.add(range(first, first + 5_000))))
        for first in range(0, 20_000, 5_000)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    batch.seal()
    assert added == [5_000] * 4
    assert sorted(batch.results()) == [x * x for x in range(20_000)]


def test_a_batch_is_sealed_when_what_other_threads_add_is_in_it(client: batchd.Client) -> None:
    batch = client.submit_batch(square, [], name="n", seal=False)
    sealing = threading.Thread(target=batch.seal)
    states: list[str] = []

    def items() -> Iterator[int]:
        yield from range(3)
        sealing.start()
        sealing.join(0.3)  # As long as it could take, if it did not wait.
        states.append(batch.progress().state)
        yield from range(3, 6)

    assert batch.add(items()) == 6
    sealing.join(WAIT_S)
    batch.wait(WAIT_S)
    assert states == ["open"]
    assert batch.progress() == (6, 6, 6, 0, 0, "finished", "")


def test_what_comes_too_late_for_a_batch_says_how_much_was_in_time(client: batchd.Client) -> None:
    batch = client.submit_batch(square, range(3), name="n", seal=False)
    with batch._kept():
        batch._run().request("seal").result(WAIT_S)
        late = AttachedDoor(batch._run())
        late.submit(b"".join(block for _, block in input_blocks([3])))
        with pytest.raises(UsageError, match="was sealed by another client when it had 3 jobs, and took no more"):
            late.wait()


def test_adding_to_a_batch_that_is_closed_meanwhile_says_so(client: batchd.Client) -> None:
    batch = client.submit_batch(square, [], name="n", seal=False)
    read_so_far = []

    def endless() -> Iterator[bytes]:
        for number in count():
            read_so_far.append(number)
            if number == 50:
                threading.Thread(target=batch.close).start()
            yield bytes(1 << 16)

    with pytest.raises(BatchdError, match=r"closed before everything was added|is not open"):
        batch.add(endless())
    assert len(read_so_far) < 100_000


def test_adding_ends_with_its_supervisor_when_there_can_be_no_other(client: batchd.Client, desk: Desk) -> None:
    batch = client.submit_batch(square, [], name="n", seal=False)
    pid = int(holder_of(desk.journal)["pid"])
    moved = desk.journal.with_name("moved")
    gone: list[BaseException] = []

    def endless() -> Iterator[bytes]:
        for number in count():
            if number == 50:
                shutil.move(desk.journal, moved)
                os.kill(pid, signal.SIGKILL)
                await_death(pid)
            yield bytes(1 << 16)

    def add() -> None:
        try:
            batch.add(endless())
        except BatchdError as error:
            gone.append(error)

    thread = threading.Thread(target=add, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert [type(error) for error in gone] == [SupervisorError]
    assert "is gone" in str(gone[0])
    shutil.move(moved, desk.journal)


def test_what_becomes_of_failures_is_checked_before_results_are_asked_for(client: batchd.Client) -> None:
    batch = client.submit_batch(square, [1], name="n")
    with pytest.raises(UsageError, match="on_error='Raise'"):
        batch.results(on_error="Raise")


@pytest.mark.covers("R1", "P14")
def test_a_result_that_cannot_be_read_here_is_a_failure_of_its_job(client: batchd.Client) -> None:
    batch = client.submit_batch(Job(), range(3), name="n")
    batch.wait(WAIT_S)
    first, unreadable, last = batch.results(on_error="return")
    assert (first, last) == (0, 2)
    assert type(unreadable) is batchd.JobUnreadable
    assert (unreadable.batch, unreadable.index) == (batch.id, 1)
    assert str(unreadable.__cause__) == "not here"
    assert list(batch.results(on_error="skip")) == [0, 2]
    with pytest.raises(
        batchd.JobUnreadable, match=f"the result of job {batch.id}:1 could not be unpickled: not here"
    ):
        list(batch.results())
    assert type(client.job(f"{batch.id}:1").value) is batchd.JobUnreadable


def test_map_goes_on_behind_a_result_that_cannot_be_read_here() -> None:
    assert list(batchd.map(Job(), range(3), workers=1, on_error="skip")) == [0, 2]


def test_values_of_another_python_are_not_touched(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with batchd.Client(desk.journal, workers=1) as client:
        client.submit_batch(square, range(3), name="n", seal=False).wait(WAIT_S)
    monkeypatch.setattr(world, "PYTHON", "3.9")
    with batchd.Client(desk.journal, workers=1) as client:
        batch = client.batch("n")
        for call in (lambda: batch.add([3]), batch.results):
            with pytest.raises(UsageError, match=r"was written by Python 3\.\d+, this is 3\.9"):
                call()


def test_an_asynchronous_client_belongs_to_one_event_loop(desk: Desk) -> None:
    client = batchd.AsyncClient(desk.journal, workers=1)

    async def use() -> Any:
        return await (await client.submit(square, 3)).result()

    assert asyncio.run(use()) == 9
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        asyncio.run(use())
    asyncio.run(client.close())


def test_a_closed_asynchronous_client_says_so_each_time(desk: Desk) -> None:
    async def main() -> None:
        async with batchd.AsyncClient(desk.journal, workers=1) as client:
            assert await (await client.submit(square, 3)).result() == 9
        for _ in range(2):
            with pytest.raises(RuntimeError, match="was closed"):
                await client.submit(square, 3)

    asyncio.run(main())


@pytest.mark.parametrize("call", ["add", "seal"])
def test_an_input_that_would_wait_for_itself_is_refused(client: batchd.Client, call: str) -> None:
    batch = client.submit_batch(square, seal=False)

    def items() -> Iterator[int]:
        yield from range(3)
        getattr(batch, call)(*[[3]] * (call == "add"))

    def add() -> None:
        try:
            batch.add(items())
        except UsageError as error:
            told.append(str(error))

    told: list[str] = []
    adding = threading.Thread(target=add, daemon=True)
    adding.start()
    adding.join(WAIT_S)
    (words,) = told
    assert re.match(rf"batch {batch.id} .* wait for itself: do so when add\(\) has returned", words)
    assert (batch.add([3]), batch.progress().state) == (1, "open")
    batch.seal()
    assert (batch.wait(WAIT_S).state, list(batch.results())) == ("finished", [0, 1, 4, 9])
