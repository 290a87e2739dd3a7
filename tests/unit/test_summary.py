"""The end of a run in words and in fields, and how failures are gathered by cause."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchd.cli.summary import summarise, summary_fields, usage_since
from batchd.core import entries as e
from batchd.core.job import JobState
from batchd.edge.environment import LOST
from batchd.edge.failures import OTHER, FailureGroup, group_failures
from batchd.edge.folder import open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.formats.report import Failure, fingerprint
from batchd.formats.segment import input_blocks, pack_items, pack_vector

SPEC = {"name": "nightly", "task": ["m", "f"], "input": {"kind": "range"}, "created": "2026-01-02T03:04:05+00:00"}
Make = Callable[..., BatchJournal]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make a batch in the journal that commands use by themselves."""
    folder = open_folder(tmp_path / "journal")
    monkeypatch.setenv("BATCHD_JOURNAL", str(folder))

    def make_batch(*entries: e.Entry, size: int, batch: str = "b1", **spec: Any) -> BatchJournal:
        journal = BatchJournal.create(folder / "batches" / batch, {**SPEC, **spec})
        segments = tuple(block for _, block in input_blocks(list(range(size))))
        given = [e.Submitted(batch, 0, size, segments, "c", 1, "")] if size else []
        journal.commit([e.Attached(batch, 1), *given, *entries])
        return journal

    return make_batch


def sealed() -> e.Sealed:
    return e.Sealed("b1")


def succeeded(first: int, stop: int) -> e.Recorded:
    block = pack_vector(first, JobState.SUCCEEDED, list(range(first, stop)))
    return e.Recorded("b1", first, stop - first, JobState.SUCCEEDED, block)


def failed(first: int, *failures: Failure, state: JobState = JobState.FAILED) -> e.Recorded:
    block = pack_items(first, state, [failure.encode() for failure in failures])
    return e.Recorded("b1", first, len(failures), state, block)


def failure(kind: str, message: str = "no", place: str = "") -> Failure:
    return Failure(kind, message, fingerprint(kind, place))


def told(journal: BatchJournal, **changes: Any) -> list[str]:
    known: dict[str, Any] = {"elapsed_s": 3.2, "ran": 10, "already_done": 0, "usage": {}, "state": "finished"}
    return summarise(journal, **{**known, **changes})


def groups_of(journal: BatchJournal, **options: int) -> list[FailureGroup]:
    return group_failures(journal, Outcomes(journal), **options)


# --- Lines -----------------------------------------------------------------------------------------------------


def test_all_succeeded(make: Make) -> None:
    journal = make(sealed(), succeeded(0, 1234), size=1234)
    usage = {"busy_s": 6.08, "cpu_s": 6.0, "memory_peak_bytes": 45 << 20}
    assert told(journal, ran=1234, usage=usage) == [
        "nightly: 1,234 succeeded · 3.2 s · 1.9 cores busy · peak 45M a worker",
        "next: batchd results last",
    ]


def test_failures_are_counted_by_type_and_shown_with_an_example(make: Make) -> None:
    syntax = [failure("SyntaxError", f"invalid syntax (bad{n}.py)\nmore") for n in range(3)]
    crash = failure("JobCrashed", "killed by SIGSEGV")
    journal = make(
        succeeded(0, 4),
        failed(4, *syntax),
        failed(7, failure("ValueError")),
        failed(8, crash, state=JobState.QUARANTINED),
        succeeded(9, 10),
        sealed(),
        size=10,
    )
    assert told(journal) == [
        "nightly: 5 succeeded · 4 failed (3 SyntaxError, 1 ValueError) · 1 quarantined (1 killed by SIGSEGV) · 3.2 s",
        "  3  SyntaxError: invalid syntax (bad0.py)   (job b1:4)",
        "  1  ValueError: no   (job b1:7)",
        "  1  JobCrashed: killed by SIGSEGV   (job b1:8)",
        "next: batchd failures last",
    ]


def test_five_causes_are_shown_and_the_others_counted(make: Make) -> None:
    kinds = [failure(f"Error{n}", "x" * 300) for n in range(8)]
    journal = make(failed(0, *kinds), sealed(), size=8)
    lines = told(journal, ran=8)
    assert lines[0] == "nightly: 0 succeeded · 8 failed (1 Error0, 1 Error1, 1 Error2, 5 other) · 3.2 s"
    assert len(lines) == 8
    assert lines[6] == "  and 3 more causes"
    assert max(map(len, lines)) < 140


def test_nothing_to_run_speaks_of_no_time(make: Make) -> None:
    journal = make(sealed(), succeeded(0, 10), size=10)
    lines = told(journal, ran=0, already_done=10, usage={"busy_s": 1.0})
    assert lines[0] == "nightly: 10 succeeded"


def test_an_empty_input(make: Make) -> None:
    assert told(make(sealed(), size=0), ran=0) == ["nightly: no jobs: the input was empty", "next: batchd ls"]


def test_an_interrupted_run_is_continued_by_its_command(make: Make) -> None:
    journal = make(succeeded(0, 6), size=10)
    assert told(journal, ran=2, already_done=4, state="interrupted") == [
        "nightly: 6 succeeded · 4 not done · ran 2 in 3.2 s",
        "next: run the same command again to continue",
    ]


def test_input_from_a_pipe_needs_a_name_to_be_continued(make: Make) -> None:
    journal = make(succeeded(0, 6), size=10, input={"kind": "stdin"})
    assert told(journal, state="interrupted")[-1].startswith("next: batchd results last (input from a pipe")
    journal.spec["is_named"] = True
    assert told(journal, state="interrupted")[-1] == "next: run the same command again to continue"


def test_a_stop_rule_says_why_and_names_the_choices(make: Make) -> None:
    reason = "the first 100 finished jobs all failed the same way"
    journal = make(failed(0, *[failure("ValueError")] * 100), e.Stopped("b1", reason), size=200)
    lines = told(journal, ran=100, state="stopped")
    assert lines[0] == "nightly: 0 succeeded · 100 failed (100 ValueError) · 100 not done · 3.2 s"
    assert lines[2:] == [
        f"stopped: {reason}",
        "next: batchd failures last",
        "      fix the task, then run the same command with --accept-code to go on and batchd retry last --failed",
        "      or run it with --new to start from the beginning, or with --keep-going to go on as it is",
    ]


def test_a_batch_whose_files_were_lost_is_run_again_as_it_is(make: Make) -> None:
    reason = f"lock.mdb {LOST}: nothing is lost"
    journal = make(succeeded(0, 6), e.Stopped("b1", reason), size=10)
    assert told(journal, state="stopped")[1:] == [
        f"stopped: {reason}",
        "next: run the same command again to continue",
    ]


def test_past_max_failures_only_a_higher_one_goes_on(make: Make) -> None:
    journal = make(failed(0, failure("ValueError")), e.Stopped("b1", "1 jobs failed; --max-failures is 0"), size=2)
    assert told(journal, ran=1, state="stopped")[-1].endswith(", or with a higher --max-failures to go on as it is")


def test_a_reason_of_many_lines_keeps_them(make: Make) -> None:
    journal = make(e.Stopped("b1", "importing m failed; its own traceback:\nTraceback\nboom"), size=2)
    lines = told(journal, ran=0, state="stopped")
    assert lines[1:4] == ["stopped: importing m failed; its own traceback:", "  Traceback", "  boom"]
    assert lines[4].startswith("next: fix the task")


def test_a_cancelled_batch(make: Make) -> None:
    cancelled = e.Recorded("b1", 4, 6, JobState.CANCELLED)
    journal = make(succeeded(0, 4), e.CancelOrdered("b1", "enough"), cancelled, size=10)
    assert told(journal, state="cancelled") == [
        "nightly: 4 succeeded · 6 cancelled · 3.2 s",
        "cancelled: enough",
        "next: batchd retry last --cancelled",
    ]


def test_the_next_command_means_this_batch_of_this_journal(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = make(sealed(), succeeded(0, 10), size=10)
    newer = journal.folder.with_name("b2")
    newer.mkdir()
    assert told(journal)[-1] == "next: batchd results b1"
    newer.rmdir()
    monkeypatch.delenv("BATCHD_JOURNAL")
    monkeypatch.setenv("HOME", "/nowhere")
    folder = journal.folder.parent.parent
    assert told(journal)[-1] == f"next: batchd results last --journal {folder}"
    monkeypatch.chdir(folder.parent)
    assert told(journal)[-1] == "next: batchd results last --journal journal"


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        ({"busy_s": 8.0, "cpu_s": 0.1}, "2.0 workers busy"),  # Too little was sampled to say more.
        ({"busy_s": 8.0, "cpu_s": 7.9}, "2.0 cores busy"),
        ({"busy_s": 8.0, "cpu_s": 2.0}, "2.0 workers busy, 0.5 cores"),
        ({"busy_s": 8.0, "cpu_s": 16.0}, "4.0 cores busy"),
    ],
)
def test_waiting_jobs_are_not_called_busy_cores(make: Make, usage: dict[str, float], words: str) -> None:
    journal = make(sealed(), succeeded(0, 10), size=10)
    assert told(journal, usage=usage, elapsed_s=4.0)[0] == f"nightly: 10 succeeded · 4.0 s · {words}"


def test_usage_of_one_run() -> None:
    before = {"busy_s": 2.0, "cpu_s": 1.0, "memory_peak_bytes": 5.0}
    now = {"busy_s": 3.5, "cpu_s": 1.0, "memory_peak_bytes": 7.0}
    assert usage_since(before, now) == {"busy_s": 1.5, "cpu_s": 0.0, "memory_peak_bytes": 7.0}
    assert usage_since({}, now) == now


def test_damaged_outcomes_do_not_keep_the_end_from_being_told(make: Make) -> None:
    bad = e.Recorded("b1", 4, 1, JobState.FAILED, failed(4, failure("ValueError")).block[:-1] + b"\0")
    journal = make(succeeded(0, 4), bad, sealed(), size=5)
    lines = told(journal, ran=5)
    assert lines[0] == "nightly: 4 succeeded · 1 failed · 3.2 s"
    assert "the causes could not be read: batch b1" in lines[1]


# --- Fields ----------------------------------------------------------------------------------------------------


def test_fields_for_programs(make: Make) -> None:
    journal = make(succeeded(0, 4), failed(4, failure("ValueError", "bad")), sealed(), size=5)
    fields = summary_fields(journal, elapsed_s=2.0, ran=5, already_done=0, usage={"busy_s": 3.0}, state="finished")
    assert fields == {
        "batchd": 1,
        "batch": "b1",
        "name": "nightly",
        "state": "finished",
        "reason": "",
        "size": 5,
        "done": 5,
        "succeeded": 4,
        "failed": 1,
        "quarantined": 0,
        "cancelled": 0,
        "ran": 5,
        "already_done": 0,
        "elapsed_s": 2.0,
        "usage": {"busy_s": 3.0},
        "cores_busy": 1.5,
        "causes": [{"type": "ValueError", "message": "bad", "count": 1, "state": "failed", "example": 4}],
        "causes_error": "",
        "next": ["batchd failures last"],
    }


# --- Causes ----------------------------------------------------------------------------------------------------


def test_a_cause_has_the_first_jobs_story_and_all_jobs_places(make: Make) -> None:
    first = Failure("ValueError", "bad 3", fingerprint("v"), "last words\n", {"attempt": 2})
    again = Failure("ValueError", "bad again", fingerprint("v"), "other words")
    journal = make(
        succeeded(0, 3),
        failed(3, first),
        succeeded(4, 8),
        failed(8, again, again, again),
        succeeded(11, 12),
        failed(12, again),
        e.Explained("b1", fingerprint("v"), b"Traceback: here"),
        sealed(),
        size=13,
    )
    (group,) = groups_of(journal)
    assert (group.type, group.message, group.count, group.state) == ("ValueError", "bad 3", 5, JobState.FAILED)
    assert (group.output, group.details, group.traceback) == ("last words\n", {"attempt": 2}, "Traceback: here")
    assert (group.indices, group.example, group.more) == ("3, 8-10, 12", 3, 0)
    (bounded,) = groups_of(journal, ranges_max=2)
    assert bounded.indices == "3, 8-10 and 1 more"


def test_measured_figures_do_not_split_a_cause(make: Make) -> None:
    late = [failure("JobTimeout", f"timed out after {n}.0 s", place=str(n)) for n in range(5)]
    coded = [failure("JobCrashed", f"exited with code {n} before finishing", place=str(n)) for n in (3, 4)]
    journal = make(failed(0, *late), failed(5, *coded, state=JobState.QUARANTINED), sealed(), size=7)
    assert [(group.type, group.count) for group in groups_of(journal)] == [
        ("JobTimeout", 5),
        ("JobCrashed", 1),
        ("JobCrashed", 1),
    ]


def test_quarantined_jobs_without_a_record_are_one_cause(make: Make) -> None:
    journal = make(e.Recorded("b1", 2, 5, JobState.QUARANTINED), succeeded(0, 2), sealed(), size=7)
    (group,) = groups_of(journal)
    assert (group.count, group.indices, group.fingerprint, group.traceback) == (5, "2-6", "", "")


def test_a_record_that_does_not_read_back_is_a_cause_too(make: Make) -> None:
    block = pack_items(0, JobState.FAILED, [fingerprint("x") + b"garbage", failure("ValueError").encode()])
    journal = make(e.Recorded("b1", 0, 2, JobState.FAILED, block), sealed(), size=2)
    assert [group.type for group in groups_of(journal)] == ["FormatError", "ValueError"]


def test_causes_beyond_the_limit_are_counted_as_one(make: Make) -> None:
    kinds = [failure(f"Error{n}") for n in (0, 1, 2, 3, 0, 4)]
    journal = make(failed(0, *kinds), sealed(), size=6)
    groups = groups_of(journal, groups_max=2)
    assert [(group.type, group.count, group.indices) for group in groups] == [
        ("Error0", 2, "0, 4"),
        ("Error1", 1, "1"),
        (OTHER, 3, "2-3, 5"),
    ]


def test_a_retried_job_counts_by_its_latest_outcome(make: Make) -> None:
    journal = make(failed(0, *[failure("ValueError")] * 4), sealed(), size=4)
    journal.commit([e.Reopened("b1", 1, ((0, 4),), JobState.FAILED)])
    journal.commit([succeeded(0, 2), failed(2, failure("KeyError"))])
    journal.refresh()
    assert [(group.type, group.indices) for group in groups_of(journal)] == [("KeyError", "2")]


def test_a_hundred_thousand_failures_are_a_few_groups(make: Make) -> None:
    parts = [
        failed(first, *[failure(("OSError", "ValueError")[n % 2]) for n in range(200)])
        for first in range(0, 100_000, 200)
    ]
    journal = make(*parts, sealed(), size=100_000)
    groups = groups_of(journal)
    assert [(group.count, len(group.ranges)) for group in groups] == [(50_000, 12), (50_000, 12)]
    assert groups[0].indices == "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22 and 49,988 more"
