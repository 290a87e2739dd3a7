"""`batchd exec`: commands as jobs, from the shell's side."""

import json
import os
import re
import signal
from contextlib import redirect_stderr

import pytest

from batchd.cli.command import words_of
from batchd.errors import CommandFailed, InputError, UsageError
from batchd.worker import output
from batchd.worker.command import fill, run
from tests.commands import Desk, dead, summary_of, until


def outputs(desk: Desk) -> list[str]:
    """Return what `failures` tells of each cause: the last lines that its first job printed."""
    told = json.loads(desk.run("failures", "--json").stdout)
    return [cause["output"] for cause in told["causes"]]


def test_files_are_given_to_a_command_and_its_output_is_the_result(desk: Desk) -> None:
    for name, text in (("a b.txt", "one\n"), ("$(c).txt", "two\nlines\n")):
        (desk.folder / name).write_text(text)
    command = ("exec", "grep -c '' {/}", "--paths", "*.txt", "--out", "out.jsonl")
    ran = desk.run(*command)
    assert ran.returncode == 0, ran.stderr
    assert desk.values() == ["2", "1"]
    again = desk.run(*command)
    assert "finished" in again.stderr, "the same command does not mean the same batch"
    listed = json.loads(desk.run("ls", "--json").stdout)["batches"]
    assert [(batch["name"], batch["exec"]) for batch in listed] == [("grep", "grep -c '' '{/}'")]
    assert "grep -c '' '{/}'" in desk.run("show").stdout


def test_a_command_that_fails_says_how_and_shows_its_own_output(desk: Desk) -> None:
    script = 'echo "out $1"; echo "err $1" >&2; exit $1'
    ran = desk.run("exec", f"sh -c '{script}' sh {{}}", "--range", "0:3", "-j", "1")
    assert ran.returncode == 1
    assert "sh exited with code 1" in ran.stderr
    assert outputs(desk) == ["err 1\nout 1\n"]
    desk.run("exec", "sh -c 'echo the reason >&2; seq 5000; exit 1'", "--range", "0:1")
    (told,) = outputs(desk)
    assert told.startswith("the reason\n")
    assert told.endswith("\n5000\n")


def test_a_command_that_is_killed_and_one_that_is_none_are_told(desk: Desk) -> None:
    desk.run("exec", "sh -c 'kill -9 $$'", "--range", "0:1")
    assert "sh was killed by SIGKILL" in desk.run("failures").stdout
    (desk.folder / "text").write_text("no program")
    desk.run("exec", "./{}", "-", given="text\n")
    assert "./text cannot be run: Permission denied" in desk.run("failures").stdout


@pytest.mark.covers("X14")
def test_a_time_limit_ends_the_command_and_all_it_started(desk: Desk) -> None:
    script = "echo begun >&2; sleep 600 & echo $$ $! > pids; mv pids told; sleep 600"
    process = desk.start("exec", f"sh -c '{script}'", "--range", "0:1", "--timeout", "4s")
    until((desk.folder / "told").exists, "it runs", process)
    _, told = process.communicate(timeout=60)
    assert re.search(r"timed out after \d+\.\d s", told)
    assert [text.splitlines()[0] for text in outputs(desk)] == ["begun"]
    pids = [int(pid) for pid in (desk.folder / "told").read_text().split()]
    assert len(pids) == 2
    until(lambda: all(map(dead, pids)), "both are gone")


@pytest.mark.covers("X14")
def test_a_command_is_gone_with_its_supervisor_and_runs_again(desk: Desk) -> None:
    script = "sleep 600 & echo $$ $! > pids; mv pids told; test -e go || sleep 600; kill $!"
    process = desk.start("exec", f"sh -c '{script}'", "--range", "0:1")
    until((desk.folder / "told").exists, "it runs", process)
    pids = [int(pid) for pid in (desk.folder / "told").read_text().split()]
    (desk.folder / "go").touch()
    os.kill(desk.supervisor(), signal.SIGKILL)
    until(lambda: all(map(dead, pids)), "both are gone")
    _, told = process.communicate(timeout=60)
    assert (process.returncode, "1 succeeded" in told) == (0, True), told


def test_commands_are_retried_and_found_again_by_name(desk: Desk) -> None:
    (desk.folder / "rows.jsonl").write_text('{"to": "x", "n": 1}\n{"to": "y", "n": 2}\n')
    command = ("exec", "sh -c 'test -e go && echo $1' sh {to}{n}", "rows.jsonl", "--out", "out.jsonl")
    assert desk.run(*command).returncode == 1
    (desk.folder / "go").touch()
    assert desk.run("retry", "last", "--failed", "--out", "out.jsonl").returncode == 0
    assert desk.values() == ["x1", "y2"]
    named = (*command[:1], "true {to}", *command[2:3], "--name", "rows")
    assert desk.run(*named).returncode == 0
    other = desk.run(*named[:1], "echo {to}", *named[2:])
    assert other.returncode == 2
    assert "another --arg or command" in other.stderr


def test_a_dry_run_shows_the_commands(desk: Desk) -> None:
    shown = desk.run("exec", "gzip -k {}", "--dry-run", "-", given="a b\nc\n").stdout.splitlines()
    assert [line.split(maxsplit=2)[2] for line in shown if line.startswith("job ")] == ["gzip -k 'a b'", "gzip -k c"]
    assert shown[0] == "command  gzip -k '{}'"


def test_its_answers_are_for_programs_too(desk: Desk) -> None:
    told = summary_of(desk.run("exec", "true", "--range", "0:2", "--json").stdout)
    assert told["succeeded"] == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grep x {} | wc", "no shell reads the command, so |"),
        ("echo {} > out", "no shell reads the command, so >"),
        ("no-such-program {}", "there is no program 'no-such-program'"),
        ("echo 'x", "No closing quotation"),
        (" ", "the command is empty"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match="^.*" + told.replace("|", r"\|")):
        words_of(text)


def test_a_stopped_batch_of_commands_is_gone_on_with(desk: Desk) -> None:
    ran = desk.run("exec", "sh -c 'test -e go'", "--range", "0:200")
    assert "fix what it runs, then run the same command to go on" in ran.stderr
    unquoted = desk.run("exec", "gzip", "-k", "{}", "x.txt")
    assert (unquoted.returncode, "stands in quotes" in unquoted.stderr) == (2, True)


def test_memory_of_other_programs_is_not_promised(desk: Desk) -> None:
    refused = desk.run("exec", "true", "--range", "0:1", "--memory-per-job", "1G")
    assert (refused.returncode, "ulimit" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "item", "filled"),
    [
        (["{}"], "-n x", ["-n x"]),
        (["{//}/{/.}.out"], "a.d/b.c.txt", ["a.d/b.c.out"]),
        (["{.}", "{//}"], "plain", ["plain", "."]),
        (["awk", "{print}"], "in.txt", ["awk", "{print}", "in.txt"]),
        (["x={n}", "{on}", "{deep}"], {"n": 1.5, "on": True, "deep": [1]}, ["x=1.5", "true", "[1]"]),
        (["{Order ID}:{unit-price}", "f() { echo; }"], {"Order ID": 7, "unit-price": "1"}, ["7:1", "f() { echo; }"]),
        (["cat"], {"n": 1}, ["cat", '{"n": 1}']),
        (["seq"], 3, ["seq", "3"]),
    ],
)
def test_words_are_filled(words: list[str], item: object, filled: list[str]) -> None:
    assert fill(words, item) == filled


def test_a_field_that_is_not_there_is_named() -> None:
    for name in ("url", "the url", "url-2"):
        with pytest.raises(InputError, match=f"no field '{name}'; it has a, b"):
            fill([f"{{{name}}}"], {"a": 1, "b": 2})


def test_output_that_is_no_text_is_bytes() -> None:
    assert run("", words=["printf", r"\377\n\n"]) == b"\xff\n"
    with pytest.raises(CommandFailed, match="cannot be run: embedded null byte"):
        run("a\0b", words=["echo"])
    with pytest.raises(CommandFailed, match="yes wrote more than 64M to stdout"):
        run("", words=["yes"])
    with pytest.raises(CommandFailed, match="signal 40"):
        run("", words=["sh", "-c", "kill -40 $$"])


def test_what_a_command_writes_to_stderr_is_its_own_jobs() -> None:
    fd, job = os.memfd_create("output"), 0
    try:
        with redirect_stderr(output.text_stream(fd, lambda: job)):
            for job in range(2):
                run(job, words=["sh", "-c", "echo said by $1 >&2", "sh"])
        assert output.tail(fd, 1) == "said by 1\n"
    finally:
        os.close(fd)
