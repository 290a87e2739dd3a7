"""Programs that fork all the time while batchd is at work in them: nobody hangs, nothing is lost."""

import pytest

from tests.faces.programs import Programs

_BUSY = """
import multiprocessing, subprocess, threading, warnings

from batchd.edge.environment import readers

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and newer warn of any fork beside threads.

def leave():
    if readers._lost:
        os._exit(9)  # The child could not read these batches.

def fork(end):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(20)
    leave()
    end(0)

def start():
    process = multiprocessing.get_context("fork").Process(target=leave)
    process.start()
    process.join(20)
    return process.exitcode

WAYS = {
    "fork": lambda: fork(os._exit),
    "exit": lambda: fork(sys.exit),
    "multiprocessing": start,
    "preexec_fn": lambda: subprocess.run(["true"], preexec_fn=leave, timeout=20).returncode,
    "subprocess": lambda: subprocess.run(["true"], timeout=20).returncode,
}
codes = set()

def forks():
    for _ in range(int(sys.argv[2])):
        for way in sys.argv[1].split():
            codes.add(WAYS[way]())
"""
_EXECUTOR = """
stopped, sums = threading.Event(), set()

def load():
    while not stopped.is_set():
        sums.add(sum(executor.map(abs, range(-2000, 0))))

with batchd.Executor(1) as executor:
    thread = threading.Thread(target=load)
    thread.start()
    while not sums:
        nap(0.001)
    forks()
    stopped.set()
    thread.join()
    print(codes, sums)
"""
_RESULTS = """
with batchd.Client(workers=1) as client:
    batch = client.submit_batch(abs, range(-20_000, 0), name="n")
    thread = threading.Thread(target=forks)
    thread.start()
    while thread.is_alive():
        assert sum(client.batch("n").results()) == 200_010_000
    thread.join()
    print(codes, {2001000})
"""


_HOLDING = """
import subprocess

class Forked(subprocess.Popen):
    # As if another thread forked just then: the child holds open whatever is.
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        global child
        child = os.fork()
        if not child:
            signal.alarm(600)  # It is killed long before.
            signal.pause()

subprocess.Popen = Forked
print(list(batchd.map(abs, [-1], workers=1)))
os.kill(child, signal.SIGKILL)
"""


def test_a_fork_while_a_supervisor_starts_delays_nobody(programs: Programs) -> None:
    assert programs.told(_HOLDING) == "[1]\n"


BOTH = pytest.mark.parametrize("work", [_EXECUTOR, _RESULTS], ids=["executor", "results"])


@BOTH
@pytest.mark.covers("C5")
def test_forks_of_a_busy_program_hang_nobody(programs: Programs, work: str) -> None:
    ways = "fork fork fork fork multiprocessing multiprocessing preexec_fn"
    assert programs.told(_BUSY + work, ways, 12) == "{0} {2001000}\n"


@BOTH
@pytest.mark.parametrize("way", ["fork", "exit", "multiprocessing", "preexec_fn", "subprocess"])
@pytest.mark.slow
@pytest.mark.covers("C5")
def test_hundreds_of_forks_of_a_busy_program_hang_nobody(programs: Programs, work: str, way: str) -> None:
    assert programs.told(_BUSY + work, way, 100 if way == "exit" else 500) == "{0} {2001000}\n"
