"""Nothing is left behind, whatever became of a pool: process, zombie, shared memory, temporary file, descriptor."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from random import Random

import pytest

import batchd
from tests.bench import ROOT, is_alive
from tests.commands import until
from tests.fault.ledger import Tally

pytestmark = pytest.mark.fault


def children() -> set[str]:
    """Return the children of this process, zombies too."""
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


OWN_SHARED_MEMORY = (
    [
        *("unshare", "--mount", "sh", "-c"),
        (
            'mount -t tmpfs none /dev/shm && "$@"; code=$?; tries=0; '
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
import json, sys
from random import Random
import batchd
from tests.commands import until
from tests.fault.test_leftovers import children, descriptors, use

dice, workers = Random(1), []
with batchd.Executor(2) as executor:  # What is made once a process, is made now.
    workers += use(executor, 0, dice)
until(lambda: len(children()) <= 1, "the supervisor is its only child")
before = children(), descriptors()
for turn in range(int(sys.argv[1])):
    with batchd.Executor(2) as executor:
        workers += use(executor, turn, dice)
until(lambda: children() <= before[0], "no child is left, nor a zombie")
until(lambda: descriptors() <= before[1], "no descriptor is left")
print(json.dumps(workers))
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
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr
    workers = json.loads(ran.stdout)
    assert len(workers) == pools + 1
    until(lambda: not list(tmp_path.iterdir()), "no temporary file is left")
    until(lambda: not [pid for pid in workers if is_its_own(pid, tmp_path)], "no worker is left")
    if OWN_SHARED_MEMORY:
        assert "batchd-" not in ran.stderr, "shared memory is left"
    else:
        until(lambda: not shared_memory() - earlier, "no shared memory is left")
    tally.injected(pools)


def is_its_own(pid: int, place: Path) -> bool:
    """Whether a process still is what it was, and not another one of the same number."""
    try:
        return is_alive(pid) and str(place).encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
