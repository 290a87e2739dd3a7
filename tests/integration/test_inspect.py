"""The verbs that read a journal: ls, show, results and failures, as people and programs meet them."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from batchd.cli import inspect
from batchd.core import entries as e
from batchd.edge.shelf import Unread, find_batch, is_newest, list_batches
from batchd.errors import BatchNotFound, JournalDamaged, JournalError
from batchd.formats.report import Failure, fingerprint
from tests.commands import Terminal
from tests.written import Run, failed, make, make_mixed, succeeded

# --- Which batch -----------------------------------------------------------------------------------------------


def found(folder: Path, text: str) -> str:
    journal = find_batch(folder, text)
    journal.close()
    return journal.folder.name


def test_a_batch_is_found_by_id_prefix_name_and_as_the_last(folder: Path) -> None:
    make(folder, "abc1", name="one", created="2026-01-01T00:00:00+00:00")
    make(folder, "abd2", name="two", created="2026-01-03T00:00:00+00:00")
    make(folder, "xyz3", name="abc1", created="2026-01-02T00:00:00+00:00")
    assert found(folder, "abc1") == "abc1"  # An id goes before a name.
    assert found(folder, "x") == "xyz3"
    assert found(folder, "two") == "abd2"
    assert found(folder, "last") == "abd2"


def test_what_could_be_several_batches_is_refused_with_their_list(folder: Path) -> None:
    make(folder, "abc1", created="2026-01-01T00:00:00+00:00")
    make(folder, "abd2", created="2026-01-03T00:00:00+00:00")
    for text in ("ab", "nightly"):
        with pytest.raises(BatchNotFound, match=r"means 2 batches.*abd2 \(nightly, 2026-01-03 00:00 UTC\), abc1"):
            find_batch(folder, text)


def test_of_one_command_started_again_the_name_means_the_latest(folder: Path) -> None:
    for batch in ("abc1", "abc1-2", "abc1-10"):
        make(folder, batch)
    assert found(folder, "nightly") == "abc1-10"
    assert found(folder, "abc1") == "abc1"


def test_a_name_that_was_given_goes_before_one_that_was_made_up(folder: Path) -> None:
    make(folder, "abc1", is_named=True)
    make(folder, "abd2")
    assert found(folder, "nightly") == "abc1"


def test_a_wrong_name_is_answered_with_near_ones(folder: Path) -> None:
    with pytest.raises(BatchNotFound, match=r"the journal .* is empty"):
        find_batch(folder, "last")
    make(folder, "abc1")
    with pytest.raises(BatchNotFound, match=r"did you mean abc1 \(nightly"):
        find_batch(folder, "nihgtly")
    with pytest.raises(BatchNotFound, match="`batchd ls` lists"):
        find_batch(folder, "zzzzzz")


def test_the_newest_batch_is_known_without_opening_any(folder: Path) -> None:
    for at, batch in enumerate(("abc1", "abd2")):
        make(folder, batch)
        os.utime(folder / "batches" / batch, (at, at))
    assert not is_newest(folder / "batches" / "abc1")
    assert is_newest(folder / "batches" / "abd2")


# --- Damage ----------------------------------------------------------------------------------------------------


def spoil(folder: Path, batch: str, size: int) -> None:
    """Cut a batch's file off."""
    make(folder, batch, succeeded(batch, 0, *range(1000)), size=1000)
    os.truncate(folder / "batches" / batch / "data.mdb", size)


@pytest.mark.parametrize("size", [0, 100, 8192, 20_000])
def test_a_damaged_batch_does_not_hide_the_others(folder: Path, run: Run, size: int) -> None:
    make_mixed(folder, "good1")
    spoil(folder, "bad1", size)
    (folder / "batches" / ".new-draft").mkdir()
    (folder / "batches" / "hollow").mkdir()
    kinds = {}
    for batch in list_batches(folder):
        kinds[batch.folder.name] = isinstance(batch, Unread)
    assert kinds == {"bad1": True, "good1": False, "hollow": True}
    code, out, err = run(inspect.ls)
    assert code == 0
    assert [line.split()[:3:2] for line in out.splitlines()[1:]] == [["good1", "finished"], ["hollow"], ["bad1"]]
    assert out.count("damaged") == 2
    assert err.count("batchd: ") == 2
    rows = json.loads(run(inspect.ls, json=True)[1])["batches"]
    assert [(row["batch"], row["state"], bool(row["error"])) for row in rows] == [
        ("good1", "finished", False),
        ("hollow", "damaged", True),
        ("bad1", "damaged", True),
    ]
    with pytest.raises(JournalError):
        find_batch(folder, "bad1")


def test_a_cut_off_file_is_an_error_and_no_signal(folder: Path) -> None:
    spoil(folder, "bad1", 8192)
    with pytest.raises(JournalDamaged, match="was cut off"):
        find_batch(folder, "bad1")


# --- ls --------------------------------------------------------------------------------------------------------


def test_whatever_a_batch_is_called_it_takes_one_bounded_row(folder: Path, run: Run) -> None:
    make(folder, "abc1", name="a\x1b[31m\nred", task=["", "f\x07"])
    make(folder, "abd2", name="n" * 5_000)
    for verb in (inspect.ls, inspect.show, inspect.failures):
        _, out, _ = run(verb, batch="abc1")
        assert r"a\x1b[31m\nred" in out
        assert not set(out) & {"\x1b", "\x07"}
    assert max(map(len, run(inspect.ls)[1].splitlines())) < 250


def test_whatever_an_exception_is_called_it_does_not_steer_the_terminal(folder: Path, run: Run) -> None:
    make(folder, "abc1", failed("abc1", 0, Failure("Ev\x1b[31mil\n", "no", fingerprint("Evil"))), size=1)
    assert r"1. Ev\x1b[31mil\n · 1 job: 0" in run(inspect.failures, batch="abc1")[1]
    for verb, batch in ((inspect.failures, "abc1"), (inspect.show, "abc1"), (inspect.show, "abc1:0")):
        assert "\x1b" not in run(verb, batch=batch)[1]


def test_ls_lists_the_newest_first(folder: Path, run: Run) -> None:
    make_mixed(folder, "abc1", created="2026-01-01T00:00:00+00:00")
    make(folder, "abd2", size=1500, is_sealed=False, task=["/home/x/job.py", "f"], name="é")
    code, out, err = run(inspect.ls)
    head, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert head.split() == ["BATCH", "NAME", "STATE", "DONE", "FAILED", "AGE", "DISK", "TASK"]
    assert rows[0].split()[:5] == ["abd2", "é", "interrupted", "0/1,500+", "-"]
    assert rows[0].endswith("  job.py:f")
    assert rows[1].split()[:5] == ["abc1", "nightly", "finished", "6/6", "2"]
    assert all(row.index("  job.py:f" if "job" in row else "  package") == head.index("  TASK") for row in rows)


def test_ls_in_json(folder: Path, run: Run) -> None:
    make_mixed(folder)
    told = json.loads(run(inspect.ls, json=True)[1])
    assert (told["batchd"], told["journal"]) == (1, str(folder))
    (row,) = told["batches"]
    states = {"succeeded": 4, "failed": 1, "quarantined": 1, "cancelled": 0}
    named = {"batch": "mixed", "name": "nightly", "task": ["package.module", "work"]}
    assert row.items() >= {"state": "finished", "is_running": False, "size": 6, "done": 6, "error": ""}.items()
    assert row.items() >= {**states, **named}.items()
    assert row["disk_bytes"] > 0


def test_ls_shows_the_latest_unless_all_are_asked_for(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "_ROWS_MAX", 1)
    make(folder, "abc1", created="2026-01-01T00:00:00+00:00")
    make(folder, "abd2")
    _, out, err = run(inspect.ls)
    assert out.splitlines()[1].startswith("abd2")
    assert (len(out.splitlines()), err) == (2, "batchd: 1 older batch not shown; --all shows everything\n")
    _, out, err = run(inspect.ls, all=True)
    assert (len(out.splitlines()), err) == (3, "")
    assert len(json.loads(run(inspect.ls, json=True)[1])["batches"]) == 2


def test_an_empty_journal_is_met_with_a_first_command(folder: Path, run: Run) -> None:
    code, out, _ = run(inspect.ls)
    assert code == 0
    assert out.startswith(f"No batches yet in {folder}. Try: batchd run batchd.examples.demo:double")
    assert json.loads(run(inspect.ls, json=True)[1])["batches"] == []


def test_nobody_is_told_of_an_error_before_the_first_run(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BATCHD_JOURNAL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert run(inspect.ls)[1].startswith("No batches yet")
    assert not (tmp_path / "state").exists()
    with pytest.raises(JournalError, match="There is no journal at"):
        run(inspect.ls, journal=str(tmp_path / "typo"))


def test_a_terminal_gets_a_drawn_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mixed(folder, task=["package.module", "a" * 200])
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    inspect.ls(argparse.Namespace(journal=None, json=False, all=False))
    lines = shown.getvalue().splitlines()
    assert len(lines) == 2
    assert "\x1b[32mfinished" in lines[1]
    assert "nightly" in lines[1]
    assert "…" in lines[1]


# --- show ------------------------------------------------------------------------------------------------------


def test_show_tells_everything(folder: Path, run: Run) -> None:
    make_mixed(folder, args={"width": 3}, durability="process")
    code, out, _ = run(inspect.show, batch="mix")
    lines = dict(line.strip().split("  ", 1) for line in out.splitlines()[1:] if line.strip().count("  "))
    told = {name: text.strip() for name, text in lines.items()}
    assert code == 0
    assert out.splitlines()[0] == "nightly (mixed): finished"
    assert told["jobs"] == "6 of 6 done: 4 succeeded · 1 failed · 1 quarantined"
    assert told["task"] == "package.module:work"
    assert told["arguments"] == "width=3"
    assert told["input"] == "'/data/in put.txt'"
    assert told["command"] == "batchd run package.module:work 'in put.txt'"
    assert told["created"].startswith("2026-01-02 03:04:05 UTC (")
    assert told["durability"].startswith("process")
    assert told["next"] == "batchd failures last"


def test_show_in_json(folder: Path, run: Run) -> None:
    make(folder, "abc1", succeeded("abc1", 0, 1), e.Stopped("abc1", "too many"), size=3)
    told = json.loads(run(inspect.show, json=True)[1])
    assert (told["batchd"], told["state"], told["reason"], told["done"]) == (1, "stopped", "too many", 1)
    assert told["spec"]["command"] == "batchd run package.module:work 'in put.txt'"
    assert told["next"][-1].startswith("or run it with --new")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"kind": "paths", "patterns": ["/a/**/*.py", "/b c"]}, "--paths '/a/**/*.py' --paths '/b c'"),
        ({"kind": "range", "start": 5, "step": 2}, "--range 5:11:2"),
        ({"kind": "stdin"}, "standard input"),
        ({"kind": "of tomorrow"}, '{"kind": "of tomorrow"}'),
    ],
)
def test_show_says_where_the_input_came_from(folder: Path, run: Run, spec: dict[str, Any], text: str) -> None:
    make(folder, "abc1", size=3, input=spec)
    (line,) = [line for line in run(inspect.show)[1].splitlines() if line.startswith("  input ")]
    assert line.removeprefix("  input ").strip() == text


def test_a_queue_in_which_nothing_waits_is_idle(folder: Path, run: Run) -> None:
    queue: dict[str, Any] = {"input": {"kind": "queue"}, "task": ["", "(calls)"], "command": "python app.py"}
    make(folder, "abc1", succeeded("abc1", 0, 1, 2), size=2, is_sealed=False, **queue)
    assert run(inspect.show, batch="abc1")[1].startswith("nightly (abc1): idle\n")
    assert "a queue: jobs as applications hand them over\n" in run(inspect.show, batch="abc1")[1]
    assert "next        batchd results" in run(inspect.show, batch="abc1")[1]
    assert run(inspect.ls)[1].splitlines()[1].split()[2:4] == ["idle", "2/2+"]
    make(folder, "abc2", succeeded("abc2", 0, 1), size=2, is_sealed=False, **queue)
    assert run(inspect.show, batch="abc2")[1].startswith("nightly (abc2): interrupted\n")
    assert "or run the program again: python app.py" in run(inspect.show, batch="abc2")[1]


# --- failures --------------------------------------------------------------------------------------------------


def test_failures_are_told_by_cause(folder: Path, run: Run) -> None:
    make_mixed(folder)
    code, out, err = run(inspect.failures)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "nightly (mixed): 1 failed and 1 quarantined of 6 jobs, 2 causes",
        "",
        "1. ValueError · 1 job: 3",
        "   Traceback (most recent call last):",
        "   ValueError: 9 is odd",
        "   input of job 3: 3",
        "   (attempt 2, 0.5 s of CPU)",
        "   last output of job 3:",
        "   | reading 9",
        "   | odd!",
        "",
        "2. JobCrashed · 1 job · quarantined: 5",
        "   killed by SIGSEGV",
        "   input of job 5: 5",
        "",
        "next: batchd retry last --failed --quarantined",
    ]


def test_failures_in_json(folder: Path, run: Run) -> None:
    make_mixed(folder)
    told = json.loads(run(inspect.failures, json=True)[1])
    assert (told["batchd"], told["batch"], told["failed"], told["quarantined"]) == (1, "mixed", 1, 1)
    assert told["causes"][0] == {
        "type": "ValueError",
        "message": "9 is odd",
        "state": "failed",
        "count": 1,
        "example": 3,
        "indices": "3",
        "ranges": [[3, 4]],
        "more": 0,
        "fingerprint": fingerprint("v").hex(),
        "traceback": "Traceback (most recent call last):\nValueError: 9 is odd\n",
        "output": "reading 9\nodd!\n",
        "details": {"attempt": 2, "cpu_s": 0.5},
    }


def test_nothing_failed(folder: Path, run: Run) -> None:
    make(folder, "abc1", succeeded("abc1", 0, 1, 2), size=3)
    assert run(inspect.failures) == (0, "nightly (abc1): nothing failed, 2 of 3 jobs done\n", "")
    assert json.loads(run(inspect.failures, json=True)[1])["causes"] == []


def test_many_causes_are_cut_unless_all_are_asked_for(folder: Path, run: Run) -> None:
    kinds = [Failure(f"Error{number}", "no", fingerprint(str(number))) for number in range(12)]
    make(folder, "abc1", failed("abc1", 0, *kinds), size=12)
    lines = run(inspect.failures)[1].splitlines()
    assert lines[-3] == "and 2 jobs of 2 more causes: --json tells them all"
    assert "12. Error11 · 1 job: 11" in run(inspect.failures, all=True)[1].splitlines()
