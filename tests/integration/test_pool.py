"""Starting workers: templates, fresh interpreters, and everything that can keep a worker from being born."""

import os
import re
import signal
from fcntl import ioctl
from functools import partial
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
from select import select
from termios import FIONREAD

import pytest

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.job import JobState
from batchd.edge.orphans import tagged
from batchd.settings import IDLE_TEMPLATES_MAX
from batchd.worker.template import tag
from tests.bench import WAIT_S, Bench, at_work, await_death, is_alive, key_spec, open_descriptors

GOOD = JobState.SUCCEEDED


def module(folder: Path, source: str) -> str:
    (folder / "mine.py").write_text(source)
    return f"{folder / 'mine.py'}:run"


def test_a_task_that_does_not_import_is_told_with_the_users_traceback(bench: Bench, tmp_path: Path) -> None:
    task = module(tmp_path, "def helper():\n    return 1 / 0\nhelper()\n")
    reason = bench.add_key(key_spec(task))
    assert "ZeroDivisionError: division by zero" in reason
    assert f'File "{tmp_path}/mine.py", line 2, in helper' in reason
    assert bench.await_event(ev.KeyFailed) == ev.KeyFailed("k", reason)


def test_the_reason_is_told_although_the_template_is_dead_when_it_is_read(bench: Bench, tmp_path: Path) -> None:
    reasons: list[str] = []
    bench.pool.add_key("k", key_spec(module(tmp_path, "raise ValueError('mine')\n")), reasons.append)
    await_death(bench.pool._templates["k"].process.pid)
    bench.until(lambda: reasons, "the reason")
    assert reasons[0].endswith("ValueError: mine")


def test_whoever_waits_for_an_import_hears_of_it_whatever_another_one_raises(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    def fail(_: str) -> None:
        raise ZeroDivisionError("a bug")

    for on_ready in (fail, told.append):
        bench.pool.add_key("k", key_spec(), on_ready)
    bench.until(lambda: told, "the second hears")
    bench.pool.add_key("k", key_spec(), fail)  # At once, because the task is imported.
    assert told == [""]
    assert capsys.readouterr().err.count("ZeroDivisionError: a bug") == 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os\nos._exit(3)\n", "imports .*mine.py:run for its workers died: exited with code 3"),
        ("import os\nos.abort()\n", "imports .*mine.py:run for its workers died: killed by SIGABRT"),
        ("x = 1\n", "has no 'run'"),
    ],
)
@pytest.mark.covers("W13")
def test_other_ways_not_to_import(bench: Bench, tmp_path: Path, source: str, words: str) -> None:
    assert re.search(words, bench.add_key(key_spec(module(tmp_path, source))))


SPEAKS_FOR_ITS_TEMPLATE = """
import os
for fd in os.listdir("/proc/self/fd"):
    try:
        if "socket" in os.readlink(f"/proc/self/fd/{fd}"):
            for said in SAID:
                os.write(int(fd), said)
    except OSError:
        pass
def run(item):
    return item
"""


@pytest.mark.covers("W13", "P12")
@pytest.mark.parametrize(
    "said",
    [
        (b"5",),
        (b"[" * 50_000,),
        (b"\xff",),
        (b'{"ready": "1"}',),
        (b'{"ready": true}',),
        (b'{"ready": 1, "started": 1}',),
        (b'{"started": 1, "pid": 0}',),
        (b'{"unstarted": 99, "why": ""}',),
        (b'{"ready": 2}', b'{"ready": 2}'),
    ],
    ids=lambda said: said[-1][:30].decode("latin"),
)
def test_an_import_that_speaks_for_its_template_is_told_and_costs_nobody_else(
    bench: Bench, tmp_path: Path, said: tuple[bytes, ...]
) -> None:
    reason = bench.add_key(key_spec(module(tmp_path, f"SAID = {said!r}" + SPEAKS_FOR_ITS_TEMPLATE)))
    if said[0] != b'{"ready": 2}':  # Whoever says it well is believed, as far as it goes.
        words = "the process that imports .*mine.py:run said what (no template says|it was not asked): "
        assert re.match(words, reason)
        assert bench.await_event(ev.KeyFailed) == ev.KeyFailed("k", reason)
    bench.until(lambda: "k" not in bench.pool._templates, "it is gone")
    at_work(bench, [("pid",)])


def test_a_folder_that_is_gone_is_named(bench: Bench, tmp_path: Path) -> None:
    assert f"cannot enter {tmp_path}/gone" in bench.add_key(key_spec(cwd=tmp_path / "gone"))


@pytest.mark.covers("P22")
def test_a_module_that_starts_a_thread_gets_fresh_interpreters(bench: Bench, tmp_path: Path) -> None:
    source = (
        "import os, threading\n"
        "BORN = os.getpid()\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "def run(item):\n    return BORN == os.getpid(), threading.active_count()\n"
    )
    bench.batch([1])
    assert bench.add_key(key_spec(module(tmp_path, source))) == ""
    assert bench.run(bench.start(), 0, 1)[0].value == (True, 2)


def test_forked_workers_share_what_the_template_imported(bench: Bench, tmp_path: Path) -> None:
    source = "import os\nBORN = os.getpid()\ndef run(item):\n    return BORN, os.getpid()\n"
    bench.batch([1, 2])
    assert bench.add_key(key_spec(module(tmp_path, source))) == ""
    told = [bench.run(worker, at, at + 1)[0].value for at, worker in enumerate((bench.start(), bench.start()))]
    assert told[0][0] == told[1][0] == bench.pool._templates["k"].process.pid
    assert len({told[0][0], told[0][1], told[1][1]}) == 3


@pytest.mark.covers("W3", "P11")
def test_a_template_that_was_killed_is_started_again(bench: Bench) -> None:
    at_work(bench, [("pid",)])
    template = bench.pool._templates["k"].process.pid
    os.kill(template, signal.SIGKILL)
    bench.until(lambda: "k" not in bench.pool._templates, "its death is seen")
    worker = bench.start()
    assert bench.run(worker, 0, 1)[0].value == worker.pid


def test_of_keys_that_no_batch_has_a_few_templates_are_left_and_nothing_else(bench: Bench) -> None:
    keys = [f"k{number}" for number in range(IDLE_TEMPLATES_MAX + 3)]
    told: list[str] = []
    for key in reversed(keys):
        bench.pool.add_key(key, key_spec(), told.append)
    bench.until(lambda: len(told) == len(keys), "all are imported, because they are waited for")
    for key in keys:
        bench.pool.take_up(f"of-{key}", key, key_spec())
    bench.pool.take_up("another", keys[0], key_spec())
    bench.pool.perform(c.StartWorker(1, keys[1]))  # It is asked for, and not born yet.
    processes = {key: bench.pool._templates[key].process.pid for key in keys}
    for key in keys:
        bench.pool.put_down(f"of-{key}")
    del processes[keys[2]]
    assert list(bench.pool._keys) == keys[:1]
    assert bench.pool._templates.keys() == processes.keys()
    bench.await_event(ev.WorkerReady)
    assert set(tagged(tag(bench.journal_id, 1, 0))) == set(processes.values())


@pytest.mark.parametrize("is_fresh", [False, True])
def test_a_key_comes_back_with_a_batch_that_was_long_in_the_making(bench: Bench, *, is_fresh: bool) -> None:
    """Its task was imported, and others were put down before the batch was there."""
    worker = at_work(bench, [("pid",)] * 2, is_fresh=is_fresh)
    bench.pool.put_down("of-k")
    assert not bench.pool._keys
    assert not bench.pool._fresh
    bench.pool.take_up("b", "k", key_spec(is_fresh=is_fresh))
    bench.run(worker, 0, 1)
    for template in list(bench.pool._templates.values()):
        os.kill(template.process.pid, signal.SIGKILL)
    bench.until(lambda: not bench.pool._templates, "nothing is left of it")
    bench.run(bench.start(), 1, 2)
    assert bool(bench.pool._templates) is not is_fresh


def test_a_function_that_is_mapped_again_finds_its_template(bench: Bench) -> None:
    assert bench.add_key(key_spec()) == ""
    template = bench.pool._templates["k"].process.pid
    bench.pool.put_down("of-k")
    told: list[str] = []
    bench.pool.add_key("k", key_spec(), told.append)
    assert told == [""], "at once"
    assert bench.pool._templates["k"].process.pid == template


def test_a_recorder_without_a_free_slot_starts_no_worker(tmp_path: Path) -> None:
    bench = Bench(tmp_path, slots=1)
    try:
        worker = at_work(bench, [("pid",)])
        bench.pool.perform(c.StartWorker(50, "k"))
        gone = bench.await_event(ev.WorkerGone)
        assert (gone.worker, gone.cause) == (50, "no slot left in the flight recorder")
        bench.pool.perform(c.ForgetWorker(50))
        os.kill(worker.pid, signal.SIGKILL)
        bench.gone(worker)
        bench.pool.perform(c.ForgetWorker(worker.number))
        assert bench.run(bench.start(), 0, 1)[0].state is GOOD
    finally:
        bench.close()


def test_a_worker_that_is_forgotten_leaves_its_slot_to_the_next_one_and_says_nothing_more(bench: Bench) -> None:
    """Else a restart believes what an attempt reported that was charged, and each death takes shared memory."""
    worker = at_work(bench, [("pid",)] * 3)
    for index in range(3):
        bench.run(worker, index, index + 1)
        os.kill(worker.pid, signal.SIGKILL)
        bench.gone(worker)
        assert [lane.first for lane in worker.slot.lanes()] == [index], "not durable yet"
        bench.pool.perform(c.ForgetWorker(worker.number))
        assert list(worker.slot.lanes()) == []
        gone, worker = worker, bench.start()
        assert worker.slot_number == gone.slot_number


@pytest.mark.covers("H1", "P29")
def test_a_process_out_of_descriptors_starts_no_worker(bench: Bench) -> None:
    at_work(bench, [])
    soft, hard = getrlimit(RLIMIT_NOFILE)
    before = open_descriptors()
    taken = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    free = [fd for fd in range(200) if fd not in taken]
    setrlimit(RLIMIT_NOFILE, (free[3], hard))  # Room for three more, and a worker takes five.
    try:
        bench.pool.perform(c.StartWorker(50, "k"))
    finally:
        setrlimit(RLIMIT_NOFILE, (soft, hard))
    gone = bench.await_event(ev.WorkerGone)
    assert (gone.worker, gone.cause) == (50, "cannot start a worker: Too many open files")
    assert open_descriptors() == before


def test_the_environment_of_an_outer_worker_does_not_mark_an_inner_one(bench: Bench) -> None:
    tag = "someone-elses-1.00000001.00000001"
    worker = at_work(bench, [("environ", "BATCHD_WORKER")], environ={"BATCHD_WORKER": tag})
    expected = f"{bench.journal_id:.16}.00000001.{worker.number:08d}"
    assert bench.run(worker, 0, 1)[0].value == expected
    assert f"BATCHD_WORKER={expected}" in Path(f"/proc/{worker.pid}/environ").read_text().split("\0")


@pytest.mark.covers("W15")
def test_reports_wait_in_their_pipe_for_as_long_as_anybody_holds_them(bench: Bench) -> None:
    worker = at_work(bench, [("same", 7)])
    for _ in range(2):
        bench.pool.hold_reports()
    lease = bench.lease(worker, 0, 1)
    bench.until(lambda: select([worker.reports_fd], [], [], 0)[0], "it has reported")
    bench.pool.let_reports_in()
    bench.turn()
    assert bench.told(lease) == []
    bench.pool.let_reports_in()
    assert [told.value for told in bench.told(lease)] == [7]


@pytest.mark.parametrize(("size", "may_rest"), [(2_000, True), (20_000, False)])
def test_reports_that_would_fill_their_pipe_are_not_left_in_it(bench: Bench, size: int, may_rest: bool) -> None:
    """Each of them fits: it is so many that the worker would stand still soon."""
    worker = at_work(bench, [("same", letter * size) for letter in "xyz"])
    bench.pool.hold_reports()
    lease = bench.lease(worker, 0, 3)
    bench.until(lambda: unread(worker.reports_fd) > 3 * size, "all are in the pipe")
    bench.pool.let_reports_in()
    assert len(bench.told(lease)) == 3
    assert bench.pool.may_rest == may_rest


def unread(fd: int) -> int:
    """Return how many bytes lie in a pipe."""
    return int.from_bytes(ioctl(fd, FIONREAD, bytes(4)), "little")


@pytest.mark.covers("W3")
def test_a_template_that_dies_while_it_is_dropped_is_nobodys(bench: Bench) -> None:
    """Its death is found in the same turn in which a request drops it, and comes second."""
    for number in range(IDLE_TEMPLATES_MAX + 1):
        bench.pool.add_key(f"k{number}", key_spec(), lambda _: None)
    bench.until(lambda: not bench.pool._waiters, "all are imported")
    oldest = bench.pool._templates["k0"]
    os.kill(oldest.process.pid, signal.SIGKILL)
    assert select([oldest.door], [], [], WAIT_S)[0], "its death shows"
    ready = bench.selector.select(0)
    told: list[str] = []
    bench.pool.add_key("k0", key_spec(), told.append)
    assert bench.pool._templates["k0"] is not oldest
    for key, _ in ready:
        key.data()
    bench.until(lambda: told, "the task is imported anew")
    assert told == [""]


def test_an_import_goes_on_for_as_long_as_somebody_waits_for_it(bench: Bench, tmp_path: Path) -> None:
    spec, waiting = key_spec(module(tmp_path, "import time\ntime.sleep(600)\n")), {"first", "second"}
    for name in sorted(waiting):
        bench.pool.add_key("k", spec, lambda _: None, partial(waiting.__contains__, name))
    importing = bench.pool._templates["k"].process.pid
    waiting.remove("first")
    bench.pool.let_go()
    assert is_alive(importing)
    waiting.remove("second")
    bench.pool.let_go()
    assert not is_alive(importing)
    assert not bench.pool._templates
    assert not bench.pool._keys
