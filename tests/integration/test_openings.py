"""Whoever asks for a batch is answered, whatever goes wrong while it is made, taken up or put down."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from batchd.client import connect
from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.facts import apply
from batchd.core.job import JobState
from batchd.core.stored import copy
from batchd.edge.drafts import make_batch
from batchd.edge.folder import open_folder
from batchd.edge.journal import BatchJournal
from batchd.formats.report import Failure
from batchd.supervisor import taking
from tests.author import submission
from tests.bench import ROOT, WAIT_S, House
from tests.host import Caller, Host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(open_folder(tmp_path / "journal"))
    yield made
    made.close()


@pytest.fixture
def caller(host: Host) -> Iterator[Callable[[], Caller]]:
    made: list[Caller] = []

    def call() -> Caller:
        made.append(Caller(host))
        return made[-1]

    yield call
    for each in made:
        each.close()


def failing(monkeypatch: pytest.MonkeyPatch, target: object, name: str, error: Exception) -> None:
    """Have a function raise once, and then work again."""
    works = getattr(target, name)

    def fail(*_: object) -> None:
        monkeypatch.setattr(target, name, works)
        raise error

    monkeypatch.setattr(target, name, fail)


# --- Made and taken up -----------------------------------------------------------------------------------------


def test_a_bug_while_a_batch_is_taken_up_is_told_and_leaves_it_closed(
    host: Host, caller: Callable[[], Caller], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = caller()
    failing(monkeypatch, BatchJournal, "read_usage", ZeroDivisionError("a bug"))
    told = client.hear(client.open())
    assert told["error"] == "SupervisorError"
    assert told["message"].startswith("cannot open batch b: ZeroDivisionError: a bug; ")
    assert "supervisor.log" in told["message"]
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err
    assert host.journals == {}
    assert host.events == []
    # A journal that is open already cannot be opened by the same process.
    assert client.hear(client.open())["size"] == 0


@pytest.mark.parametrize("name", ["progress", "commit"])
def test_no_batch_is_half_taken_up(
    host: Host, caller: Callable[[], Caller], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    client = caller()
    monkeypatch.setattr(taking, "all_interrupted", lambda _: (1,))
    monkeypatch.setattr(BatchJournal, "commit", lambda *_: None)
    failing(monkeypatch, BatchJournal, name, ZeroDivisionError("a bug"))
    assert client.hear(client.open())["error"] == "SupervisorError"
    assert host.journals == {}
    assert client.hear(client.open())["size"] == 0


def test_whoever_waits_for_a_batch_to_be_made_is_served_whatever_becomes_of_the_first(
    host: Host, caller: Callable[[], Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, BatchJournal, "read_usage", ZeroDivisionError("a bug"))
    are_both_here = Event()

    def make(folder: Path, spec: dict[str, Any]) -> None:
        are_both_here.wait(WAIT_S)
        make_batch(folder, spec)

    monkeypatch.setattr(taking, "make_batch", lambda folder, spec, _: make(folder, spec))
    first, second = caller(), caller()
    numbers = first.open(is_shared=True), second.open(is_shared=True)
    are_both_here.set()
    assert second.hear(numbers[1])["size"] == 0
    assert first.hear(numbers[0])["error"] == "SupervisorError"


def test_a_batch_whose_making_hits_a_bug_is_told(
    host: Host, caller: Callable[[], Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = caller()
    failing(monkeypatch, taking, "make_batch", ZeroDivisionError("a bug"))
    assert client.hear(client.open())["message"].startswith("cannot open batch b: ZeroDivisionError: a bug; ")
    assert client.hear(client.open())["size"] == 0


def test_what_is_imported_for_a_client_that_is_gone_is_let_go(host: Host, caller: Callable[[], Caller]) -> None:
    host.is_importing = True
    client, other = caller(), caller()
    client.open()
    other.open("c")
    assert len(host.waiting) == 2
    client.close()
    deadline = monotonic() + WAIT_S
    while len(host.waiting) == 2:
        assert monotonic() < deadline, "it is never let go"
        host.turn()
    assert [is_waiting() for is_waiting in host.waiting] == [True]


@pytest.mark.parametrize("has_others", [False, True])
def test_the_last_news_hold_the_answers_and_outcomes_that_nobody_told_yet(
    host: Host, caller: Callable[[], Caller], has_others: bool
) -> None:
    client, other = caller(), caller()
    client.hear(client.open(is_shared=True, follows=True))
    if has_others:
        other.hear(other.open(is_shared=True))
    number = client.submit()
    host.commit()
    host.clients.owner("b").untold["b"].add(0, 3)  # type: ignore[union-attr]  # As of one that was slow to read.
    client.send("detach", batch="b")
    if not has_others:
        host.put_down("b")
    client.take_in()
    last = client.news[-1]
    assert (last["answered"], last["recorded"], last["is_put_down"]) == ([number], [[0, 3]], True)


def test_a_patient_request_of_a_client_that_left_is_answered_by_itself(
    host: Host, caller: Callable[[], Caller]
) -> None:
    client, other = caller(), caller()
    for each in (client, other):
        each.hear(each.open(is_shared=True))
    number = client.submit()
    client.send("detach", batch="b")
    assert client.hear(number)["size"] == 0


def test_two_who_open_a_queue_at_once_ask_for_the_same(host: Host, caller: Callable[[], Caller]) -> None:
    """The second one is looked at as soon as the batch is there, and before the scheduler has heard of it."""
    first, second = caller(), caller()
    opened, refused = first.open(is_shared=True), second.open(is_shared=True, timeout_s=7.5)
    while "b" not in host.journals:
        host.turn()
    second.take_in()
    assert not second.replies, "nobody knows yet by which rules it runs"
    assert "message" not in first.hear(opened)
    assert "is open with" in second.hear(refused)["message"]


def test_whoever_waits_for_a_batch_to_be_put_down_is_answered_whatever_goes_wrong(
    host: Host, caller: Callable[[], Caller]
) -> None:
    """Here the task of one cannot even be looked at, and a third has a bug of its own."""
    first, second, third = caller(), caller(), caller()
    first.hear(first.open())
    first.send("detach", batch="b")
    first.close()
    host.turn()

    def fail() -> None:
        host.import_error = MemoryError("none left")
        raise ZeroDivisionError("a bug")

    host.clients.when_put_down("b", fail)
    number = second.open()
    host.clients.when_put_down("b", lambda: setattr(host, "import_error", None))
    last = third.open()
    host.put_down("b")
    assert second.hear(number)["message"].startswith("cannot open batch b: MemoryError: none left; ")
    assert third.hear(last)["size"] == 0


# --- Changed ---------------------------------------------------------------------------------------------------


def with_failed(host: Host, batch: str, count: int = 5) -> None:
    """Make a batch in which every second job failed."""
    journal = BatchJournal.create(host.ground.folder / "batches" / batch, {})
    journal.commit([submission(journal.facts, list(range(count)))])
    failure = Failure("Oops", "it failed", bytes(8)).encode()
    odd = range(1, count, 2)
    journal.commit([e.Recorded(batch, index, 1, JobState.FAILED, failure=failure) for index in odd])
    journal.close()


def test_what_runs_again_is_read_aside_and_never_while_the_map_moves(
    host: Host, caller: Callable[[], Caller]
) -> None:
    with_failed(host, "b")
    client, other = caller(), caller()
    client.hear(client.open())
    with host.journals["b"]._map_lock:  # As while the thread that commits makes the map larger.
        number = other.send("reopen", batch="b", states=[int(JobState.FAILED)])
        assert client.hear(client.send("status"))["number"], "the loop waits"
        host.commit()
        assert not [event for event in host.events if isinstance(event, ev.ReopenRequested)]
        assert number not in other.replies
    assert other.hear(number)["is_live"]
    assert host.events[-1] == ev.ReopenRequested("b", ((JobState.FAILED, ((1, 2), (3, 4))),), 0)


def test_what_others_reopen_meanwhile_is_read_again(host: Host, caller: Callable[[], Caller]) -> None:
    with_failed(host, "b")
    client = caller()
    client.hear(client.open())
    journal = host.journals["b"]
    live = copy(journal.facts)
    host.scheduler.batches["b"] = SimpleNamespace(facts=live, workers=())
    again = e.Reopened("b", 1, ((1, 2),), JobState.FAILED)
    apply(live, again)
    number = client.send("reopen", batch="b", states=[int(JobState.FAILED)])
    for _ in range(3):
        host.turn()
    assert not [event for event in host.events if isinstance(event, ev.ReopenRequested)], "of an older generation"
    journal.commit([again])
    assert client.hear(number)["is_live"]
    assert host.events[-1] == ev.ReopenRequested("b", ((JobState.FAILED, ((3, 4),)),), 1)


def test_of_two_who_retry_at_once_the_second_is_read_when_the_first_is_known(
    host: Host, caller: Callable[[], Caller]
) -> None:
    with_failed(host, "b")
    clients = caller(), caller()
    clients[0].hear(clients[0].open())
    numbers = [each.send("reopen", batch="b", states=[int(JobState.FAILED)]) for each in clients]
    for _ in range(3):
        host.turn()
    assert host.events[1:] == [ev.ReopenRequested("b", ((JobState.FAILED, ((1, 2), (3, 4))),), 0)]
    again = e.Reopened("b", 1, ((1, 2), (3, 4)), JobState.FAILED)
    apply(host.scheduler.batches["b"].facts, again)
    host.journals["b"].commit([again])
    assert all(each.hear(number)["is_live"] for each, number in zip(clients, numbers, strict=True))
    assert [event.generation for event in host.events[1:] if isinstance(event, ev.ReopenRequested)] == [0, 1]


def test_what_is_put_down_while_it_is_read_is_taken_up_again(host: Host, caller: Callable[[], Caller]) -> None:
    with_failed(host, "b")
    first, second = caller(), caller()
    first.hear(first.open())
    journal = host.journals["b"]
    with journal._map_lock:
        number = second.send("reopen", batch="b", states=[int(JobState.FAILED)], ranges=[[0, 2]])
        journal.is_closed = True
        host.clients.on_put_down("b")
        journal._env.close()
        del host.journals["b"]
    told = second.hear(number)
    assert (told["is_live"], told["undone"]) == (False, [[0, 1]])
    assert host.events[-2:] == [
        ev.ReopenRequested("b", ((JobState.FAILED, ((1, 2),)),), 0),
        ev.DetachRequested("b"),
    ]


# --- Half made -------------------------------------------------------------------------------------------------

SLOW = """
import sys
from pathlib import Path
from batchd.supervisor import taking
from batchd.supervisor.loop import Supervisor
from batchd.supervisor.recovery import recover

make_batch = taking.make_batch

def make_slowly(*how):
    print("making", flush=True)
    sys.stdin.readline()
    make_batch(*how)

taking.make_batch = make_slowly
supervisor = Supervisor(recover(Path(sys.argv[1])))
print("ready", flush=True)
sys.exit(supervisor.run())
"""


@pytest.mark.covers("H3")
def test_a_supervisor_that_is_asked_to_stop_finishes_the_batch_it_is_making(house: House) -> None:
    command, pipe = [sys.executable, "-c", SLOW, str(house.folder)], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as slow:
        assert slow.stdin is not None
        assert slow.stdout is not None
        assert slow.stderr is not None
        assert slow.stdout.readline() == b"ready\n"
        client = connect(house.folder)
        number = client.tell("open", **house.session()._open_fields)
        assert slow.stdout.readline() == b"making\n"
        os.kill(slow.pid, signal.SIGTERM)
        assert b"asked to stop: draining" in slow.stderr.readline()
        assert client.ask("hello")["pid"] == slow.pid
        slow.stdin.write(b"\n")
        slow.stdin.flush()
        assert slow.wait(WAIT_S) == 0
        (reply,) = (message.fields for message in client.messages() if message.fields.get("number") == number)
        client.close()
        assert "asked to stop" in reply["message"]
    assert [path.name for path in (house.folder / "batches").iterdir()] == ["b"]
    assert house.facts().size == 0


def test_what_a_supervisor_died_making_is_removed_by_the_next(house: House) -> None:
    draft = house.folder / "batches" / ".new-other"
    draft.mkdir()
    (draft / "data.mdb").write_bytes(b"torn")
    house.session().open()
    assert [path.name for path in (house.folder / "batches").iterdir()] == ["b"]
