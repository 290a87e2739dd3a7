"""One job as `show` and `results` tell of it, and the results of a batch."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from batchd.cli import inspect, results
from batchd.core import entries as e
from batchd.core.job import History
from batchd.errors import BatchNotFound
from tests.written import MIXED_LINES, Run, make, make_mixed, separate, succeeded

# --- One job ---------------------------------------------------------------------------------------------------


def test_show_tells_of_one_job(folder: Path, run: Run) -> None:
    make_mixed(folder)
    code, out, err = run(inspect.show, batch="nightly:3")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "nightly (mixed), job 3: failed"
    for words in ("cause      raised ValueError: 9 is odd", "attempt    2", "| reading 9", "0.5 s of CPU"):
        assert words in out
    assert "Traceback (most recent call last):" in out
    assert "batchd rerun mixed:3" in out
    assert "batchd retry mixed --failed" in out
    assert "killed by SIGSEGV" in run(inspect.show, batch="mixed:5")[1]
    assert 'result     {"day": "2024-02-29"}' in run(inspect.show, batch="last:4")[1]


def test_show_tells_of_one_job_in_json(folder: Path, run: Run) -> None:
    make_mixed(folder)
    told = json.loads(run(inspect.show, batch="mixed:3", json=True)[1])
    assert (told["job"], told["state"], told["attempts"], told["input"]) == ("mixed:3", "failed", 2, "3")
    assert told["error"]["type"] == "ValueError"
    assert told["error"]["output"] == "reading 9\nodd!\n"
    assert json.loads(run(inspect.show, batch="mixed:1", json=True)[1])["result"] == "two"


def test_show_tells_of_a_job_that_was_begun_before_and_of_one_that_was_not(folder: Path, run: Run) -> None:
    make(folder, "abc1", e.Charged("abc1", 1, 1, History(attempts=2, crashes=1)), size=3)
    assert "queued" in (out := run(inspect.show, batch="abc1:1")[1])
    assert "attempt    3 is the next (1 crashed before)" in out
    told = json.loads(run(inspect.show, batch="abc1:2", json=True)[1])
    assert (told["state"], told["attempts"], told["running"]) == ("queued", 0, None)


def test_a_job_that_is_not_there_is_told_of(folder: Path, run: Run) -> None:
    make_mixed(folder)
    for verb in (inspect.show, results.results):
        with pytest.raises(BatchNotFound, match=r"no job 6: batch mixed has 6 jobs, from 0"):
            run(verb, batch="mixed:6")
        with pytest.raises(BatchNotFound, match=r"'abc' is no job of mixed: write a number, such as mixed:0"):
            run(verb, batch="mixed:abc")
        with pytest.raises(BatchNotFound, match=r"no batch 'nobody'"):
            run(verb, batch="nobody:6")


def test_a_name_may_end_like_a_job(folder: Path, run: Run) -> None:
    make(folder, "abc1", size=3, name="run:2", is_named=True)
    assert run(inspect.show, batch="run:2")[1].startswith("run:2 (abc1): ")
    assert run(inspect.show, batch="run:2:1")[1].startswith("run:2 (abc1), job 1: ")


def test_results_give_one_job(folder: Path, run: Run) -> None:
    make_mixed(folder)
    assert run(results.results, batch="mixed:1", values=True) == (0, "two\n", "")
    assert json.loads(run(results.results, batch="mixed:3")[1]) == MIXED_LINES[3]
    assert json.loads(run(results.results, batch="mixed:4", json=True)[1])["results"] == [MIXED_LINES[4]]
    code, out, err = run(results.results, batch="mixed:3", values=True)
    assert (code, out) == (1, "")
    assert err == "batchd: mixed:3 has no result (failed): `batchd show mixed:3` tells why\n"
    make(folder, "abc1", size=2)
    code, out, err = run(results.results, batch="abc1:0")
    assert (code, out) == (1, "")
    assert "abc1:0 has no outcome yet" in err


# --- results ---------------------------------------------------------------------------------------------------


def test_results_are_lines_in_the_order_of_the_jobs(folder: Path, run: Run) -> None:
    make_mixed(folder)
    code, out, err = run(results.results)
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == MIXED_LINES


def test_values_are_bare(folder: Path, run: Run) -> None:
    make_mixed(folder)
    assert run(results.results, values=True) == (0, '1\ntwo\nnull\n{"day": "2024-02-29"}\n', "")


def test_results_in_json_are_one_document(folder: Path, run: Run) -> None:
    make_mixed(folder)
    told = json.loads(run(results.results, json=True)[1])
    assert told == {
        "batchd": 1,
        "batch": "mixed",
        "name": "nightly",
        "results": MIXED_LINES,
        "is_complete": True,
        "unwritable": [],
    }
    values = json.loads(run(results.results, json=True, values=True)[1])["results"]
    assert values == [1, "two", None, {"day": "2024-02-29"}]


def test_results_go_to_a_file(folder: Path, run: Run, tmp_path: Path) -> None:
    make_mixed(folder)
    out_file = tmp_path / "out.jsonl"
    assert run(results.results, output=str(out_file)) == (0, "", f"batchd: 6 lines are in {out_file}\n")
    assert [json.loads(line) for line in out_file.read_text().splitlines()] == MIXED_LINES
    _, out, err = run(results.results, output=str(out_file), json=True, values=True)
    assert out_file.read_text() == '1\ntwo\nnull\n{"day": "2024-02-29"}\n'
    assert (json.loads(out)["written"], json.loads(out)["output"], err) == (4, str(out_file), "")


def test_what_json_cannot_hold_is_reported_and_the_others_are_written(folder: Path, run: Run) -> None:
    unreadable = b"\x80\x05cno_such_module\nThing\n."
    payloads = [pickle.dumps(value) for value in ([1], complex(1, 2))]
    make(folder, "abc1", separate("abc1", 0, payloads[0], payloads[1], unreadable, payloads[0]), size=4)
    code, out, err = run(results.results, values=True)
    assert (code, out) == (1, "[1]\n[1]\n")
    first, second = err.splitlines()
    assert first.startswith("batchd: abc1:1: result is of type complex, which JSON cannot hold. Have the task return")
    assert second.startswith("batchd: abc1:2: cannot be read back: ModuleNotFoundError")
    code, out, err = run(results.results)
    assert code == 1
    assert ["error" in json.loads(line) for line in out.splitlines()] == [False, True, True, False]
    assert err.count("abc1:") == 2
    told = json.loads(run(results.results, json=True)[1])
    assert [each["index"] for each in told["unwritable"]] == [1, 2]


def test_an_unfinished_batch_gives_what_is_there(folder: Path, run: Run) -> None:
    make(folder, "abc1", succeeded("abc1", 2, "c"), size=5, is_sealed=False)
    code, out, err = run(results.results)
    assert (code, out) == (0, '{"index": 2, "state": "succeeded", "result": "c"}\n')
    assert err == "batchd: abc1 is not finished: 1 of 5+ jobs are done so far\n"


def test_results_find_the_tasks_own_classes(folder: Path, run: Run, tmp_path: Path) -> None:
    home = tmp_path / "project"
    home.mkdir()
    (home / "own_shapes.py").write_text("class Box(tuple):\n    pass\n")
    payload = b"\x80\x04cown_shapes\nBox\n(K\x01K\x02t\x85\x81."
    make(folder, "abc1", separate("abc1", 0, payload), size=1, task=[str(home / "own_shapes.py"), "f"])
    assert run(results.results, values=True) == (0, "[1, 2]\n", "")
    del sys.modules["own_shapes"]


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path) -> None:
    make(folder, "abc1", *[succeeded("abc1", first, *range(1000)) for first in range(0, 100_000, 1000)], size=100_000)
    program = (
        "import sys, argparse; from batchd.cli.inspect import *; from batchd.cli.results import results; "
        "sys.exit(globals()[sys.argv[1]](argparse.Namespace("
        "journal=None, json=False, batch='last', values=False, output=None, all=False)))"
    )
    for verb in ("results", "show", "ls", "failures"):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-c", program, verb]
        process = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
        os.close(write)
        assert (process.returncode, process.stderr) == (0, ""), verb


def test_a_journal_is_read_while_it_is_being_written(folder: Path, run: Run) -> None:
    make(folder, "abc1", succeeded("abc1", 0, "a"), size=3)
    program = (
        "import sys; from pathlib import Path; from batchd.edge.journal import BatchJournal\n"
        "journal = BatchJournal(Path(sys.argv[1]), is_writer=True)\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(folder / "batches" / "abc1")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        assert run(results.results, values=True)[:2] == (0, "a\n")
        writer.communicate()
    assert writer.returncode == 0
