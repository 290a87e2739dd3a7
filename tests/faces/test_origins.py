"""Two programs on one queue: what one of them calls `tasks` never becomes what the other calls so."""

from collections.abc import Iterator

import pytest

from batchd.edge.lock import holder_of
from tests.commands import dead, until
from tests.contract.calls import WAIT_S, Door
from tests.faces.programs import Programs

TASKS = """
class Sender:
    def send(self, x):
        return {word!r}, x

def send(x):
    return Sender().send(x)
"""
HAS_THE_QUEUE = """
import tasks

with batchd.Client(workers=1) as client:
    print(client.submit(tasks.send, 0).result(), flush=True)
    while not Path("enough").exists():
        nap(0.01)
    print(client.submit(tasks.send, 2).result(), flush=True)
"""
HANDS_OVER = """
from functools import partial

import only_here, tasks

ways = [
    lambda client: client.submit(tasks.send, 1),
    lambda client: client.submit(partial(tasks.send, 1)),
    lambda client: client.submit(tasks.Sender().send, 1),
    lambda client: client.submit(lambda: tasks.send(1)),
    lambda client: client.submit(lambda send=tasks.send: send(1)),
    lambda client: client.submit(only_here.send, 1),
    lambda client: client.submit(pow, 2, 3),
    lambda client: client.submit(lambda: os.path.basename("a/b")),
]
with batchd.Client(workers=1) as client:
    for way in ways:
        try:
            print(way(client).result())
        except Exception as error:
            print(type(error).__name__, error)
"""
LEAVES_ONE = """
from tests.contract.calls import Door
import tasks

client = batchd.Client(workers=1)
client.submit(Door(Path.cwd()).enter)
print(client.submit(tasks.send, 1).id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
TAKES_IT_UP = """
with batchd.Client(workers=1) as client:
    while client.job(sys.argv[1]).state == "queued":
        nap(0.01)
    value = client.job(sys.argv[1]).value
    print(getattr(value, "__cause__", value))
"""


@pytest.fixture
def others(programs: Programs) -> Iterator[Programs]:
    """The folder of another program, with the same journal and a `tasks` of its own."""
    folder = programs.folder / "others"
    folder.mkdir()
    made = Programs(folder)
    made.environ["BATCHD_JOURNAL"] = str(programs.journal)
    for each, word in ((programs, "mine"), (made, "theirs")):
        (each.folder / "tasks.py").write_text(TASKS.format(word=word))
    (folder / "only_here.py").write_text(TASKS.format(word="only here"))
    yield made
    made.close()


def test_a_function_never_becomes_another_programs(programs: Programs, others: Programs) -> None:
    first = programs.start(HAS_THE_QUEUE)
    assert first.stdout is not None
    assert first.stdout.readline() == "('mine', 0)\n"
    told = others.told(HANDS_OVER).splitlines()
    (programs.folder / "enough").touch()
    assert first.communicate(timeout=WAIT_S)[0] == "('mine', 2)\n"
    mine, theirs = programs.folder / "tasks.py", others.folder / "tasks.py"
    refused = f"TaskError tasks is {theirs} where this job was handed over, and {mine} in the workers of queue jobs"
    for line in told[:5]:
        assert line.startswith(refused)
        assert line.endswith("need names of their own, Client(queue=...) or Executor(name=...)")
    assert told[5].startswith(f"TaskError only_here is {others.folder / 'only_here.py'} where")
    assert f"and no module from {programs.folder} on in the workers of queue jobs, which import as" in told[5]
    assert told[6:] == ["8", "b"]


def left_behind(programs: Programs) -> str:
    """Return the id of a job that a program handed over and nobody ran; nobody is there any more."""
    job = programs.start(LEAVES_ONE).communicate(timeout=WAIT_S)[0].strip()
    until(lambda: dead(int(holder_of(programs.journal).get("pid", 0))), "the supervisor is gone as well")
    Door(programs.folder).open()
    return job


def test_nor_when_the_next_program_takes_up_what_the_last_one_left(programs: Programs, others: Programs) -> None:
    job = left_behind(programs)
    told = others.told(TAKES_IT_UP, job)
    mine, theirs = others.folder / "tasks.py", programs.folder / "tasks.py"
    assert f"tasks is {theirs} where this job was handed over, and {mine} in the workers of queue jobs" in told


def test_a_queue_of_another_name_is_the_remedy(programs: Programs, others: Programs) -> None:
    first = programs.start(HAS_THE_QUEUE)
    assert first.stdout is not None
    assert first.stdout.readline() == "('mine', 0)\n"
    elsewhere = HANDS_OVER.replace("Client(workers=1)", "Client(workers=1, queue='elsewhere')")
    assert others.told(elsewhere).splitlines() == [*["('theirs', 1)"] * 5, "('only here', 1)", "8", "b"]
    (programs.folder / "enough").touch()
    assert first.communicate(timeout=WAIT_S)[0] == "('mine', 2)\n"


def test_the_next_run_of_the_same_program_takes_up_what_the_last_one_left(
    programs: Programs, others: Programs
) -> None:
    job = left_behind(programs)
    assert programs.told(TAKES_IT_UP, job) == "('mine', 1)\n"
