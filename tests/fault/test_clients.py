"""Clients that are stopped, of another user, or too many: the others are served."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchd.client import Session, connect, request
from batchd.client.connection import LOG_NAME, Connection
from batchd.core.job import JobState
from batchd.edge import control
from batchd.edge.journal import BatchJournal
from batchd.edge.readiness import readable
from batchd.settings import UNSAVED_BYTES_MAX
from tests.bench import ROOT, WAIT_S, House, await_death, pump_until
from tests.commands import Desk, pause, status_of, until
from tests.fault import tasks
from tests.fault.ledger import Tally
from tests.written import make, succeeded

pytestmark = pytest.mark.fault


@contextmanager
def program(source: str, *args: object) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program that says a line when it is where it should be; it is killed in the end."""
    with subprocess.Popen(
        [sys.executable, "-c", source, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            yield process
        finally:
            process.kill()


def status(house: House, *args: str) -> str:
    """Return what `batchd status` shows. Fails after a deadline."""
    command = [sys.executable, "-m", "batchd", "status", "--journal", str(house.folder), *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=WAIT_S).stdout


HALF = """
import sys
from pathlib import Path
from batchd.edge import control
line = control.connect(Path(sys.argv[1]))
line.sendall(control.encode(control.REQUEST, {"do": "hello", "number": 1})[:9])
print("there", flush=True)
sys.stdin.read()
"""


@pytest.mark.covers("C2", "C6")
def test_a_client_that_stops_in_the_middle_of_a_request_holds_nobody_up(house: House) -> None:
    session = house.start([("work", 0.005, index) for index in range(200)])
    with program(HALF, house.folder) as process:
        os.kill(process.pid, signal.SIGSTOP)
        pump_until(session, lambda: session.progress["done"] > 50, "the batch goes on")
        assert request(house.folder, "status")["pid"] == house.supervisor
        house.finish(session)
    assert house.outcomes() == {index: index for index in range(200)}


READER = """
import sys
from pathlib import Path
from batchd.edge.journal import BatchJournal
journal = BatchJournal(Path(sys.argv[1]))
with journal.begin():
    print("there", flush=True)
    sys.stdin.read()
"""


@pytest.mark.covers("C3")
def test_a_reader_that_is_stopped_costs_bounded_space_and_no_time(house: House, tally: Tally) -> None:
    """It sees an old state for ever, whose pages cannot be used again while it lives."""
    jobs = 3_000

    def run(batch: str, *, has_reader: bool) -> int:
        session = house.start([("work", 0.0005, "x" * 500)] * jobs, batch)
        pump_until(session, lambda: session.progress["done"] > 10, "some are done")
        place = house.folder / "batches" / batch
        if has_reader:
            with program(READER, place) as process:
                os.kill(process.pid, signal.SIGSTOP)
                house.finish(session)
        else:
            house.finish(session)
        return size_of(place)

    alone, watched = run("alone", has_reader=False), run("watched", has_reader=True)
    assert house.outcomes("watched") == dict.fromkeys(range(jobs), "x" * 500)
    assert watched < 10 * alone
    tally.saw(f"{watched / alone:.1f} times the space")


def size_of(batch: Path) -> int:
    """Return how much of the disk a batch takes."""
    return (batch / "data.mdb").stat().st_blocks * 512


@pytest.mark.covers("C3")
def test_space_that_a_reader_held_is_used_again_when_it_has_ended(tmp_path: Path, tally: Tally) -> None:
    """Written commit by commit, for those of a supervisor are fewer and larger on a busy machine."""
    (tmp_path / "batches").mkdir()
    make(tmp_path, "b", size=1_500)
    place = tmp_path / "batches" / "b"
    journal = BatchJournal(place, is_writer=True)
    before = size_of(place)
    with program(READER, place) as process:
        for index in range(1_000):
            journal.commit([succeeded("b", index, "x" * 500)])
        process.communicate()
        assert process.returncode == 0
    held = size_of(place)
    for index in range(1_000, 1_500):
        journal.commit([succeeded("b", index, "x" * 500)])
    journal.close()
    assert size_of(place) <= held
    tally.saw(f"{held - before:,} bytes more while it read, and then none")


STRICT = """
import os, sys
from pathlib import Path
from batchd.edge import journal
from batchd.supervisor.loop import Supervisor
from batchd.supervisor.recovery import recover
journal.READERS_CHECK_COMMITS = 16
os.dup2(os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
supervisor = Supervisor(recover(Path(sys.argv[1])))
print("there", flush=True)
sys.exit(supervisor.run())
"""


@pytest.mark.covers("C3")
def test_a_reader_that_holds_the_space_of_a_batch_is_named(house: House) -> None:
    """And nobody who reads all the time, a moment each time. Here sixteen commits are long."""
    with program(STRICT, house.folder, house.folder / LOG_NAME) as supervisor:
        session = house.start([("work", 0.02, index) for index in range(5_000)])
        pump_until(session, lambda: session.progress["done"] > 0, "it runs")
        often = BatchJournal(house.folder / "batches" / "b")

        def warnings() -> Any:
            session.pump(0.01)
            often.refresh()
            return request(house.folder, "status")["warnings"]

        assert warnings() == []
        with program(READER, often.folder) as reader:
            os.kill(reader.pid, signal.SIGSTOP)
            (told,) = until(warnings, "it is told")
            found = re.fullmatch(
                rf"process {reader.pid} \(python\S*\) has been reading batch b for ([\d,]+) commits: "
                rf"until it ends the batch's file only grows; `kill {reader.pid}` ends it, "
                rf"`kill -CONT {reader.pid}` lets it go on, for it was stopped",
                told,
            )
            assert found, told
            assert int(found[1].replace(",", "")) >= 16
            assert f"  {told.partition(' for ')[0]} for " in status(house)  # By now for some commits more.
        until(lambda: not warnings(), "it is over with the reader")
        often.close()
        session.leave(at_once=True)
        pump_until(session, lambda: session.is_put_down, "it is put down")
        session.close()
        supervisor.wait(WAIT_S)
    assert (house.folder / LOG_NAME).read_text().count("has been reading") == 1


WRITER = """
import sys, lmdb
envs = [lmdb.open(path, max_dbs=9, map_size=1 << 36, max_readers=4096, lib_version=0) for path in sys.argv[1:]]
txns = [env.begin(write=True) for env in envs]
print("there", flush=True)
sys.stdin.read()
"""


@pytest.mark.covers("C2b")
def test_whoever_holds_the_lock_of_a_batch_holds_up_its_commits_and_nothing_else(house: House) -> None:
    """No client of batchd's ever writes a batch. This one does, stops in the middle, and is killed in the end.

    Its commits are small, and so the loop's own: while one waits, the deputy leads.
    """
    jobs, spec = 100, {"durability": "disk"}
    items = [("work", 600), *[("work", 0.005, index) for index in range(1, jobs)]]
    held = house.start(items, "held", spec=spec, timeout_s=3.0, keep_going=True)
    pump_until(held, lambda: held.progress["done"] > 20, "it runs")
    with program(WRITER, house.folder / "batches" / "held") as process:
        os.kill(process.pid, signal.SIGSTOP)
        before = settled(held)
        pid = request(house.folder, "status")["pid"]
        assert pid == house.supervisor
        (late,) = (row["pid"] for row in request(house.folder, "status")["workers"] if row["job"] == 0)
        await_death(late, WAIT_S)  # By its time limit.
        assert settled(held) == before, "something was told to be recorded"
    house.finish(held)
    assert house.supervisor == pid
    outcomes = house.outcomes("held")
    assert [outcomes[index] for index in range(1, jobs)] == list(range(1, jobs))
    assert outcomes[0].type == "JobTimeout"


@pytest.mark.covers("C2b")
def test_whoever_wants_a_batch_whose_lock_is_held_waits_for_it_and_nobody_else(house: House) -> None:
    """To open a batch for writing takes its lock: aside, so that the loop never stands still for it."""
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "opened": ("open", house.session("opened")._open_fields),
        "cancelled": ("cancel", {"batch": "cancelled", "reason": "enough"}),
        "exchanged": ("accept_code", {"batch": "exchanged", "digest": "d"}),
    }
    for name in wanted:
        BatchJournal.create(house.folder / "batches" / name, {}).close()
    items = [("work", 600), *[("work", 0.005, index) for index in range(1, 50)]]
    other = house.start(items, "other", timeout_s=3.0, keep_going=True)
    pump_until(other, lambda: other.progress["done"] > 20, "it runs")
    with program(WRITER, *(house.folder / "batches" / name for name in wanted)) as process:
        os.kill(process.pid, signal.SIGSTOP)
        lines = {name: connect(house.folder) for name in [*wanted, "pruned"]}
        numbers = {name: lines[name].tell(do, **fields) for name, (do, fields) in wanted.items()}
        numbers["pruned"] = lines["pruned"].tell("prune", batch="opened")  # And that waits behind the opening.
        assert str(house.supervisor) in status(house)
        (late,) = (row["pid"] for row in request(house.folder, "status")["workers"] if row["job"] == 0)
        await_death(late, WAIT_S)  # By its time limit.
        assert house.run([("same", 1)], "new") == {0: 1}, "a batch that nobody holds is not opened"
        assert not any(line.messages() for line in lines.values()), "somebody was answered"
    told = {name: hear(line, numbers[name]) for name, line in lines.items()}
    assert (told["opened"]["size"], told["cancelled"]["state"]) == (0, "cancelled")
    assert told["pruned"]["message"] == "batch opened is running: `batchd cancel opened` ends it"
    exchanged = BatchJournal(house.folder / "batches" / "exchanged")
    assert exchanged.spec == {"digest": "d"}
    exchanged.close()
    for line in lines.values():
        line.close()
    house.finish(other)
    assert house.outcomes("other")[0].type == "JobTimeout"


def hear(line: Connection, number: int) -> dict[str, Any]:
    """Wait for the reply to a request."""
    while True:
        assert readable([line.socket.fileno()], WAIT_S), "no answer"
        for _, fields, _ in line.messages():
            if fields.get("number") == number:
                return fields


@pytest.mark.covers("C2b")
def test_whoever_asks_while_a_batch_waits_to_be_put_down_is_answered_when_it_was(house: House) -> None:
    """Nothing is recorded for what is asked, and others always have something that is not durable yet."""
    house.run([("same", 1)])
    other = house.start([("work", 0.001, index) for index in range(20_000)], "other")
    session = house.session()
    session.open()
    pump_until(other, lambda: other.progress["done"] > 20, "it runs")
    line = connect(house.folder)
    with program(WRITER, house.folder / "batches" / "b") as process:
        os.kill(process.pid, signal.SIGSTOP)
        session.leave(at_once=False)
        until(lambda: settled(other) == settled(other), "the commit that puts it down waits")
        number = line.tell("reopen", batch="b", states=[int(JobState.FAILED)], ranges=[[0, 1]])
        request(house.folder, "status")
    told = hear(line, number)
    assert (told["done"], told["is_live"], told["undone"]) == (1, True, [])
    line.close()
    other.leave(at_once=True)
    pump_until(other, lambda: other.is_put_down, "it is put down")


@pytest.mark.covers("W15")
def test_whoever_makes_results_waits_while_none_can_be_committed(desk: Desk, tally: Tally) -> None:
    """As on a disk that stands still: what gathers in the supervisor is bounded, the rest waits in full pipes."""
    jobs, workers = 200, 2
    task = f"{tasks.__file__}:large_result_soon"
    process = desk.start("run", task, "--range", f"0:{jobs}", "-j", f"{workers}", "--name", "held")
    desk.wait_for_jobs(workers, process)
    (folder,) = (desk.journal / "batches").iterdir()

    def recorded() -> int:
        return int(status_of(desk)["batches"][folder.name]["done"])

    with program(WRITER, folder):
        filled = UNSAVED_BYTES_MAX // tasks.LARGE_REPORT_BYTES
        desk.wait_for_jobs(recorded() + filled, process)
        before, begun = recorded(), 0
        while begun < len(desk.attempts()):
            begun = len(desk.attempts())
            pause(0.5)
        assert recorded() == before
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"{jobs} succeeded" in err
    tally.saw(f"{begun - before} results of 0.9 MB made, and then none")
    # Of each worker: one read, one in the pipe, one half in it, one that runs.
    assert begun - before < 3 * filled + 4 * workers, "more than what is written, and what gathers behind it"


def settled(session: Session) -> int:
    """Return how many jobs are told to be done, when what was on its way has come."""
    for _ in range(20):
        session.pump(0.01)
    return int(session.progress["done"])


STRANGER = """
import os, socket, sys
path, times = sys.argv[1], int(sys.argv[2])
os.setresgid(65534, 65534, 65534); os.setgroups([]); os.setresuid(65534, 65534, 65534)
print("there", flush=True)
for _ in range(times):
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.settimeout(20)
        try:
            sys.stdout.write(repr(line.recv(10)))
        except ConnectionError:
            sys.stdout.write("b''")
"""


@pytest.mark.covers("C7")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a moment")
def test_another_user_is_refused_even_where_the_modes_would_let_him_in(house: House) -> None:
    """The folder is 0700 and the socket 0600; both are opened wide here, so that only the peer's uid is left.

    The log names who came first, and of a flood of them only how many there were.
    """
    times = 50
    session = house.start([("work", 0.05, index) for index in range(100)])
    pump_until(session, lambda: session.progress["done"] > 2, "it runs")
    for path in (house.folder, *house.folder.parents[:4]):
        if path.stat().st_uid == 0 and path != Path("/tmp"):
            path.chmod(0o755)
    (house.folder / control.SOCKET_NAME).chmod(0o666)
    supervisor = house.supervisor
    with program(STRANGER, house.folder / control.SOCKET_NAME, times) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.read() == b"b''" * times, "somebody else was served"
    house.folder.chmod(0o700)
    house.finish(session)
    await_death(supervisor)  # It says the rest when it leaves, if not earlier.
    lines = [line for line in (house.folder / LOG_NAME).read_text().splitlines() if "refused" in line]
    assert len(lines) < 5, "the log is full of them"
    assert f"is process {stranger.pid} of user 65534: refused" in lines[0]
    assert sum(int(line.split(": ")[1].split()[0]) for line in lines[1:]) == times - 1
    assert house.outcomes() == {index: index for index in range(100)}
