"""Ending an executor at once, and cancelling what it was given: the calls learn of it, and so do their callbacks."""

import json
import os
from concurrent.futures import CancelledError, Executor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import batchd
from batchd.client.session import Session
from batchd.errors import SupervisorError
from tests.commands import Desk, dead, until
from tests.contract.calls import WAIT_S, Door, nap, note, notes, square


def stay(path: str) -> None:
    """Say who this is, and stay."""
    note(path, os.getpid())
    nap(600)


@pytest.mark.parametrize("way", ["kill_workers", "terminate_workers"])
def test_what_runs_is_ended_and_everybody_is_told(way: str, make_ours: Any, tmp_path: Path) -> None:
    executor = make_ours(1)
    before = executor.submit(square, 3)
    assert before.result(WAIT_S) == 9
    calls = [executor.submit(stay, str(tmp_path / "pid")) for _ in range(20)]
    until(lambda: notes(tmp_path / "pid"), "the first call runs")
    getattr(executor, way)()
    assert not wait(calls, WAIT_S).not_done
    assert dead(int(notes(tmp_path / "pid")[0]))
    assert isinstance(calls[0].exception(), BrokenProcessPool)
    assert not isinstance(calls[0].exception(), batchd.JobCrashed)
    for call in calls[1:]:
        with pytest.raises((BrokenProcessPool, CancelledError)):
            call.result()
    assert len(notes(tmp_path / "pid")) == 1
    assert before.result() == 9


def test_nothing_can_be_submitted_afterwards_and_a_shutdown_returns(make_ours: Any) -> None:
    with make_ours(1) as executor:
        assert executor.submit(square, 3).result(WAIT_S) == 9
        executor.kill_workers()
        with pytest.raises(RuntimeError, match="killed"):
            executor.submit(square, 4)
        executor.kill_workers()


def test_an_executor_may_be_killed_before_it_has_started(make_ours: Any) -> None:
    unused, starting = make_ours(1), make_ours(1)
    unused.kill_workers()
    with pytest.raises(RuntimeError):
        unused.submit(square, 4)
    call = starting.submit(square, 4)
    starting.kill_workers()
    starting.shutdown()
    with pytest.raises((BrokenProcessPool, CancelledError)):
        call.result(WAIT_S)


def test_a_journal_keeps_what_was_done_and_the_rest(desk: Desk, door: Door) -> None:
    executor = batchd.Executor(1, journal=desk.journal, name="nightly")
    assert executor.submit(square, 3).result(WAIT_S) == 9
    executor.submit(door.enter, "cut off")
    until(door.came, "it runs")
    executor.kill_workers()
    executor.shutdown()
    told = json.loads(desk.run("show", "nightly", "--json").stdout)
    assert (told["size"], told["succeeded"]) == (2, 1)
    door.open()
    with batchd.Executor(1, journal=desk.journal, name="nightly") as again:
        assert again.submit(square, 4).result(WAIT_S) == 16
    assert door.came() == ["cut off", "cut off"]


def test_a_callback_of_a_cancelled_call_may_submit_another(make_ours: Any, door: Door) -> None:
    executor: Executor = make_ours(1)
    made: list[Any] = []
    executor.submit(door.enter)
    for moment in ("before it is sent", "while it waits"):
        call = executor.submit(square, 3)
        call.add_done_callback(lambda _: made.append(executor.submit(square, 5)))
        assert call.cancel(), moment
        until(door.came, "the first call runs")
    door.open()
    assert [call.result(WAIT_S) for call in made] == [25, 25]


def test_whoever_hands_a_job_to_a_queue_hears_that_it_was_never_taken(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise SupervisorError("it is gone for good")

    with batchd.Client(desk.journal, workers=1) as client:
        monkeypatch.setattr(Session, "submit", refuse)
        with pytest.raises(SupervisorError, match="gone for good"):
            client.submit(square, 3)
