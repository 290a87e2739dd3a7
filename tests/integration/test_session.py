"""The client's side of a dying supervisor: nothing it said is unheard, nothing that was sent is lost."""

import os
import shutil
import signal
import socket
from typing import Any

import pytest

from batchd.client import Connection, SupervisorGone, start_supervisor
from batchd.client import connection as connection_module
from batchd.client import session as session_module
from batchd.client.session import Pending
from batchd.edge import control
from batchd.edge.lock import holder_of
from batchd.errors import BatchNotFound, NotAJournal, SupervisorError
from batchd.formats.tables import TASK_MARK
from tests.bench import House, await_death, is_alive, pump_until


def test_what_was_said_before_a_hang_up_is_heard() -> None:
    mine, its = socket.socketpair()
    its.sendall(control.encode(control.NEWS, {"batch": "b", "is_put_down": True}))
    its.close()
    connection = Connection(mine)
    assert [message.fields["is_put_down"] for message in connection.messages()] == [True]
    with pytest.raises(SupervisorGone, match="it hung up"):
        connection.messages()
    mine.close()


class Fragile(Connection):
    """A connection that takes so many requests and then is gone."""

    def __init__(self, takes: int) -> None:
        mine, self._peer = socket.socketpair()
        super().__init__(mine)
        self.taken: list[int] = []
        self._takes = takes

    def tell(self, _do: str, _body: bytes = b"", /, **fields: Any) -> int:
        if len(self.taken) == self._takes:
            raise SupervisorGone("dead")
        self.taken.append(fields["sequence"])
        return len(self.taken)

    def close(self) -> None:
        self.socket.close()
        self._peer.close()


def test_no_input_is_lost_when_the_supervisor_dies_while_it_is_sent_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = house.session()
    session._pending = {number: Pending("submit", b"x", {"sequence": number}, None) for number in range(1, 6)}
    lines = [Fragile(2), Fragile(0), Fragile(9)]
    waiting = iter(lines)
    monkeypatch.setattr(session, "open", lambda: setattr(session, "_connection", next(waiting)))
    session.start_another()
    assert [line.taken for line in lines] == [[1, 2], [], [1, 2, 3, 4, 5]]
    assert session._unacked_bytes == 5
    for line in lines:
        line.close()


@pytest.mark.fault
def test_a_batch_that_was_removed_under_a_session_is_not_made_again(house: House) -> None:
    """Its client would take what it was told of the first for true of the second, which is empty."""
    session = house.start([("work", 0.0, 1)])
    pump_until(session, lambda: session.is_over, "it is over")
    end(house)
    shutil.rmtree(house.folder / "batches" / "b")
    with pytest.raises(BatchNotFound, match="there is no batch b"):
        pump_until(session, lambda: session.restarts > 1, "it went on")
    assert not (house.folder / "batches" / "b").exists()


@pytest.mark.fault
@pytest.mark.parametrize("is_shared", [False, True])
def test_a_session_goes_on_with_no_other_batch_that_has_the_id(house: House, *, is_shared: bool) -> None:
    session, other = (house.session(spec={"durability": "process", "created": day}) for day in ("monday", "friday"))
    for each in (session, other):
        each._open_fields["is_shared"] = is_shared
    session.open()
    end(house)
    shutil.rmtree(house.folder / "batches" / "b")
    other.open()
    if not is_shared:
        other.leave(at_once=False)
        pump_until(other, lambda: other.is_put_down, "it is put down")
    with pytest.raises(BatchNotFound, match="batch b of monday was removed while it was in use"):
        pump_until(session, lambda: session.restarts > 1, "it went on")


def end(house: House) -> None:
    pid = house.supervisor
    os.kill(pid, signal.SIGKILL)
    await_death(pid)


def test_what_is_to_be_forgotten_is_not_asked_for_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function may have been sent anew behind that, and jobs that name it may be running."""
    session = house.session()
    fields: dict[str, Any] = {"ranges": [[0, 1]], "marks": ["01" * 8], "sequence": 1}
    session._pending = {1: Pending("trim", b"", fields, None), 2: Pending("submit", b"x", {"sequence": 2}, None)}
    line = Fragile(9)
    monkeypatch.setattr(session, "open", lambda: setattr(session, "_connection", line))
    session.start_another()
    assert line.taken == [2]
    line.close()


def test_nobody_has_the_task_itself_forgotten(house: House) -> None:
    session = house.session(spec={"durability": "process", "is_throwaway": True})
    session.open()
    told: list[dict[str, Any]] = []
    session.post("trim", b"", told.append, ranges=[], marks=[TASK_MARK.hex()])
    pump_until(session, lambda: told, "it is answered")
    assert told[0]["message"] == "malformed request: ValueError: a mark that is none"


def test_a_supervisor_that_keeps_dying_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "connect", lambda *_, **__: (_ for _ in ()).throw(SupervisorGone("dead")))
    with pytest.raises(
        SupervisorError, match=r"died 6 times without progress; its last words are in .*supervisor\.log"
    ):
        house.session().open()


def test_a_supervisor_that_cannot_start_says_why(house: House) -> None:
    (house.folder / "journal.json").write_text("{}")
    with pytest.raises(NotAJournal, match=r"its journal\.json is damaged"):
        start_supervisor(house.folder)
    assert not is_alive(int(holder_of(house.folder).get("pid", 0)))
    (house.folder / "supervisor.lock").unlink()


def test_supervisors_that_die_as_soon_as_they_are_ready_are_given_up(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_BOOT", "import os, sys; os.write(int(sys.argv[2]), b'ready')")
    monkeypatch.setattr(connection_module, "START_WAIT_S", 0.1)
    with pytest.raises(SupervisorError, match=r"start and leave at once; their last words are in .*supervisor\.log"):
        connection_module.connect(house.folder)
