"""The control socket: nonsense is answered or hung up on, and disturbs nobody else."""

import socket
from collections.abc import Iterator
from math import inf
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from select import select
from selectors import DefaultSelector
from types import SimpleNamespace
from typing import Any, cast

import pytest

from batchd.client import Connection
from batchd.core.scheduler import Scheduler
from batchd.edge import control
from batchd.edge.journal import BatchJournal
from batchd.formats.segment import input_blocks
from batchd.supervisor.clients import Client, Clients, Host
from batchd.supervisor.usage import Usage
from tests.author import submission
from tests.bench import WAIT_S, House


@pytest.mark.parametrize(
    "data", [b"garbage " * 100, b"\0" * 4096, b"bdF1" + b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n" * 9]
)
@pytest.mark.covers("C6")
def test_garbage_ends_its_own_connection_only(house: House, data: bytes) -> None:
    session = house.start([("work", 0.01, n) for n in range(10)])
    pid = house.supervisor
    with control.connect(house.folder) as slow, control.connect(house.folder) as line:
        slow.sendall(control.encode(control.REQUEST, {"do": "hello"})[:10])  # Never whole.
        line.sendall(data)
        assert select([line], [], [], WAIT_S)[0]
        try:
            assert line.recv(100) == b""
        except ConnectionResetError:
            pass  # It hung up with some of the garbage unread.
        house.finish(session)
        assert house.outcomes() == {index: index for index in range(10)}
        assert house.supervisor == pid


OPEN: dict[str, Any] = {
    "do": "open",
    "batch": "x",
    "spec": {},
    "options": {"workers": 1, "allowances": {}},
    "key": "k",
    "key_spec": {"task": ["a", "b"], "sys_path": [], "cwd": "/", "environ": {}, "executable": "/bin/true"},
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"do": None},
        {"do": ["hello"]},
        {"do": "open"},
        {**OPEN, "batch": "../../x"},
        {**OPEN, "spec": "text"},
        {**OPEN, "spec": []},
        {**OPEN, "options": "text"},
        {**OPEN, "options": {"workers": "many", "allowances": {}}},
        {**OPEN, "options": {"workers": 0, "allowances": {}}},
        {**OPEN, "options": {"workers": 1, "allowances": {"retries": "x"}}},
        {**OPEN, "options": {"workers": 1, "allowances": {}, "timeout_s": "soon"}},
        {**OPEN, "key_spec": {**OPEN["key_spec"], "task": 5}},
        {**OPEN, "key_spec": {**OPEN["key_spec"], "environ": {"A": 5}}},
        {**OPEN, "key_spec": {**OPEN["key_spec"], "environ": {"A": "\0"}}},
        {**OPEN, "key_spec": {**OPEN["key_spec"], "executable": "/does/not/exist"}},
        {**OPEN, "key_spec": {**OPEN["key_spec"], "executable": []}},
        {**OPEN, "key_spec": {**OPEN["key_spec"], "what": 1}},
        {"do": "submit", "batch": "x"},
        {"do": "seal", "batch": "x"},
        {"do": "cancel", "batch": "", "reason": "x"},
        {"do": "cancel", "batch": "x"},
        {"do": "reopen", "batch": "x", "states": [99]},
        {"do": "reopen", "batch": "x", "states": 5},
        {"do": "scale", "workers": None, "change": 1e999},
        {"do": "scale", "workers": 1e999},
        {"do": "scale", "workers": "x"},
        {"do": "scale"},
    ],
)
@pytest.mark.covers("C6")
def test_a_request_that_makes_no_sense_is_answered_so(shared_house: House, fields: dict[str, Any]) -> None:
    pid = shared_house.supervisor
    with control.connect(shared_house.folder) as line:
        connection = Connection(line)
        number = connection.tell("hello")
        line.sendall(control.encode(control.REQUEST, {**fields, "number": 77}))
        replies: list[control.Message] = []
        while not [message for message in replies if message.fields["number"] == 77]:
            assert select([line], [], [], WAIT_S)[0], "no answer"
            replies += connection.messages()
    assert [message.fields["number"] for message in replies] == [number, 77]
    assert replies[1].fields["message"]
    assert shared_house.supervisor == pid
    assert shared_house.sessions[0].progress["state"] == "open"


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One supervisor for all that must not disturb it."""
    made = House(tmp_path_factory.mktemp("shared") / "journal")
    made.session().open()
    yield made
    made.close()


@pytest.mark.covers("C6")
def test_segments_that_are_cut_off_are_refused(shared_house: House) -> None:
    session = shared_house.sessions[0]
    line = session._connection
    assert line is not None
    body = b"".join(block for _, block in input_blocks([1, 2, 3]))
    for damaged in (body[:-1], body + b"x", b"x" * 40):
        number = line.tell("submit", damaged, batch="b", client="c", sequence=1, checkpoint="")
        replies: list[control.Message] = []
        while not [message for message in replies if message.fields.get("number") == number]:
            assert select([line.socket], [], [], WAIT_S)[0], "no answer"
            replies += line.messages()
        assert replies[-1].fields["error"] == "FormatError"
    assert shared_house.facts().size == 0


# --- What clients are told -------------------------------------------------------------------------------------


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[Clients]:
    """The clients' room on its own, with one batch of three jobs."""
    journal = BatchJournal.create(tmp_path / "b", {})
    progress = journal.commit([submission(journal.facts, [1, 2, 3])])
    journal.close()
    timers: list[Any] = []
    host = SimpleNamespace(
        timers=timers,
        ground=SimpleNamespace(folder=tmp_path),
        selector=DefaultSelector(),
        scheduler=SimpleNamespace(batches={}),
        pool=SimpleNamespace(workers={}, shortage="", let_go=lambda: None),
        journals={},
        progress={"b": progress},
        usage=Usage(cast(Scheduler, None)),
        trouble="",
        emit=lambda _: None,
        later=lambda _, call: timers.append(call),
    )
    made = Clients(cast(Host, host))
    yield made
    made.close()
    host.selector.close()


def test_a_client_that_does_not_read_is_not_told_more(clients: Clients) -> None:
    mine, its = socket.socketpair()
    client = Client(control.Line(mine))
    client.bound = {"b"}
    clients._clients.append(client)
    selector = clients._supervisor.selector
    for source in (mine, client.pidfd):
        selector.register(source, 1)
    client.line._unsent += b"what the socket did not take"
    for now in (1.0, 2.0, 3.0):
        clients.mark_news("b")
        clients.tell_news(now)
    assert client.line._unsent == b"what the socket did not take"
    assert clients.news_due(is_resting=False) < inf
    client.line._unsent.clear()
    clients.tell_news(4.0)
    assert clients.news_due(is_resting=False) == inf
    assert [message.fields["size"] for message in Connection(its).messages()] == [3]
    its.close()


@pytest.mark.covers("H1", "P29")
def test_whoever_knocks_when_there_is_no_descriptor_left_waits_and_keeps_nobody_awake(clients: Clients) -> None:
    """The door stays ready all the while: watched, it would wake the loop without end."""
    host = cast(Any, clients._supervisor)
    soft, hard = getrlimit(RLIMIT_NOFILE)
    knocking = control.connect(host.ground.folder)
    try:
        setrlimit(RLIMIT_NOFILE, (knocking.fileno() + 1, hard))
        while host.selector.select(0):
            for key, _ in host.selector.select(0):
                key.data()
        are_there = [clients.is_any]
    finally:
        setrlimit(RLIMIT_NOFILE, (soft, hard))
    (look_again,) = host.timers
    look_again()
    for key, _ in host.selector.select(0):
        key.data()
    assert [*are_there, clients.is_any] == [False, True]
    knocking.close()
