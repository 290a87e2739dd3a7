"""Functions in a worker: what programs share and do not share there, and how many are kept."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from batchd.worker import calls
from batchd.worker.calls import Bundle, bind, load_bundle, mark_of, pack_bundle, pack_function
from batchd.worker.mainglobals import load_function, tag_of

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys
from batchd.worker.calls import Bundle, pack_bundle, pack_function

WORD, MODEL, CALLS = sys.argv[1], None, 0

def prepare(model):
    global MODEL
    MODEL = model

def work():
    global CALLS
    CALLS += 1
    return WORD, MODEL, CALLS

def look():
    return WORD, MODEL, CALLS

for payload in pack_bundle(Bundle(None, prepare, (WORD,))), pack_function(work), pack_function(look):
    print(payload.hex())
"""


def run_of(folder: Path, name: str, word: str) -> list[bytes]:
    """Return what a run of a program packs: its bundle, `work` and `look`."""
    (folder / name).write_text(PROGRAM)
    told = subprocess.run(
        [sys.executable, name, word],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [bytes.fromhex(line) for line in told.stdout.splitlines()]


def test_programs_have_globals_of_their_own(tmp_path: Path) -> None:
    _, work_a, look_a = run_of(tmp_path, "a.py", "A")
    _, work_b, look_b = run_of(tmp_path, "b.py", "B")
    assert load_function(work_a)() == ("A", None, 1)
    assert load_function(work_b)() == ("B", None, 1)
    assert load_function(look_a)() == ("A", None, 1)
    assert load_function(look_b)() == ("B", None, 1)


def test_a_program_that_runs_again_does_not_disturb_the_jobs_of_its_earlier_run(tmp_path: Path) -> None:
    _, work, look = run_of(tmp_path, "again.py", "first")
    assert load_function(work)() == ("first", None, 1)
    assert load_function(run_of(tmp_path, "again.py", "second")[1])() == ("second", None, 1)
    assert load_function(look)() == ("first", None, 1)


def test_what_the_initializer_has_set_is_there_for_all_runs_of_its_program(tmp_path: Path) -> None:
    bundle, work, _ = run_of(tmp_path, "prepared.py", "new")
    left_over = run_of(tmp_path, "prepared.py", "old")[1]
    other = run_of(tmp_path, "unprepared.py", "other")[1]
    load_bundle(bundle).prepare()
    assert load_function(work)() == ("new", "new", 1)
    assert load_function(left_over)() == ("old", "new", 1)
    assert load_function(other)() == ("other", None, 1)


def test_what_names_no_main_and_a_task_alone_are_the_same_in_every_run(tmp_path: Path) -> None:
    assert tag_of(pack_function(os.getpid)) == tag_of(pack_bundle(Bundle(os.getpid))) == b""
    (tmp_path / "task.py").write_text(
        "from batchd.worker.calls import Bundle, pack_bundle\n"
        "def work(): return 1\n"
        "print(pack_bundle(Bundle(work)).hex())\n"
    )
    run = [sys.executable, "task.py"]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    first, again = (subprocess.check_output(run, env=environ, cwd=tmp_path, timeout=60) for _ in range(2))
    assert first == again


class Journal:
    """Functions by mark, and which were asked for."""

    def __init__(self) -> None:
        self.payloads: dict[bytes, bytes] = {}
        self.asked: list[bytes] = []

    def add(self, function: Callable[..., Any]) -> bytes:
        payload = pack_function(function)
        self.payloads[mark_of(payload)] = payload
        return mark_of(payload)

    def get(self, mark: bytes) -> bytes:
        self.asked.append(mark)
        return self.payloads[mark]


def test_functions_are_kept_while_they_are_among_the_last_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_KNOWN_MAX", 3)
    journal = Journal()
    call = bind({"call": "calls"}, None, journal.get)
    one, two, three, four = (journal.add(partial(pow, base)) for base in (1, 2, 3, 4))
    assert [call((mark, (2,), None)) for mark in (one, two, three, one, four)] == [1, 4, 9, 1, 16]
    assert journal.asked == [one, two, three, four]
    assert [call((mark, (2,), None)) for mark in (one, two, two)] == [1, 4, 4]
    assert journal.asked == [one, two, three, four, two]


def test_large_functions_are_let_go_and_fetched_again() -> None:
    journal = Journal()
    call = bind({"call": "calls"}, None, journal.get)
    large = [journal.add(partial(len, bytes([at]) * (40 << 20))) for at in range(3)]
    for mark in [*large, large[0], large[2]]:
        assert call((mark, (), None)) == 40 << 20
    assert journal.asked == [*large, large[0]]
