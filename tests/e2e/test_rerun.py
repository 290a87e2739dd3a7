"""`batchd rerun`: one job again in the foreground, with all a worker would give it, and nothing recorded."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Desk, until

JOBS = """
import ctypes, os, sys
from pathlib import Path
import batchd

COLOURS = Path("colours.txt")


def work(x, *, end=""):
    print(f"hello from {x}")
    match x:
        case 1:
            raise ValueError("no such colour")
        case 2:
            ctypes.string_at(0)
        case 3:
            os._exit(3)
        case 4:
            return lambda: open("/dev/null").buffer.raw, sys._getframe()
        case 5:
            return COLOURS.read_text() + end
        case 6:
            sys.exit("good bye")
        case 7:
            if os.fork() == 0:
                return "child"
            os.wait()
            return "parent"
    return [x, end]


def about(x):
    job = batchd.current_job()
    return job.batch, job.index, job.attempt, os.getcwd(), sys.argv, os.environ["OMP_NUM_THREADS"]


def second_time(x):
    if batchd.current_job().attempt < 2:
        raise ValueError("not yet")
    return x


def says(x):
    job = batchd.current_job()
    before = job.last_checkpoint
    job.checkpoint([x])
    job.log("a line for the log")
    job.progress(0.5)
    return before, job.last_checkpoint, job.cancelled


def stops(x):
    secret = x + 40
    breakpoint()
    return secret


def fails_deeper(x):
    secret = x + 40
    deeper(secret)


def deeper(y):
    raise KeyError(y)


def hangs(x):
    print("hanging", flush=True)
    mark = Path(f"hanging-{x}")
    mark.touch()
    while mark.exists():
        pass


def fails_once_mended(x):
    raise ValueError("broken")


def dies_deep(x):
    print(1000 * "first words ")
    print("last words")
    down(x)


def down(n):
    return down(n - 1) if n else ctypes.string_at(0)
"""


@pytest.fixture
def jobs(desk: Desk) -> Desk:
    """A folder with tasks in it."""
    (desk.folder / "jobs.py").write_text(JOBS)
    (desk.folder / "colours.txt").write_text("mauve")
    desk.environ.pop("OMP_NUM_THREADS", None)
    return desk


def start_batch(desk: Desk, task: str, count: int, *options: str) -> str:
    """Run a batch of the task over numbers; return its id."""
    known = ("-q", "--json", "--name", task, "--max-crashes", "1", *options)
    ran = desk.run("run", f"jobs.py:{task}", "--range", f"0:{count}", *known)
    return str(json.loads(ran.stdout.splitlines()[-1])["batch"])


def snapshot(desk: Desk) -> dict[str, Any]:
    """Return what the journal says of all its batches."""
    return dict(json.loads(desk.run("ls", "--json").stdout))


def remarks(ran: "subprocess.CompletedProcess[str]") -> list[str]:
    return [line.removeprefix("batchd: ") for line in ran.stderr.splitlines() if line.startswith("batchd: ")]


def elsewhere(desk: Desk) -> Path:
    place = desk.folder / "elsewhere"
    place.mkdir(exist_ok=True)
    return place


# --- How it ends -----------------------------------------------------------------------------------------------


@pytest.fixture
def worked(jobs: Desk) -> Desk:
    """All kinds of jobs have run once."""
    start_batch(jobs, "work", 9, "--arg", "end=!")
    return jobs


def test_a_result_is_printed_behind_what_the_job_prints(worked: Desk) -> None:
    before = snapshot(worked)
    ran = worked.run("rerun", "last:8", cwd=elsewhere(worked))
    assert (ran.returncode, ran.stdout) == (0, "hello from 8\n[8, '!']\n")
    (batch,) = [each["batch"] for each in before["batches"]]
    first, second, third = remarks(ran)
    assert first == f"{batch}:8 succeeded then"
    assert second.startswith(f"running {batch}:8 in this process, as attempt 1")
    assert third.startswith(f"{batch}:8 returned after ")
    assert snapshot(worked) == before


def test_a_job_runs_where_it_ran_and_is_found_by_any_name_of_its_batch(worked: Desk) -> None:
    (batch,) = [each["batch"] for each in snapshot(worked)["batches"]]
    for name in ("last", "work", batch, batch[:4]):
        ran = worked.run("rerun", f"{name}:5", cwd=elsewhere(worked))
        assert (ran.returncode, ran.stdout) == (0, "hello from 5\n'mauve!'\n")


def test_a_job_that_raises_shows_its_own_frames_only(worked: Desk) -> None:
    before = snapshot(worked)
    ran = worked.run("rerun", "last:1")
    assert (ran.returncode, ran.stdout) == (1, "hello from 1\n")
    # Its first outcome may not have been reported yet when its neighbour crashed: then it ran twice.
    assert re.search(r":1, attempt [12]: raised ValueError: no such colour$", remarks(ran)[0])
    shown = ran.stderr[ran.stderr.index("Traceback") :].splitlines()
    assert shown[1] == f'  File "{worked.folder}/jobs.py", line 13, in work'
    assert shown[-2:][0] == "ValueError: no such colour"
    assert "raised ValueError after" in shown[-1]
    assert "/batchd/" not in ran.stderr
    assert snapshot(worked) == before


def test_a_job_that_leaves_has_failed(worked: Desk) -> None:
    ran = worked.run("rerun", "last:6")
    assert ran.returncode == 1
    assert "SystemExit: good bye" in ran.stderr


def test_a_crash_is_told_before_it_comes_again(worked: Desk) -> None:
    ran = worked.run("rerun", "last:2")
    assert ran.returncode == -signal.SIGSEGV
    then, _, now = ran.stderr.partition("batchd: running")
    assert then.splitlines()[0].endswith(":2, attempt 1: killed by SIGSEGV")
    assert "    | hello from 2" in then
    assert "line 15 in work" in then
    assert "worker/main.py" not in then
    assert "Fatal Python error: Segmentation fault" in now
    ran = worked.run("rerun", "last:3")
    assert (ran.returncode, ran.stdout) == (3, "hello from 3\n")
    assert remarks(ran)[0].endswith(":3, attempt 1: exited with code 3 before finishing")


def test_of_a_deep_stack_the_calls_that_died_are_kept(jobs: Desk) -> None:
    jobs.run("run", "jobs.py:dies_deep", "--range", "200:201", "--max-crashes", "1")
    told = json.loads(jobs.run("failures", "last", "--json").stdout)
    (cause,) = told["causes"]
    assert cause["details"]["attempt"] == 1
    deepest = jobs.run("rerun", "last:0")
    then = deepest.stderr.partition("batchd: running")[0].splitlines()
    assert "    | last words" in then
    at = then.index("  Python stack, innermost call first:")
    assert "in string_at" in then[at + 1]
    assert then[at + 2].endswith("in down")
    assert int(then[-1].split()[1]) > 20  # More than these were kept.


def test_a_result_that_cannot_be_kept_is_a_failure_as_in_a_worker(worked: Desk) -> None:
    ran = worked.run("rerun", "last:4")
    assert ran.returncode == 1
    assert "TypeError: cannot pickle 'frame' object" in ran.stderr
    assert "returned what cannot be kept" in remarks(ran)[-1]


def test_a_child_that_comes_back_with_the_job_has_nothing_to_say(worked: Desk) -> None:
    ran = worked.run("rerun", "last:7")
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, "'parent'")
    assert "'child'" not in ran.stdout


@pytest.mark.parametrize(("index", "code"), [(8, 0), (1, 1)])
def test_programs_are_answered_in_json(worked: Desk, index: int, code: int) -> None:
    ran = worked.run("rerun", f"last:{index}", "--json")
    hello, answer = ran.stdout.splitlines()
    told = json.loads(answer)
    assert (ran.returncode, hello) == (code, f"hello from {index}")
    assert (told["batchd"], told["index"], told["attempt"] in {1, 2}) == (1, index, True)
    if code == 0:
        assert (told["state"], told["result"], told["error"]) == ("succeeded", "[8, '!']", None)
    else:
        assert (told["state"], told["result"]) == ("failed", None)
        assert (told["error"]["type"], told["error"]["message"]) == ("ValueError", "no such colour")
        assert told["error"]["traceback"].endswith("ValueError: no such colour\n")


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("last", "'last' is not a job: write BATCH:INDEX, such as last:17"),
        (":3", "':3' is not a job"),
        ("last:x", "'last:x' is not a job"),
        ("last:-1", "'last:-1' is not a job"),
        ("last:9", "there is no job 9: batch"),
        ("nobody:3", "there is no batch 'nobody'"),
    ],
)
def test_what_names_no_job_is_refused(worked: Desk, job: str, message: str) -> None:
    ran = worked.run("rerun", job)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"batchd: {message}")


# --- What the job is given -------------------------------------------------------------------------------------


def test_a_job_is_told_who_it_is(jobs: Desk) -> None:
    batch = start_batch(jobs, "about", 3)
    ran = jobs.run("rerun", "about:2", cwd=elsewhere(jobs))
    assert ran.stdout == f"('{batch}', 2, 1, '{jobs.folder}', ['batchd-worker'], '1')\n"


def test_the_attempt_is_that_of_the_outcome_that_is_looked_into(jobs: Desk) -> None:
    (jobs.folder / "jobs.py").write_text(JOBS.replace("attempt < 2", "attempt < 9"))
    start_batch(jobs, "second_time", 1, "--retries", "2")
    ran = jobs.run("rerun", "last:0")
    assert ran.returncode == 1
    assert "attempt 3: raised ValueError: not yet" in remarks(ran)[0]
    assert "as attempt 3" in remarks(ran)[1]


def test_what_a_job_says_and_leaves_stays_here(jobs: Desk) -> None:
    start_batch(jobs, "says", 2)
    logged = jobs.run("logs", "last").stdout
    ran = jobs.run("rerun", "last:1")
    assert (ran.returncode, ran.stdout) == (0, "(None, [1], False)\n")
    assert "log: a line for the log" in remarks(ran)
    assert jobs.run("logs", "last").stdout == logged


def test_changed_code_is_run_and_said_to_be(jobs: Desk) -> None:
    start_batch(jobs, "fails_once_mended", 1)
    assert not [line for line in remarks(jobs.run("rerun", "last:0")) if "changed" in line]
    (jobs.folder / "jobs.py").write_text(JOBS.replace('raise ValueError("broken")', "return 'mended'"))
    ran = jobs.run("rerun", "last:0")
    assert (ran.returncode, ran.stdout) == (0, "'mended'\n")
    assert remarks(ran)[1] == f"{jobs.folder}/jobs.py changed since: this runs the code as it is now"


def test_a_task_that_is_gone_is_said_to_be(jobs: Desk) -> None:
    start_batch(jobs, "about", 1)
    (jobs.folder / "jobs.py").unlink()
    ran = jobs.run("rerun", "last:0")
    assert ran.returncode == 2
    assert f"{jobs.folder}/jobs.py changed since" in ran.stderr
    assert "failed; its own traceback" in ran.stderr


def test_a_callable_that_was_pickled_is_run_behind_its_initializer(jobs: Desk) -> None:
    (jobs.folder / "program.py").write_text(
        """
import os
import batchd

FACTOR = 3


def prepare(word):
    os.environ["READY"] = word


def work(x, *, plus=0):
    if x == 1:
        raise KeyError(os.environ["READY"])
    return os.environ["READY"], FACTOR * x + plus


with batchd.Executor(1, name="lib", initializer=prepare, initargs=("prepared",)) as executor:
    futures = [executor.submit(work, x, plus=1) for x in range(3)] + [executor.submit(lambda: "a lambda")]
    print([future.exception() for future in futures])
"""
    )
    program = [sys.executable, "program.py"]
    environ = {**jobs.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        program, env=environ, cwd=jobs.folder, capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout == "[None, KeyError('prepared'), None, None]\n"
    for index, result in ((2, "('prepared', 7)\n"), (3, "'a lambda'\n")):
        ran = jobs.run("rerun", f"lib:{index}", cwd=elsewhere(jobs))
        assert (ran.returncode, ran.stdout) == (0, result)
    ran = jobs.run("rerun", "lib:1")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-2] == "KeyError: 'prepared'"


def test_a_job_without_an_outcome_runs_too(jobs: Desk) -> None:
    running = jobs.start("run", "jobs.py:hangs", "--range", "0:2", "-j", "1", "--name", "hanging")
    first, second = jobs.folder / "hanging-0", jobs.folder / "hanging-1"
    until(first.exists, "the first job runs", running)
    again = jobs.start("rerun", "hanging:1")
    until(second.exists, "the second one runs in the foreground", again)
    second.unlink()
    out, err = again.communicate(timeout=60)
    assert (again.returncode, out) == (0, "hanging\nNone\n")
    assert ":1 has no outcome yet; it may be running now" in err
    running.send_signal(signal.SIGTERM)
    assert running.stderr is not None
    assert any("stopping" in line for line in running.stderr)  # Before it is told, nothing may end.
    first.unlink()
    running.communicate(timeout=60)
    assert running.returncode == 4


# --- Debugging -------------------------------------------------------------------------------------------------


def test_ctrl_c_shows_where_a_job_hangs(jobs: Desk) -> None:
    start_batch(jobs, "hangs", 1, "--timeout", "0.3s")
    told = jobs.run("failures", "last").stdout
    assert "timed out after 0." in told
    assert "to run it again in the foreground: batchd rerun " in told
    again = jobs.start("rerun", "last:0")
    assert again.stdout is not None
    assert again.stdout.readline() == "hanging\n"
    again.send_signal(signal.SIGINT)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 130
    assert "attempt 1: timed out after 0." in err
    assert "in hangs" in err
    assert "was stopped after" in err.splitlines()[-1]


def test_pdb_begins_where_the_job_raised(jobs: Desk) -> None:
    start_batch(jobs, "fails_deeper", 3)
    ran = jobs.run("rerun", "last:2", "--pdb", given="p y\nup\np secret\nup\nq\n")
    assert ran.returncode == 1
    shown = ran.stdout.splitlines()
    assert "(Pdb) 42" in shown
    assert shown.count("(Pdb) 42") == 2
    assert "*** Oldest frame" in ran.stdout  # There is nothing of batchd above it.


def test_pdb_changes_nothing_for_a_job_that_returns(worked: Desk) -> None:
    ran = worked.run("rerun", "last:8", "--pdb")
    assert (ran.returncode, ran.stdout) == (0, "hello from 8\n[8, '!']\n")


def test_a_breakpoint_talks_to_the_terminal(jobs: Desk) -> None:
    start_batch(jobs, "stops", 3)  # A worker has nobody to talk to: its jobs fail.
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "batchd", "rerun", "last:2"],
        env={**jobs.environ, "TERM": "dumb"},
        cwd=jobs.folder,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    os.write(master, b"p secret\nc\n")
    shown = b""
    while b"returned after" not in shown and select.select([master], [], [], 60)[0]:
        shown += os.read(master, 4096)
    assert process.wait(60) == 0
    os.close(master)
    lines = shown.decode().replace("\r", "").splitlines()
    assert lines.count("42") + lines.count("(Pdb) 42") == 2  # What was asked for, and the result.


def test_leaving_the_debugger_is_no_traceback(jobs: Desk) -> None:
    start_batch(jobs, "stops", 1)
    ran = jobs.run("rerun", "last:0", "--pdb", given="q\n")
    assert ran.returncode == 1
    assert "was left in the debugger" in remarks(ran)[-1]
    assert "Traceback" not in ran.stderr
