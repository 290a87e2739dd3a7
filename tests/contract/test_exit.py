"""What becomes of jobs when the program ends. Both executors must agree, and nobody complains on stderr."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.calls import notes

ROOT = Path(__file__).parents[2]
HEAD = """
import atexit, sys
from pathlib import Path
from tests.contract.calls import Door, nap, note, square
from tests.contract.executors import KINDS

ran = Path(sys.argv[2])
make = KINDS[sys.argv[1]]


def slowly(x):
    nap(0.05)
    note(ran, x)


"""


def run(kind: str, folder: Path, text: str) -> "subprocess.CompletedProcess[str]":
    """Run a program that makes executors of this kind. Its main part stands behind the guard that spawning needs."""
    program = folder / "program.py"
    before, _, main = text.partition("# main\n")
    main = "".join(f"    {line}\n" for line in main.splitlines())
    program.write_text(f"{HEAD}{before}\n\nif __name__ == '__main__':\n{main}")
    return subprocess.run(
        [sys.executable, "-W", "error", program, kind, folder / "ran"],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.covers("P25")
def test_pending_jobs_run(kind: str, tmp_path: Path) -> None:
    ended = run(
        kind,
        tmp_path,
        """# main
executor = make(2)
for x in range(8):
    executor.submit(slowly, x)
print("the end")
""",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "the end\n", "")
    assert sorted(notes(tmp_path / "ran")) == sorted(map(str, range(8)))


@pytest.mark.covers("P25")
def test_an_unused_or_finished_executor_is_not_heard_of(kind: str, tmp_path: Path) -> None:
    ended = run(
        kind,
        tmp_path,
        """# main
unused = make(2)
finished = make(1)
print(finished.submit(square, 3).result())
shut = make(1)
print(shut.submit(square, 4).result())
shut.shutdown()
""",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "9\n16\n", "")


def test_callbacks_of_pending_jobs_run(kind: str, tmp_path: Path) -> None:
    ended = run(
        kind,
        tmp_path,
        """# main
executor = make(1)
for x in range(3):
    executor.submit(slowly, x).add_done_callback(lambda future, x=x: print(x, future.result()))
""",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0 None\n1 None\n2 None\n", "")


def test_pending_jobs_run_when_the_program_fails(kind: str, tmp_path: Path) -> None:
    ended = run(
        kind,
        tmp_path,
        """# main
executor = make(1)
for x in range(3):
    executor.submit(slowly, x)
raise ValueError("the program fails")
""",
    )
    assert ended.returncode == 1
    assert sorted(notes(tmp_path / "ran")) == ["0", "1", "2"]
    assert ended.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert ended.stderr.splitlines()[-1] == "ValueError: the program fails"
    assert ended.stderr.count("Traceback") == 1


def test_nothing_can_be_submitted_while_the_interpreter_ends(kind: str, tmp_path: Path) -> None:
    ended = run(
        kind,
        tmp_path,
        """
def submit_once_more():
    try:
        executor.submit(square, 3)
    except RuntimeError as error:
        print(error)


# main
atexit.register(submit_once_more)
executor = make(1)
print(executor.submit(square, 4).result())
atexit.register(submit_once_more)
""",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    first, *refusals = ended.stdout.splitlines()
    assert first == "16"
    assert len(refusals) == 2  # Whoever registered first.
    assert set(refusals) <= {
        "cannot schedule new futures after interpreter shutdown",
        "cannot schedule new futures after shutdown",
    }


def test_a_shutdown_that_nobody_waited_for_is_no_hang(kind: str, tmp_path: Path) -> None:
    if kind == "standard":
        pytest.skip("the standard library may hang here: github.com/python/cpython/issues/83386")
    ended = run(
        kind,
        tmp_path,
        """# main
executor = make(2)
for x in range(5):
    executor.submit(slowly, x)
executor.shutdown(wait=False)
""",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert sorted(notes(tmp_path / "ran")) == sorted(map(str, range(5)))


def test_futures_that_were_cancelled_stay_so(kind: str, tmp_path: Path) -> None:
    ended = run(
        kind,
        tmp_path,
        """# main
executor = make(1)
futures = [executor.submit(slowly, x) for x in range(20)]
print(futures[-1].cancel())
""",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")
    assert sorted(map(int, notes(tmp_path / "ran"))) == list(range(19))


def test_a_program_that_leaves_within_a_with_statement(kind: str, tmp_path: Path) -> None:
    ended = run(
        kind,
        tmp_path,
        """# main
with make(1) as executor:
    executor.submit(slowly, 1)
    sys.exit(5)
""",
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (5, "", "")
    assert notes(tmp_path / "ran") == ["1"]
