"""`batchd run` and the verbs around it, as a person types them."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Desk, squares, status_of, summary_of, until


def test_runs_a_range_and_writes_results_in_order(desk: Desk) -> None:
    ran = desk.run("run", desk.task("square"), "--range", "0:5000", "--out", "out.jsonl")
    assert ran.returncode == 0, ran.stderr
    assert desk.results() == [{"index": i, "state": "succeeded", "result": i * i} for i in range(5000)]
    assert "5,000 succeeded" in ran.stderr
    assert "next: batchd results" in ran.stderr


def test_the_same_command_again_runs_nothing_and_still_writes_results(desk: Desk) -> None:
    command = ("run", desk.task("marked_square"), "--range", "0:50", "--out", "out.jsonl")
    desk.run(*command)
    (desk.folder / "out.jsonl").unlink()
    again = desk.run(*command)
    assert again.returncode == 0
    assert "finished already" in again.stderr
    assert len(desk.results()) == 50
    assert set(desk.executions().values()) == {1}


def test_changed_code_is_refused_with_the_choices(desk: Desk) -> None:
    module = desk.folder / "mine.py"
    module.write_text("def f(x):\n    return x\n")
    command = ("run", "mine.py:f", "--range", "0:10", "--out", "out.jsonl")
    assert desk.run(*command).returncode == 0
    module.write_text("def f(x):\n    return x + 1\n")
    refused = desk.run(*command)
    assert refused.returncode == 2
    assert "--accept-code" in refused.stderr
    assert "--new" in refused.stderr
    assert desk.run(*command, "--accept-code").returncode == 0
    assert desk.results()[9]["result"] == 9  # What was there stays.
    assert desk.run(*command).returncode == 0  # Accepted once is accepted.
    assert desk.run(*command, "--new").returncode == 0
    assert desk.results()[9]["result"] == 10


def test_a_module_of_the_current_folder_is_importable(desk: Desk) -> None:
    (desk.folder / "package").mkdir()
    (desk.folder / "package" / "__init__.py").write_text("")
    (desk.folder / "package" / "job.py").write_text("def f(x):\n    return -x\n")
    ran = desk.run("run", "package.job:f", "--range", "1:4", "--out", "-")
    assert [json.loads(line)["result"] for line in ran.stdout.splitlines()] == [-1, -2, -3]


def test_a_name_finds_the_batch_from_another_folder_and_for_stdin(desk: Desk) -> None:
    command = ("run", desk.task("text_length"), "-", "--name", "lines", "--out", str(desk.folder / "out.jsonl"))
    assert desk.run(*command, given="a\nbb\n").returncode == 0
    elsewhere = desk.folder / "elsewhere"
    elsewhere.mkdir()
    grown = desk.run(*command, given="a\nbb\nccc\n", cwd=elsewhere)
    assert "2 of 2 jobs were already done" in grown.stderr
    assert desk.values() == [1, 2, 3]
    other = desk.run(*command, given="x\nbb\nccc\n")
    assert other.returncode == 2


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("nowhere.at.all:f", ["nowhere"]),
        ("json:nothing", ["json", "nothing"]),
        ("json:__doc__", ["not callable"]),
        ("missing.py:f", ["missing.py"]),
        ("no-colon", ["package.module:function"]),
        ("broken.py:f", ["broken.py", "ZeroDivisionError", "1 / 0"]),
    ],
)
def test_a_wrong_task_gets_a_sentence(desk: Desk, task: str, words: list[str]) -> None:
    (desk.folder / "broken.py").write_text("x = 1 / 0\n")
    ran = desk.run("run", task, "--range", "0:3")
    assert ran.returncode == 2
    for word in words:
        assert word in ran.stderr
    assert "batchd/" not in ran.stderr  # The user's own traceback, not ours.


def test_a_mistyped_arg_is_refused_before_there_is_a_batch(desk: Desk) -> None:
    (desk.folder / "in.txt").write_text("a\n")
    for more in ((), ("--dry-run",)):
        ran = desk.run("run", desk.task("text_length"), "in.txt", "--arg", "tmes=2", *more)
        assert ran.returncode == 2
        assert "text_length(line: str, *, times: int=1) has no tmes" in ran.stderr
        assert "--arg takes times" in ran.stderr
    assert not desk.journal.exists()


def test_a_folder_that_is_no_journal_or_unsafe_is_refused(desk: Desk) -> None:
    (desk.folder / "other").mkdir()
    (desk.folder / "other" / "file").write_text("")
    ran = desk.run("run", desk.task("square"), "--range", "0:3", "--journal", str(desk.folder / "other"))
    assert ran.returncode == 3
    assert "other" in ran.stderr
    (desk.folder / "open").mkdir()
    (desk.folder / "open").chmod(0o777)
    ran = desk.run("run", desk.task("square"), "--range", "0:3", "--journal", str(desk.folder / "open"))
    assert ran.returncode == 3
    assert "chmod" in ran.stderr


def test_failures_are_grouped_and_retried(desk: Desk) -> None:
    ran = desk.run("run", desk.task("raises_on_odd"), "--range", "0:100", "--out", "out.jsonl")
    assert ran.returncode == 1
    assert "50 failed" in ran.stderr
    assert desk.results()[1] == {
        "index": 1,
        "state": "failed",
        "error": {"type": "ValueError", "message": "1 is odd"},
    }
    told = desk.run("failures", "last")
    assert "ValueError" in told.stdout
    assert "looking at 1" in told.stdout
    assert "raise ValueError" in told.stdout
    again = desk.run("retry", "last", "--failed")
    assert again.returncode == 1
    assert "retrying 50" in again.stderr
    assert desk.run("retry", "last", "--quarantined").returncode == 0


def test_retries_run_a_failed_job_again_with_a_new_attempt_number(desk: Desk) -> None:
    ran = desk.run("run", desk.task("raises_once"), "--range", "0:20", "--retries", "2", "--out", "out.jsonl")
    assert ran.returncode == 0, ran.stderr
    assert sorted(desk.attempts()) == [(i, attempt) for i in range(20) for attempt in (1, 2)]


def test_a_batch_whose_first_jobs_all_fail_the_same_way_stops(desk: Desk) -> None:
    command = ("run", desk.task("always_raises"), "--range", "0:20000")
    stopped = desk.run(*command, "--json")
    assert stopped.returncode == 1
    made = summary_of(stopped.stdout)
    assert made["state"] == "stopped"
    assert 100 <= made["failed"] < 20000
    going = desk.run(*command, "--keep-going", "--json")
    assert summary_of(going.stdout)["failed"] == 20000


def test_max_failures_stops_the_batch(desk: Desk) -> None:
    ran = desk.run("run", desk.task("raises_on_odd"), "--range", "0:100000", "--max-failures", "10", "--json")
    assert ran.returncode == 1
    assert summary_of(ran.stdout)["state"] == "stopped"


@pytest.mark.covers("W5", "P4")
def test_each_way_a_job_can_end_costs_that_job_alone(desk: Desk) -> None:
    ran = desk.run(
        "run", desk.task("ends_in_many_ways"), "--range", "0:20", "--out", "out.jsonl", "--max-crashes", "1"
    )
    assert ran.returncode == 1
    lines = desk.results()
    assert [line["result"] for line in lines[7:]] == list(range(7, 20))
    told = [f"{line['state']}: {line['error']['type']}: {line['error']['message']}" for line in lines[:7]]
    assert told[0].startswith("failed: SystemExit: 3")
    assert told[1].startswith("quarantined: JobCrashed: exited with code 0")
    assert told[2].startswith("failed: KeyboardInterrupt")
    assert told[3].startswith("failed: ")
    assert "cannot be read back" in told[4]
    assert "1 and 2" in told[5]
    assert "SIGSEGV" in told[6]


@pytest.mark.covers("P27")
def test_a_crash_is_explained_with_the_stack_and_the_last_output(desk: Desk) -> None:
    desk.run("run", desk.task("segfault_at_3"), "--range", "0:5", "--max-crashes", "1")
    told = desk.run("failures", "last").stdout
    assert "killed by SIGSEGV" in told
    assert "about to read job 3" in told
    assert "segfault_at_3" in told  # faulthandler's Python stack.


@pytest.mark.covers("W9", "P7")
def test_a_timeout_ends_c_code_that_holds_the_gil(desk: Desk) -> None:
    ran = desk.run("run", desk.task("hangs_in_c_at_2"), "--range", "0:10", "--timeout", "1s", "--out", "out.jsonl")
    assert ran.returncode == 1
    error = desk.results()[2]["error"]
    assert error["type"] == "JobTimeout"
    assert error["message"].startswith("timed out after 1.")
    assert sum(line["state"] == "succeeded" for line in desk.results()) == 9


@pytest.mark.covers("W11", "P4", "P19")
@pytest.mark.parametrize("task", ["eats_memory_at_1", pytest.param("grows_at_1", marks=pytest.mark.slow)])
def test_a_job_past_its_memory_limit_fails_with_both_figures(desk: Desk, task: str) -> None:
    ran = desk.run("run", desk.task(task), "--range", "0:4", "--memory-per-job", "300M", "--out", "out.jsonl")
    assert ran.returncode == 1
    message = desk.results()[1]["error"]["message"]
    assert message.startswith("memory ")
    assert message.endswith("M > 300M (memory per job)")


def test_a_file_of_any_name_gives_results_of_its_own_classes(desk: Desk) -> None:
    source = "from collections import namedtuple\nPair = namedtuple('Pair', 'x y')\ndef f(x): return Pair(x, -x)\n"
    (desk.folder / "2nd-pass.py").write_text(source)
    ran = desk.run("run", "2nd-pass.py:f", "--range", "0:2", "--out", "out.jsonl")
    assert ran.returncode == 0, ran.stderr
    assert desk.values() == [[0, 0], [1, -1]]
    assert desk.run("results", "last", "--values").stdout == "[0, 0]\n[1, -1]\n"


def test_results_json_cannot_hold_are_told_by_index(desk: Desk) -> None:
    ran = desk.run("run", desk.task("odd_values"), "--range", "0:4", "--out", "out.jsonl")
    assert ran.returncode == 1
    assert [line.get("result") for line in desk.results()[:3]] == [[1, 2], "/a/b", "2026-01-02T00:00:00+00:00"]
    assert ":3: result is of type object, which JSON cannot hold" in ran.stderr


def test_a_plain_result_json_cannot_hold_costs_its_own_line(desk: Desk) -> None:
    ran = desk.run("run", desk.task("huge_at_1"), "--range", "0:3", "--out", "out.jsonl")
    assert ran.returncode == 1
    assert ":1: result of type int cannot be written as JSON" in ran.stderr
    assert [line.get("result") for line in desk.results()] == [0, None, 2]


def test_results_replace_nothing_but_results(desk: Desk) -> None:
    source, link = desk.folder / "in.txt", desk.folder / "link.txt"
    source.write_text("a\nbb\n")
    link.symlink_to(source)
    command = ("run", desk.task("text_length"), str(source), "--arg", "times=1", "--out")
    for target in (source, link):
        refused = desk.run(*command, str(target))
        assert (refused.returncode, source.read_text()) == (2, "a\nbb\n")
        assert "name another file" in refused.stderr
    (desk.folder / "notes.txt").write_text("precious")
    assert desk.run(*command, "notes.txt").returncode == 2
    (desk.folder / "out.jsonl").write_text('{"index": 0, "state": "succeeded", "result": 7}\n')
    assert desk.run(*command, "out.jsonl").returncode == 0
    assert desk.values() == [1, 2]


@pytest.mark.covers("D5")
def test_a_slow_disk_does_not_let_a_job_time_out_whose_result_it_takes(desk: Desk) -> None:
    ran = desk.run("run", desk.task("saves_slowly"), "--range", "0:2", "--timeout", "0.5s", "-j", "2")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.covers("P24")
def test_interrupted_by_ctrl_c_it_is_resumable(desk: Desk) -> None:
    command = ("run", desk.task("slow_square"), "--range", "0:100", "--out", "out.jsonl")
    process = desk.start(*command)
    until(lambda: len(desk.executions()) > 10, "some jobs ran", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 4, err
    assert "run the same command again" in err
    assert Path(desk.folder / "out.jsonl.partial").exists()
    assert desk.run(*command).returncode == 0
    assert desk.values() == squares(100)
    assert set(desk.executions().values()) == {1}  # A drain wastes nothing.


@pytest.mark.covers("P24")
def test_a_second_ctrl_c_aborts(desk: Desk) -> None:
    process = desk.start("run", desk.task("long_job"), "--range", "0:4")
    until(lambda: len(desk.executions()) >= 1, "a job runs", process)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    until(lambda: "stopping" in process.stderr.readline(), "it says that it stops")  # type: ignore[union-attr]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


@pytest.mark.covers("H3")
def test_hangup_and_terminate_drain_too(desk: Desk) -> None:
    for number in (signal.SIGHUP, signal.SIGTERM):
        process = desk.start("run", desk.task("slow_square"), "--range", "0:300", "--name", number.name)
        before = len(desk.attempts())
        desk.wait_for_jobs(before + 5, process)
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == 4


def test_cancel_ends_a_running_batch_and_retry_brings_it_back(desk: Desk) -> None:
    process = desk.start("run", desk.task("slow_square"), "--range", "0:2000", "--name", "big")
    until(lambda: len(desk.executions()) > 5, "some jobs ran", process)
    cancelled = desk.run("cancel", "big", "--reason", "changed my mind")
    assert cancelled.returncode == 0, cancelled.stderr
    process.communicate(timeout=30)
    assert process.returncode == 1
    shown = desk.run("show", "big", "--json")
    assert summary_of(shown.stdout)["state"] == "cancelled"
    small = desk.start("run", desk.task("square"), "--range", "0:2000000", "--name", "small")
    small.communicate(timeout=60)
    assert desk.run("cancel", "small").returncode == 2  # Finished: nothing to cancel.


def test_a_job_is_shown_while_it_runs(desk: Desk) -> None:
    process = desk.start("run", desk.task("talks"), "--range", "0:2", "-j", "1")
    desk.wait_for_jobs(1, process)

    def running() -> dict[str, Any]:
        told = summary_of(desk.run("show", "last:0", "--json").stdout)
        return told["running"] or {}

    until(lambda: running().get("progress") == pytest.approx(0.42, abs=0.01), "it said how far it is", process)
    assert running()["pid"] in desk.workers()
    assert "on worker 1, pid" in desk.run("show", "last:0").stdout
    assert summary_of(desk.run("show", "last:1", "--json").stdout)["state"] == "queued"
    (desk.folder / "go").touch()
    process.communicate(timeout=30)
    assert summary_of(desk.run("show", "last:1", "--json").stdout)["result"] == 1


def test_status_and_scale_of_a_live_run(desk: Desk) -> None:
    process = desk.start("run", desk.task("slow_square"), "--range", "0:400", "-j", "1")
    until(lambda: len(desk.executions()) > 3, "some jobs ran", process)
    told = summary_of(desk.run("status", "--json").stdout)
    assert told["running"]
    assert len(told["workers"]) == 1
    assert told["workers"][0]["pid"] in desk.processes()
    assert desk.run("scale", "3").returncode == 0
    until(lambda: len(status_of(desk)["workers"]) == 3, "three workers", process)
    assert desk.run("scale", "-2").returncode == 0
    until(lambda: len(status_of(desk)["workers"]) == 1, "one worker", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert set(desk.executions().values()) == {1}


def test_two_runs_share_one_supervisor(desk: Desk) -> None:
    first = desk.start("run", desk.task("slow_square"), "--range", "0:150", "--name", "one", "--out", "one.jsonl")
    second = desk.start("run", desk.task("slow_square"), "--range", "0:150", "--name", "two", "--out", "two.jsonl")
    until(lambda: len(status_of(desk).get("batches", ())) == 2, "both run", first)
    for process, path in ((first, "one.jsonl"), (second, "two.jsonl")):
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert desk.values(path) == squares(150)


def test_dry_run_runs_nothing(desk: Desk) -> None:
    ran = desk.run("run", desk.task("marked_square"), "--range", "0:1000", "--dry-run")
    assert ran.returncode == 0
    assert "1,000" in ran.stdout
    (desk.folder / "in.json").write_text("n\n" * 5_000)
    ran = desk.run("run", desk.task("text_length"), "in.json", "--dry-run")
    assert "jobs     5,000" in ran.stdout
    assert "in.json: each line is a job, as text" in ran.stderr
    assert not desk.executions()
    assert not desk.journal.exists()


def test_the_first_jobs_run_before_the_input_has_ended(desk: Desk) -> None:
    import subprocess

    process = desk.start("run", desk.task("slow_square_of_text"), "-", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("1\n2\n3\n")
    process.stdin.flush()
    until(lambda: len(desk.executions()) == 3, "three jobs ran while the input is open", process)
    process.stdin.write("4\n")
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert len(desk.executions()) == 4


def test_fresh_interpreters_and_process_durability(desk: Desk) -> None:
    ran = desk.run("run", desk.task("square"), "--range", "0:50", "--start", "fresh", "--out", "a.jsonl")
    assert ran.returncode == 0, ran.stderr
    ran = desk.run(
        "run", desk.task("square"), "--range", "0:50", "--durability", "process", "--new", "--out", "b.jsonl"
    )
    assert ran.returncode == 0, ran.stderr
    assert desk.results("a.jsonl") == desk.results("b.jsonl")


@pytest.mark.covers("P26")
def test_nothing_is_left_when_the_last_client_has_gone(desk: Desk) -> None:
    desk.run("run", desk.task("square"), "--range", "0:50")
    until(lambda: not desk.supervisor(), "the supervisor left")
    assert not desk.processes()
    assert not (desk.journal / "control.sock").exists()
    assert not desk.recorder().exists()


def test_what_a_task_module_opened_stays_open_in_its_workers(desk: Desk) -> None:
    (desk.folder / "logged.py").write_text(
        "import pathlib\nLOG = open('log.txt', 'a')\n"
        "def f(x):\n"
        "    LOG.write(f'{x}\\n')\n    LOG.flush()\n"
        "    pathlib.Path(f'out{x}.txt').write_text(str(x))\n    return x\n"
    )
    for start in ("fork", "fresh"):
        ran = desk.run("run", "logged.py:f", "--range", "0:6", "--start", start, "--new")
        assert ran.returncode == 0, ran.stderr
        assert sorted((desk.folder / "log.txt").read_text().split()) == list("012345")
        assert [(desk.folder / f"out{x}.txt").read_text() for x in range(6)] == list("012345")
        (desk.folder / "log.txt").unlink()


def test_retrying_a_batch_whose_input_was_not_read_to_its_end_comes_to_an_end(desk: Desk) -> None:
    module = desk.folder / "mended.py"
    module.write_text("def f(line):\n    raise ValueError('no')\n")
    (desk.folder / "in.txt").write_text("line\n" * 300_000)
    stopped = desk.run("run", "mended.py:f", "in.txt", "--json")
    assert summary_of(stopped.stdout)["state"] == "stopped"
    module.write_text("def f(line):\n    return len(line)\n")
    retried = desk.run("retry", "last", "--failed", "--json")
    assert summary_of(retried.stdout)["failed"] == 0
    assert retried.returncode == 0


def test_a_long_import_error_is_told_and_nobody_dies_of_it(desk: Desk) -> None:
    (desk.folder / "long.py").write_text("raise ValueError('\\u00e9' * 60_000 + ' the end')\n")
    ran = desk.run("run", "long.py:f", "--range", "0:3")
    assert ran.returncode == 2
    assert "the end" in ran.stderr
    assert "died" not in ran.stderr


def test_a_refused_run_leaves_partial_results_alone(desk: Desk) -> None:
    module = desk.folder / "mine.py"
    module.write_text("import time\ndef f(x):\n    end = time.time() + 0.01\n    while time.time() < end: pass\n")
    process = desk.start("run", "mine.py:f", "--range", "0:2000", "--out", "out.jsonl")
    partial = desk.folder / "out.jsonl.partial"
    shown = "results", "last", "--json"
    until(lambda: desk.run(*shown).stdout.count("succeeded") > 20, "some jobs are done", process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    kept = partial.read_bytes()
    assert kept
    module.write_text(module.read_text() + "# changed\n")
    assert desk.run("run", "mine.py:f", "--range", "0:2000", "--out", "out.jsonl").returncode == 2
    assert partial.read_bytes() == kept


def test_more_batches_than_workers_take_turns(desk: Desk) -> None:
    processes = [
        desk.start("run", desk.task("slow_square"), "--range", "0:4000", "--name", name, "-j", "1")
        for name in ("one", "two")
    ]
    until(lambda: len(status_of(desk).get("batches", ())) == 2, "both run", processes[0])

    def done() -> list[int]:
        return [made["done"] for made in status_of(desk)["batches"].values()]

    before = done()
    until(lambda: all(now > then + 5 for now, then in zip(done(), before, strict=True)), "both go on", processes[0])
    for process in processes:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def test_a_named_batch_of_a_local_module_goes_on_from_another_folder(desk: Desk) -> None:
    (desk.folder / "local.py").write_text("def f(x):\n    return x + 1\n")
    assert desk.run("run", "local:f", "--range", "0:5", "--name", "near").returncode == 0
    elsewhere = desk.folder / "elsewhere"
    elsewhere.mkdir()
    out = str(desk.folder / "out.jsonl")
    ran = desk.run("run", "local:f", "--range", "0:8", "--name", "near", "--out", out, cwd=elsewhere)
    assert ran.returncode == 0, ran.stderr
    assert desk.values() == list(range(1, 9))
