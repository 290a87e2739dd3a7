"""A full disk, everywhere: a supervisor that is told so for as long as a file is there; nothing is mounted.

To it commits are large that are small: none is light, and none has room in what is free inside the file of a batch.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import batchd
from batchd.client import connect, request
from batchd.client import connection as client
from batchd.client.session import Session
from batchd.core.facts import BatchState
from batchd.core.job import JobState
from batchd.edge.control import REPLY
from batchd.errors import ClientClosed, JournalFull
from batchd.formats.reference import keep_nothing
from batchd.formats.segment import input_blocks
from batchd.settings import SUPERVISOR_RESTARTS_MAX
from tests.bench import ROOT, WAIT_S, House, await_death, pump_until
from tests.commands import until
from tests.disks import full_disk

JOBS = 200
TEXT = "x" * 20_000
LARGE = [("work", 0.01, TEXT)] * JOBS
LARGE_INPUT = [("same", str(number) * 10_000) for number in range(10, 40)]
BOOT = """
import os, sys, time
sys.path.insert(0, {root!r})
from batchd.edge import commits
commits.VALUE_FILE_BYTES_MIN = commits.LIGHT_COMMIT_BYTES = 10_000
commits.DISK_RETRY_S = 0.05
def free_bytes(_):
    while os.path.exists({flag!r} + ".asked"):
        open({flag!r} + ".waits", "w").close()
        time.sleep(0.01)
    return 0 if os.path.exists({flag!r}) else 1 << 40
commits.free_bytes = free_bytes
commits.BatchJournal.bytes_reusable = lambda _: 0
from batchd.supervisor.__main__ import main
sys.exit(main())
"""


class Disk:
    """A disk that is full for what is large, or is not."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def fill(self) -> None:
        self._flag.touch()

    def make_space(self) -> None:
        self._flag.unlink(missing_ok=True)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Make space at the end, however that comes: whoever is closed behind it may wait for that."""
        try:
            yield
        finally:
            self.make_space()

    @contextmanager
    def hesitating(self) -> Iterator[Callable[[], bool]]:
        """Let large commits wait for an answer for a while; gives what tells whether one does."""
        asked, waits = (self._flag.with_name(f"{self._flag.name}.{word}") for word in ("asked", "waits"))
        asked.touch()
        try:
            yield waits.exists
        finally:
            asked.unlink()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    flag = tmp_path / "full"
    monkeypatch.setattr(client, "_BOOT", BOOT.format(root=str(ROOT), flag=str(flag)))
    return Disk(flag)


@pytest.fixture
def stuck(disk: Disk, tmp_path: Path) -> Iterator[tuple[House, Session]]:
    """A batch that waits for space with some of it done."""
    house = House(tmp_path / "journal")
    try:
        go = tmp_path / "go"
        session = house.start(LARGE[:10] + [("once_there", str(go), TEXT)] * 10 + LARGE[20:])
        pump_until(session, lambda: session.progress["is_sealed"] and session.progress["done"] >= 5, "some are done")
        disk.fill()
        go.touch()
        pump_until(session, lambda: session.progress["trouble"], "it is told")
        yield house, session
    finally:
        house.close()


def told(house: House) -> list[str]:
    """What clients heard of their full disk, however much its commits need."""
    return [full_disk(house.folder).sub("full", note) for note in house.notes]


def put_down(house: House, session: Session) -> None:
    session.leave(at_once=False)
    pump_until(session, lambda: session.is_put_down, "it is put down")


def put_down_at_once(house: House, session: Session) -> None:
    session.leave(at_once=True)
    pump_until(session, lambda: session.is_put_down, "it is put down")


def hang_up(house: House, session: Session) -> None:
    session.close()


def tell_to_leave(house: House, session: Session) -> None:
    os.kill(house.supervisor, signal.SIGTERM)
    pump_until(session, lambda: session.is_put_down, "it is put down")


@pytest.mark.covers("D1")
@pytest.mark.parametrize("leave", [put_down, put_down_at_once, hang_up, tell_to_leave])
def test_whoever_leaves_is_let_go_and_the_next_start_goes_on(
    stuck: tuple[House, Session], disk: Disk, leave: Callable[[House, Session], None]
) -> None:
    house, session = stuck
    pid, done = house.supervisor, session.progress["done"]
    leave(house, session)
    session.close()
    await_death(pid)
    assert house.facts().done.size >= done
    disk.make_space()
    again = house.session()
    again.open()
    house.finish(again)
    assert house.outcomes() == dict.fromkeys(range(JOBS), TEXT)


@pytest.mark.covers("D1")
def test_a_batch_is_cancelled_and_its_client_hears_of_it(stuck: tuple[House, Session], disk: Disk) -> None:
    house, session = stuck
    pid, done = house.supervisor, session.progress["done"]
    notes: list[str] = []
    answers: list[dict[str, Any]] = []
    asking = Thread(
        target=lambda: answers.append(request(house.folder, "cancel", note=notes.append, batch="b", reason="why"))
    )
    asking.start()
    pump_until(session, lambda: session.progress["state"] == "cancelled", "it is cancelled")
    house.finish(session)
    asking.join()
    await_death(pid)
    assert full_disk(house.folder).fullmatch(notes[0])
    assert answers[0]["state"] == "cancelled"
    facts = house.facts()
    assert (facts.state, facts.done.size, facts.is_attached) == (BatchState.CANCELLED, JOBS, False)
    assert facts.count(JobState.SUCCEEDED) >= done


@pytest.mark.covers("D1")
def test_a_batch_is_cancelled_also_when_whoever_asked_is_gone(stuck: tuple[House, Session]) -> None:
    """The supervisor leaves with it written down: nobody has to ask the next one again."""
    house, session = stuck
    pid = house.supervisor
    asking = connect(house.folder)
    asking.tell("cancel", batch="b", reason="why")
    until(lambda: request(house.folder, "status")["pid"] == pid, "what was asked before this was heard")
    asking.close()
    await_death(pid)
    assert house.facts().state is BatchState.CANCELLED
    pump_until(session, lambda: session.progress["state"] == "cancelled", "it is told")
    house.finish(session)


@pytest.mark.covers("D1")
def test_nothing_begins_while_the_disk_is_full_and_space_lets_it_go_on(
    stuck: tuple[House, Session], disk: Disk
) -> None:
    house, session = stuck
    pid = house.supervisor
    until(lambda: all(row["job"] is None for row in request(house.folder, "status")["workers"]), "nobody works")
    assert request(house.folder, "status")["trouble"]
    disk.make_space()
    house.finish(session)
    assert house.outcomes() == dict.fromkeys(range(JOBS), TEXT)
    assert told(house) == ["full", "going on"], "the supervisor died of it"
    await_death(pid)


@pytest.mark.covers("D1")
def test_what_waits_in_memory_is_what_had_begun(disk: Disk, tmp_path: Path) -> None:
    """Else large results would fill the memory while the disk is full."""
    house = House(tmp_path / "journal")
    try:
        session = house.start([("work", 0.2, "x" * 100_000)] * 60)
        pump_until(session, lambda: session.progress["is_sealed"] and session.progress["done"] >= 2, "some are done")
        disk.fill()
        pump_until(session, lambda: session.progress["trouble"], "it is told")
        done = session.progress["done"]
        until(lambda: all(row["job"] is None for row in request(house.folder, "status")["workers"]), "nobody works")
        put_down_at_once(house, session)
        session.close()
        again = house.session("c")
        again.open()  # The next start charges what was begun.
        put_down_at_once(house, again)
        facts = house.facts()
        spans = facts.histories.spans(0, facts.size)
        begun = facts.done.size + sum(stop - start for start, stop, history in spans if history.attempts)
        assert begun - done <= 8, "two workers, and a job each that may begin while it is found out"
    finally:
        house.close()


@pytest.mark.covers("D1")
def test_whoever_opens_another_batch_hears_what_is_waited_for(stuck: tuple[House, Session], disk: Disk) -> None:
    house, session = stuck
    other = house.session("c")
    opening = Thread(target=other.open)
    opening.start()
    until(lambda: len(house.notes) == 2, "it is told as well")
    assert told(house) == ["full"] * 2
    disk.make_space()
    opening.join()
    other.leave(at_once=False)
    pump_until(other, lambda: other.is_put_down, "it is put down")
    house.finish(session)


def test_a_batch_that_is_not_made_tells_what_is_free_and_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = "from batchd.supervisor import taking\ntaking.free_bytes = lambda _: 26 << 20\n"
    boot = BOOT.format(root=str(ROOT), flag=str(tmp_path / "full"))
    main = "from batchd.supervisor.__main__"
    monkeypatch.setattr(client, "_BOOT", boot.replace(main, few + main))
    house = House(tmp_path / "journal")
    try:
        with pytest.raises(JournalFull, match=r"nearly full: 26M are free and 32M needed\. Free some"):
            house.run([("same", 1)])
    finally:
        house.close()


@pytest.mark.covers("D1")
def test_another_batch_is_removed_at_once(disk: Disk, tmp_path: Path) -> None:
    house = House(tmp_path / "journal")
    try:
        house.run([("same", 1)], "c")
        session = house.start(LARGE)
        disk.fill()
        pump_until(session, lambda: session.progress["trouble"], "it is told")
        aside = request(house.folder, "prune", batch="c")["aside"]
        assert (house.folder / "batches" / aside).is_dir()
        disk.make_space()
        house.finish(session)
        assert told(house) == ["full", "going on"], "the supervisor died of it"
    finally:
        house.close()


@pytest.mark.covers("D1")
def test_what_was_to_be_removed_when_the_disk_filled_does_not_wait_for_it(disk: Disk, tmp_path: Path) -> None:
    """It was asked for while a commit was under way that it would have followed, and that is not to be."""
    house = House(tmp_path / "journal")
    try:
        house.run([("same", 1)], "c")
        session = house.start(LARGE_INPUT)
        removing = connect(house.folder)
        with disk.hesitating() as is_asked:
            pump_until(session, is_asked, "a commit is under way")
            removing.tell("prune", batch="c")
            assert removing.ask("status")["trouble"] == ""
            disk.fill()
        until(lambda: not (house.folder / "batches" / "c").exists(), "it is removed")
        assert removing.ask("status")["trouble"]
        replies = until(lambda: [each.fields for each in removing.messages() if each.kind == REPLY], "it is answered")
        assert [reply.get("aside") for reply in replies] == [".old-c"]
        removing.close()
        pump_until(session, lambda: house.notes, "it is told")
        disk.make_space()
        house.finish(session)
        assert told(house) == ["full", "going on"], "the supervisor died of it"
    finally:
        house.close()


@pytest.mark.covers("D1")
def test_what_nobody_reads_any_more_is_deleted_while_the_disk_is_full(disk: Disk, tmp_path: Path) -> None:
    """Of a throw-away batch: it may make the space that is waited for, as long as it does not wait behind it."""
    house = House(tmp_path / "journal")
    try:
        session = house.session(spec={"durability": "process", "is_throwaway": True})
        session.open()
        for done, count in ((2, 2), (3, 1)):  # What is recorded together goes together.
            for _, block in input_blocks([("text", 2 << 20)] * count, keep_nothing):
                session.submit(block)
            pump_until(session, lambda: session.progress["done"] == done, "they are done")  # noqa: B023
        values = house.folder / "batches" / "b" / "values"
        assert len(list(values.iterdir())) == 3
        disk.fill()
        for _, block in input_blocks(LARGE_INPUT, keep_nothing):
            session.submit(block)
        pump_until(session, lambda: session.is_paused, "it is told")
        session.trim([(0, 2)])
        pump_until(session, lambda: len(list(values.iterdir())) == 1, "two are deleted")
        session.trim([(2, 3)])
        pump_until(session, lambda: not list(values.iterdir()), "and the third")
        assert session.is_paused
        disk.make_space()
        pump_until(session, lambda: session.progress["done"] == 33, "it goes on")
        put_down(house, session)
        assert told(house) == ["full", "going on"]
    finally:
        house.close()


@pytest.mark.covers("D1")
def test_a_client_that_is_closed_at_once_does_not_wait_for_space(disk: Disk, tmp_path: Path) -> None:
    """Nor does whoever submits, who is told that the job was not taken."""
    made = batchd.Client(tmp_path / "journal", workers=1)
    assert made.submit(len, "x").result(WAIT_S) == 1
    disk.fill()
    told: list[BaseException] = []

    def submit() -> None:
        with pytest.raises(ClientClosed, match="before the journal was known to have the job") as raised:
            made.submit(len, "x" * 100_000)
        told.append(raised.value)

    submitting = Thread(target=submit, daemon=True)
    submitting.start()
    until(lambda: request(tmp_path / "journal", "status")["trouble"], "the disk is full")
    closing = Thread(target=partial(made.close, at_once=True), daemon=True)
    closing.start()
    closing.join(WAIT_S)
    submitting.join(WAIT_S)
    disk.make_space()
    assert not closing.is_alive()
    assert told


@pytest.fixture
def full(disk: Disk, tmp_path: Path) -> Iterator[Path]:
    """A journal whose disk is full, as its supervisor has found out."""
    with batchd.Client(tmp_path / "journal", workers=1) as made, disk.ending():
        assert made.submit(len, "x").result(WAIT_S) == 1
        disk.fill()
        made.hand_over(len, ("x" * 100_000,), {})
        until(lambda: request(tmp_path / "journal", "status")["trouble"], "it is told")
        yield tmp_path / "journal"


def close_at_once(client: batchd.Client) -> None:
    closing = Thread(target=partial(client.close, at_once=True), daemon=True)
    closing.start()
    closing.join(WAIT_S)
    assert not closing.is_alive()


def opening(client: batchd.Client) -> bool:
    """Whether a client waits for space to have its queue or a batch opened."""
    attachments = [client._queue._attachment, *(batch._attachment for batch in client._batches)]
    sessions = [each.session for each in attachments if each and hasattr(each, "session")]
    return any(session._connection is not None and session._connection.waits_for for session in sessions)


@pytest.mark.covers("D1")
def test_a_client_that_is_closed_at_once_does_not_wait_for_space_to_open_its_queue(full: Path) -> None:
    made = batchd.Client(full, workers=1, queue="other")
    future = made.hand_over(len, ("x",), {})
    until(lambda: opening(made), "it waits")
    close_at_once(made)
    for waiting in filter(None, (future, future.accepted)):
        assert isinstance(waiting.exception(WAIT_S), ClientClosed)


@pytest.mark.covers("D1")
def test_a_client_that_is_closed_at_once_does_not_begin_to_wait_for_space(disk: Disk, tmp_path: Path) -> None:
    """It was closed when nobody knew of the disk, but its queue was not open yet."""
    with batchd.Client(tmp_path / "journal", workers=1) as other, disk.ending():
        assert other.submit(len, "x").result(WAIT_S) == 1
        made = batchd.Client(tmp_path / "journal", workers=1, queue="other")
        with disk.hesitating() as is_asked:
            other.hand_over(len, ("x" * 100_000,), {})
            until(is_asked, "a commit is under way")
            future = made.hand_over(len, ("x",), {})
            (attachment,) = made.let_go(True)
            disk.fill()
        attachment.end.result(WAIT_S)
        assert isinstance(future.exception(WAIT_S), ClientClosed)


@pytest.mark.covers("D1")
def test_a_batch_that_is_closed_at_once_does_not_wait_for_space_to_be_opened(full: Path) -> None:
    made = batchd.Client(full, workers=1)
    told: list[BaseException] = []

    def submit() -> None:
        with pytest.raises(ClientClosed, match="before the full disk let it be opened: make space and") as raised:
            made.submit_batch(len, ["x"], name="n")
        told.append(raised.value)

    submitting = Thread(target=submit, daemon=True)
    submitting.start()
    until(lambda: opening(made), "it waits")
    close_at_once(made)
    submitting.join(WAIT_S)
    assert told


BOOT_WITHOUT_ROOM_TO_LEAVE = """
import os, sys, time
sys.path.insert(0, {root!r})
from batchd.core.entries import Detached
from batchd.edge import commits
commits.DISK_RETRY_S = 0.05
asked = 0
def has_room(entries, journal):
    global asked
    asked += any(isinstance(entry, Detached) for entry in entries)
    while asked > 1 and not os.path.exists({flag!r} + ".space"):
        open({flag!r} + ".waits", "w").close()
        time.sleep(0.01)
    return asked != 1
commits.has_room = has_room
from batchd.supervisor.__main__ import main
sys.exit(main())
"""


@pytest.mark.covers("D1")
def test_who_waits_for_space_to_leave_is_let_go_although_something_was_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is deleted at once is in no commit: what is to be durable behind it waits for no further one."""
    flag = tmp_path / "full"
    monkeypatch.setattr(client, "_BOOT", BOOT_WITHOUT_ROOM_TO_LEAVE.format(root=str(ROOT), flag=str(flag)))
    house = House(tmp_path / "journal")
    try:
        other = connect(house.folder)  # So that there is a reserve: the supervisor of a throw-away journal has none.
        session = house.session(spec={"durability": "process", "is_throwaway": True})
        session.open()
        session.submit(b"".join(block for _, block in input_blocks([("same", 1)])))
        pump_until(session, lambda: session.progress["done"] == 1, "it is done")
        session.leave(at_once=False)
        pump_until(session, flag.with_suffix(".waits").exists, "it waits for space")
        replies: list[dict[str, Any]] = []
        session.trim([(0, 1)])
        session.post("running", b"", replies.append)
        pump_until(session, lambda: replies, "what is to be deleted was heard before")
        flag.with_suffix(".space").touch()
        pump_until(session, lambda: session.is_put_down, "it is put down")
        assert not other.ask("status")["batches"], "in order, by a supervisor that is there"
        other.close()
    finally:
        house.close()


@pytest.mark.covers("D1")
def test_who_waits_for_space_outlasts_all_who_give_up(disk: Disk, tmp_path: Path) -> None:
    """A supervisor that leaves for them is none that died, and the job that ran then is not to blame."""
    house = House(tmp_path / "journal")
    try:
        session = house.start([("work", 600.0)], workers=1)
        pump_until(session, lambda: session.progress["is_sealed"] and session.busy, "a job runs")
        disk.fill()
        waiting = house.start(LARGE_INPUT, "w")
        pump_until(waiting, lambda: waiting.progress["trouble"], "it is told")
        (house.folder / "reserve").unlink()
        waiting._restarts, waiting._done_at_restart = SUPERVISOR_RESTARTS_MAX, 0  # As after so many deaths.
        giving_up = connect(house.folder)
        giving_up.tell("open", **house.session("c")._open_fields)
        until(lambda: "c" in request(house.folder, "status")["batches"], "a third batch is taken up")
        pid = house.supervisor
        giving_up.close()
        await_death(pid)
        pump_until(waiting, lambda: waiting.restarts, "it goes on with the next supervisor")
        assert house.notes[-1].startswith("the supervisor left, for the disk is full; started another")
        ((_, _, history),) = house.facts().histories.spans(0, 1)
        assert (history.attempts, history.interruptions) == (1, 0)
        put_down_at_once(house, waiting)
    finally:
        house.close()
