"""Every check of an audit passes a good batch, and sees the one thing that is wrong with a bad one."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from batchd.core.job import JobState
from batchd.edge.folder import open_folder
from batchd.edge.journal import BatchJournal
from batchd.formats import tables
from batchd.formats.report import Failure
from batchd.formats.segment import Encoding, pack, pack_items, pack_vector
from batchd.testing.audit import CHECKS, Auditor, Findings, Ledger, check_log, read_ledger

GOOD = [
    "begin 0 1",
    "end 0 1",
    "begin 1 1",
    "begin 2 1",
    "raise 2 1",
    "begin 1 2",
    "end 1 2",
    "begin 2 2",
    "raise 2 2",
]
"""Job 1 was cut off once, job 2 raises and was retried."""
RAISED = Failure("ValueError", "2", b"12345678").encode()


def answer(index: int) -> str:
    if index == 2:
        raise ValueError("2")
    return f"answer {index}"


def succeeded(first: int, *values: Any) -> bytes:
    return pack_vector(first, JobState.SUCCEEDED, list(values))


def failed(payload: bytes = RAISED, state: JobState = JobState.FAILED, first: int = 2) -> bytes:
    return pack_items(first, state, [payload])


RECORDS = [succeeded(0, ("answer 0", 1), ("answer 1", 2)), failed()]
LINES = [
    '{"index": 0, "state": "succeeded", "result": ["answer 0", 1]}',
    '{"index": 1, "state": "succeeded", "result": ["answer 1", 2]}',
    '{"index": 2, "state": "failed", "error": {"type": "ValueError", "message": "2"}}',
]


@pytest.fixture
def journal(tmp_path: Path) -> BatchJournal:
    return BatchJournal.create(open_folder(tmp_path / "journal") / "batches" / "b", {})


def audited(
    journal: BatchJournal, ledger: Iterable[str] = GOOD, records: list[bytes] = RECORDS, lines: Iterable[str] = LINES
) -> Findings:
    """Audit these records as they were never committed: one after the other, under keys of their own."""
    with journal._env.begin(write=True) as txn:
        for number, record in enumerate(records):
            txn.put(tables.OUTCOME.pack(0, number), record, db=journal.table(tables.OUTCOMES))
    findings = Findings()
    auditor = Auditor(3, answer, Ledger(read_ledger(ledger), findings), findings)
    auditor.check_journal(journal)
    auditor.check_results(lines)
    journal.close()
    assert set(findings.counts) <= set(CHECKS)
    return findings


def test_a_good_batch_has_no_findings(journal: BatchJournal) -> None:
    findings = audited(journal)
    assert not findings
    assert findings.examples == []


@pytest.mark.parametrize(
    ("records", "found"),
    [
        (RECORDS[:1], {"lost": 1}),
        ([*RECORDS, succeeded(1, ("answer 1", 2))], {"recorded_twice": 1}),
        ([*RECORDS, succeeded(3, ("answer 3", 1))], {"wrong": 1, "never_ran": 1}),
        ([succeeded(0, ("answer 1", 1), ("answer 1", 2)), failed()], {"wrong": 1, "results_wrong": 1}),
        ([succeeded(0, "answer 0", ("answer 1", 2)), failed()], {"wrong": 1, "results_wrong": 1}),
        ([succeeded(0, ("answer 0", 1), ("answer 1", 1)), failed()], {"never_ran": 1, "ran_after": 1}),
        ([RECORDS[0], failed(Failure("ValueError", "3", b"12345678").encode())], {"wrong": 1}),
        ([RECORDS[0], failed(state=JobState.QUARANTINED)], {"wrong": 1}),
        ([RECORDS[0], pack(2, 1, JobState.CANCELLED, Encoding.EMPTY)], {"wrong": 1}),
        ([RECORDS[0], succeeded(2, ("answer 2", 1))], {"wrong": 1}),
    ],
)
def test_a_bad_record_is_seen(journal: BatchJournal, records: list[bytes], found: dict[str, int]) -> None:
    lines = LINES
    if "ran_after" in found:  # The results say the same as the journal.
        lines = [LINES[0], LINES[1].replace("2]", "1]"), LINES[2]]
    assert audited(journal, records=records, lines=lines).counts == found


@pytest.mark.parametrize(
    ("ledger", "found"),
    [
        ([*GOOD, "begin 0 1"], {"attempts_twice": 1}),
        (["begin 0 2", *GOOD], {"ran_beside": 2, "ran_after": 1}),
        (["begin 1 1", "begin 1 2", "end 1 2", "end 1 1", *GOOD[:2], *GOOD[3:5], *GOOD[7:]], {"ran_beside": 1}),
        ([*GOOD, "begin 0 2"], {"ran_after": 1}),
        ([line for line in GOOD if line != "end 0 1"], {"never_ran": 1}),
        ([line for line in GOOD if line != "raise 2 2"], {"never_ran": 1}),
    ],
)
def test_a_run_that_should_not_have_been_is_seen(
    journal: BatchJournal, ledger: list[str], found: dict[str, int]
) -> None:
    assert audited(journal, ledger=ledger).counts == found


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ([], 3),
        (LINES[:2], 1),
        ([LINES[1], LINES[0], LINES[2]], 2),
        ([*LINES, LINES[2]], 1),
        ([*LINES[:2], json.dumps({**json.loads(LINES[2]), "state": "quarantined"})], 1),
    ],
)
def test_a_bad_results_file_is_seen(journal: BatchJournal, lines: list[str], count: int) -> None:
    assert audited(journal, lines=lines).counts == {"results_wrong": count}


def test_executions_retries_and_replays_are_told_apart() -> None:
    ledger = Ledger(read_ledger(GOOD), Findings())
    assert (ledger.executions, ledger.retries, ledger.replays) == (5, 1, 1)
    assert (ledger.last(1), ledger.ending(1, 1), ledger.ending(2, 2)) == (2, "", "raise")


def test_many_findings_of_a_kind_are_counted_and_few_are_shown() -> None:
    findings = Findings()
    for index in range(100):
        findings.add("lost", f"job {index}")
    assert findings.counts == {"lost": 100}
    assert findings.examples[0] == "lost: job 0"
    assert len(findings.examples) == 5


def test_an_error_in_the_supervisors_log_is_seen() -> None:
    log = """batchd supervisor 7: asked to stop: draining
Traceback (most recent call last):
  File "loop.py", line 3, in run
    x()
  File "loop.py", line 9, in x
    raise ValueError("no")
ValueError: no
batchd supervisor 7: a commit failed, leaving: OSError: bad
"""
    findings = Findings()
    check_log(log.splitlines(), findings)
    assert findings.counts == {"bugs": 2}
    assert findings.examples[0] == 'bugs: ValueError: no (File "loop.py", line 9, in x)'
    quiet = Findings()
    check_log(["batchd supervisor 7: asked to stop: draining"], quiet)
    assert not quiet
