"""Cards of deaths in the terminal: in `batchd failures`, and at the end of a run."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import batchd
from batchd.cli import inspect
from batchd.cli.summary import summarise
from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.edge.folder import open_folder
from batchd.edge.journal import BatchJournal
from batchd.formats.report import Failure, fingerprint
from batchd.formats.segment import input_blocks, pack_items

LOOP = Path(batchd.__file__).parent / "worker/main.py"
FRAMES = "".join(f'  File "/home/ann/jobs.py", line {n} in step_{n}\n' for n in range(9))
DUMP = f"""\
Fatal Python error: Segmentation fault

Current thread 0x00007f584d9f1b80 (most recent call first):
{FRAMES}  File "{LOOP}", line 144 in _run

Extension modules: lmdb.cpython (total: 1)
"""
Make = Callable[..., BatchJournal]


def death(kind: str, cause: str, output: str = "", **details: Any) -> Failure:
    return Failure(kind, cause, fingerprint(kind, cause), output, {"attempt": 3, "pid": 77, "cpu_s": 0.5, **details})


CRASH = death("JobCrashed", "killed by SIGSEGV", f"reading\nrow 7\n{DUMP}", signal=11)
EXIT = death("JobCrashed", "exited with code 3 before finishing", exit_code=3)
ABORT = death("JobCrashed", "killed by SIGABRT", signal=6)
TIMEOUT = death("JobTimeout", "timed out after 2.0 s", DUMP, signal=9)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make a batch in the journal that commands use by themselves."""
    folder = open_folder(tmp_path / "journal")
    monkeypatch.setenv("BATCHD_JOURNAL", str(folder))

    def make_batch(*failures: tuple[JobState, Failure], **spec: Any) -> BatchJournal:
        known = {"name": "nightly", "task": ["m", "f"], "created": "2026-01-02T03:04:05+00:00", **spec}
        journal = BatchJournal.create(folder / "batches" / "b1", known)
        items = [("row", n) for n in range(len(failures))]
        segments = tuple(block for _, block in input_blocks(items))
        blocks = [pack_items(at, state, [failure.encode()]) for at, (state, failure) in enumerate(failures)]
        journal.commit(
            [
                e.Attached("b1", 1),
                e.Submitted("b1", 0, len(items), segments, "c", 1, ""),
                *(e.Recorded("b1", at, 1, failures[at][0], block) for at, block in enumerate(blocks)),
                e.Sealed("b1"),
            ]
        )
        return journal

    return make_batch


def told(journal: BatchJournal) -> list[str]:
    return summarise(journal, elapsed_s=3.2, ran=10, already_done=0, usage={}, state="finished")


def failures_of(made: BatchJournal, capsys: pytest.CaptureFixture[str], **options: Any) -> list[str]:
    made.close()
    known = {"journal": None, "json": False, "batch": "last", "all": False}
    assert inspect.failures(argparse.Namespace(**{**known, **options})) == 0
    return capsys.readouterr().out.splitlines()


def test_failures_shows_the_card_of_a_crash(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    lines = failures_of(make((JobState.QUARANTINED, CRASH)), capsys)
    assert lines[2:9] == [
        "1. JobCrashed · 1 job · quarantined: 0",
        "   job b1:0, attempt 3: killed by SIGSEGV",
        "     input: ('row', 0)",
        "     last lines it printed:",
        "       | reading",
        "       | row 7",
        "     Python stack, innermost call first:",
    ]
    assert lines[9:18] == [f"     {line}" for line in FRAMES.splitlines()]
    assert lines[18:] == [
        "     to run it again in the foreground: batchd rerun b1:0",
        "   (0.5 s of CPU)",
        "",
        "next: batchd retry last --quarantined",
    ]


def test_failures_shows_where_time_ran_out(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(failures_of(make((JobState.FAILED, TIMEOUT)), capsys))
    assert "job b1:0, attempt 3: timed out after 2.0 s" in text
    assert "in step_8" in text
    assert "worker/main.py" not in text
    assert "Fatal Python error" not in text


def test_the_command_means_this_journal(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make((JobState.QUARANTINED, CRASH))
    folder = journal.folder.parent.parent
    monkeypatch.setenv("BATCHD_JOURNAL", str(folder.parent / "another"))
    monkeypatch.chdir(folder.parent)
    lines = failures_of(journal, capsys, journal=str(folder))
    assert "     to run it again in the foreground: batchd rerun b1:0 --journal journal" in lines


def test_tracebacks_are_shown_without_batchds_own_frames(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    journal = make((JobState.FAILED, Failure("ValueError", "no", fingerprint("v"))))
    own = f'  File "{LOOP}", line 144, in call\n    call(item)\n'
    users = '  File "/home/ann/jobs.py", line 3, in work\n    raise ValueError("no")\n'
    text = f"Traceback (most recent call last):\n{own}{users}{own}ValueError: no\n"
    journal.commit([e.Explained("b1", fingerprint("v"), text.encode())])
    lines = failures_of(journal, capsys)
    assert lines[3:7] == [
        "   Traceback (most recent call last):",
        '     File "/home/ann/jobs.py", line 3, in work',
        '       raise ValueError("no")',
        "   ValueError: no",
    ]


def test_a_run_ends_with_the_cards_of_its_first_crashes(make: Make) -> None:
    crashes = [(JobState.QUARANTINED, each) for each in (CRASH, EXIT, ABORT)]
    lines = told(make((JobState.FAILED, TIMEOUT), *crashes))
    cards = [line for line in lines if line.startswith("  job ")]
    assert cards == [
        "  job b1:1, attempt 3: killed by SIGSEGV",
        "  job b1:2, attempt 3: exited with code 3 before finishing",
    ]
    at = lines.index(cards[0])
    assert lines[at + 2 : at + 5] == ["    last lines it printed:", "      | reading", "      | row 7"]
    assert lines[at + 6 : at + 13] == [*(f"    {line}" for line in FRAMES.splitlines()[:6]), "      and 3 more"]
    assert lines[at + 13] == "    to run it again in the foreground: batchd rerun b1:1"
    assert lines[-1] == "next: batchd failures last"


def test_failures_of_other_kinds_have_no_card_at_the_end(make: Make) -> None:
    failure = Failure("ValueError", "no", fingerprint("v"), "", {"attempt": 1})
    lines = told(make((JobState.FAILED, failure), (JobState.FAILED, TIMEOUT)))
    assert not [line for line in lines if "rerun" in line]
