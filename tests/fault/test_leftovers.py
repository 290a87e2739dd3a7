"""Nothing is left behind, whatever became of a pool: process, zombie, shared memory, temporary file, descriptor."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

import batchd
from tests.bench import ROOT
from tests.commands import until
from tests.fault.ledger import Tally

pytestmark = pytest.mark.fault


def children(of: str = "self") -> set[str]:
    """Return the children of a process, zombies too."""
    return {pid for file in Path(f"/proc/{of}/task").glob("*/children") for pid in file.read_text().split()}


def descriptors(of: str = "self") -> int:
    return len(list(Path(f"/proc/{of}/fd").iterdir()))


def processes_in(place: Path) -> list[str]:
    """Return the processes whose temporary files belong in a folder."""
    setting, found = f"TMPDIR={place}".encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # Gone, or somebody else's.
            if setting in environ.read_bytes().split(b"\0"):
                found.append(environ.parent.name)
    return found


NO_MOUNT = 77
OWN_SHARED_MEMORY = (
    [
        *("unshare", "--mount", "sh", "-c"),
        (
            f'mount -t tmpfs none /dev/shm || exit {NO_MOUNT}; "$@"; code=$?; tries=0; '
            "while ls /dev/shm | grep -q . && [ $tries -lt 300 ]; do sleep 0.1; tries=$((tries + 1)); done; "
            "ls /dev/shm >&2; exit $code"
        ),
        "sh",
    ]
    if os.geteuid() == 0 and shutil.which("unshare")
    else []
)
"""Where that can be had, or what others do there at the same time would be taken for what is left."""


def shared_memory() -> set[str]:
    return {file.name for file in Path("/dev/shm").glob(f"batchd-{os.geteuid()}-*")}


def use(executor: batchd.Executor, turn: int, dice: Random) -> list[int]:
    """Use a pool in one of the ways pools are used, and return the pids of its workers as far as they are known."""
    pids = [executor.submit(os.getpid).result(60)]
    match turn % 5:
        case 0:
            executor.submit(os.system, "true &").result(60)  # It is the supervisor's when the shell has ended.
        case 1:
            os.kill(pids[0], signal.SIGKILL)
        case 2:
            with pytest.raises(BrokenProcessPool):
                executor.submit(os.abort).result(60)
        case 3:
            assert list(executor.map(abs, range(-dice.randrange(50), 0))) is not None
        case 4:
            executor.submit(os.getpid)  # Nobody asks what became of it.
    return pids


PROGRAM = """
import sys
from random import Random
import batchd
from tests.commands import until
from tests.fault.test_leftovers import children, descriptors, use

dice, workers = Random(1), []
with batchd.Executor(2) as executor:  # What is made once a process, is made now.
    workers += use(executor, 0, dice)
until(lambda: len(children()) <= 1, "the supervisor is its only child")
(supervisor,) = children()
until(lambda: len(children(supervisor)) <= 1, "the template is the only child of that one")
before = children(), descriptors(), descriptors(supervisor)
for turn in range(int(sys.argv[1])):
    with batchd.Executor(2) as executor:
        workers += use(executor, turn, dice)
until(lambda: children() <= before[0], "no child is left, nor a zombie")
until(lambda: descriptors() <= before[1], "no descriptor is left")
until(lambda: len(children(supervisor)) <= 1, "nor has the supervisor a child that it had not")
until(lambda: descriptors(supervisor) <= before[2], "nor a descriptor")
print(len(workers))
"""


@pytest.mark.covers("P26")
@pytest.mark.parametrize("pools", [20, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_pools_leave_nothing(tmp_path: Path, pools: int, tally: Tally) -> None:
    """In a program of its own; when it has ended, nothing of it may be there at all."""
    earlier = shared_memory()
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    ran = subprocess.run(
        [*OWN_SHARED_MEMORY, sys.executable, "-c", PROGRAM, str(pools)],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode == NO_MOUNT or "unshare failed" in ran.stderr:
        pytest.skip(f"no /dev/shm of one's own can be had here: {ran.stderr}")
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr
    assert int(ran.stdout) == pools + 1
    until(lambda: not list(tmp_path.iterdir()), "no temporary file is left")
    until(lambda: not processes_in(tmp_path), "no process is left")
    if OWN_SHARED_MEMORY:
        assert "batchd-" not in ran.stderr, "shared memory is left"
    else:
        until(lambda: not shared_memory() - earlier, "no shared memory is left")
    tally.injected(pools)
