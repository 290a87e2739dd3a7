"""Whether a batch is as it was written, and if not, which jobs of it are concerned.

    check_batch    a child opens the batch as batchd does, and may die of it; meanwhile its file is read page by page
    judge          what stands in the tables is held against what the checkpoint and the log say

Nothing is changed here and nothing of the user's is unpickled. The one idea: a checksum tells that a record is whole,
but only the facts tell that one is missing, so both are looked at, and every range is named once.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from batchd.core.job import JobState
from batchd.core.ranges import Range, RangeSet
from batchd.edge.datafile import DataFile
from batchd.edge.environment import DATA_NAME, LOCK_NAME
from batchd.edge.survey import FILE, JOBS_MAX, ROOT, Finding, Survey, covered
from batchd.edge.watch import Watch
from batchd.errors import JournalCrowded, JournalError, JournalNewer
from batchd.formats import pages, tables


class Diagnosis(NamedTuple):
    """What `check_batch` found."""

    batch: str
    size: int
    """Jobs, as far as they are known."""
    done: int
    findings: list[Finding]
    unsaid: int
    """Further findings, of which there are too many to keep."""

    @property
    def is_well(self) -> bool:
        """Whether everything reads back as it was written."""
        return not self.findings


def check_batch(folder: Path) -> Diagnosis:
    """Read all of a batch. Raises JournalNewer, JournalCrowded, and JournalError when it cannot be looked at."""
    if not (folder / DATA_NAME).is_file():
        finding = Finding(FILE, None, None, None, f"there is no {DATA_NAME}")
        return Diagnosis(folder.name, 0, 0, [finding], 0)
    had_lock = (folder / LOCK_NAME).exists()
    with Watch(folder) as watch:
        if watch.kind == JournalNewer.__name__:
            raise JournalNewer(watch.trouble)
        if watch.kind == JournalCrowded.__name__:
            raise JournalCrowded(watch.trouble)
        with closing(open_file(folder)) as file:
            before = file.newest
            survey = Survey(folder.name, file, watch.header)
            survey.read()
        judge(survey)
        watch.finish()
        if watch.trouble:
            survey.report(FILE, f"batchd cannot read it: {watch.trouble}")
        if not had_lock and _newest(folder) != before:
            what = f"{LOCK_NAME} was removed under whoever is writing it: end that run, then check again"
            survey.findings = [Finding(FILE, None, None, None, what)]  # The rest was read while it was written.
    done = survey.facts.done.copy()
    for piece in survey.outcomes:
        if piece.generation == survey.facts.generation or not survey.is_known:
            done.add(piece.first, piece.stop)
    return Diagnosis(folder.name, survey.facts.size, done.size, survey.findings, survey.unsaid)


def _newest(folder: Path) -> pages.Header | None:
    with closing(open_file(folder)) as file:
        return file.newest


def open_file(folder: Path) -> DataFile:
    """Open a batch's file for reading. Raises JournalError."""
    try:
        return DataFile(folder / DATA_NAME)
    except OSError as error:
        raise JournalError(f"{folder / DATA_NAME} cannot be read: {error.strerror}") from None


def judge(survey: Survey) -> None:
    """Add what is found by holding the tables against the facts."""
    if survey.checkpoint is None or not survey.is_known:
        # How many jobs there should be is not known: only what lies between others is missed.
        last = max((piece.stop for piece in survey.inputs), default=0)
        if not is_throwaway(survey):
            _report_missing(survey, tables.INPUTS, RangeSet(covered(survey.inputs).gaps(0, last)))
        return
    try:
        _judge_facts(survey, survey.checkpoint)
    except Exception as error:  # Facts that are not what they should be may fail in any way.
        survey.report(tables.META, f"the checkpoint makes no sense: {type(error).__name__}: {error}")


def _judge_facts(survey: Survey, checkpoint: dict[str, Any]) -> None:
    facts = survey.facts
    is_sound = not any(_of(survey, name) for name in (tables.INPUTS, tables.OUTCOMES, ROOT, FILE))
    _judge_records(survey, checkpoint)
    inputs, outcomes = covered(survey.inputs), covered(survey.outcomes)
    missing = RangeSet(gap for start, stop in facts.done for gap in outcomes.gaps(start, stop))
    without = RangeSet(inputs.gaps(0, facts.size))
    if is_sound and is_throwaway(survey):  # Its client had what it wanted of them.
        missing = RangeSet()
        for start, stop in facts.done:
            without.remove(start, stop)
    elif not missing and not _of(survey, tables.OUTCOMES):
        _judge_counts(survey)
    _report_missing(survey, tables.OUTCOMES, missing)
    _report_missing(survey, tables.INPUTS, without)
    for name, ranges in ((tables.INPUTS, inputs), (tables.OUTCOMES, outcomes)):
        for start, stop in ranges.overlap(facts.size, JOBS_MAX):
            survey.report(name, "jobs that were never given", start, stop)


def is_throwaway(survey: Survey) -> bool:
    """Whether a client may have had finished jobs of the batch forgotten."""
    return bool(survey.meta.get(tables.META_SPEC, {}).get("is_throwaway"))


def _judge_records(survey: Survey, checkpoint: dict[str, Any]) -> None:
    """Hold the outcome records against the checkpoint's generation and number."""
    facts = survey.facts
    for piece in survey.outcomes:
        if piece.generation > facts.generation:
            what = f"of generation {piece.generation}, and the batch is at {facts.generation}"
            survey.report(tables.OUTCOMES, what, piece.first, piece.stop)
        elif piece.generation == facts.generation and _is_partly(facts.done, piece.first, piece.stop):
            survey.report(tables.OUTCOMES, "some of them are done already", piece.first, piece.stop)
    told, there = checkpoint.get("records", 0), survey.records - survey.later
    if there != told and not _of(survey, tables.OUTCOMES):
        survey.report(tables.META, f"the checkpoint tells of {told} outcome records, {there} are there")


def _is_partly(done: RangeSet, start: int, stop: int) -> bool:
    inside = sum(high - low for low, high in done.overlap(start, stop))
    return 0 < inside < stop - start


def _judge_counts(survey: Survey) -> None:
    """Hold the jobs' states against those that the checkpoint counted."""
    facts = survey.facts
    counts: dict[int, int] = {}
    settled = RangeSet()
    for piece in sorted(survey.outcomes, key=lambda piece: -piece.generation):
        for start, stop in list(settled.gaps(piece.first, piece.stop)):
            jobs = sum(high - low for low, high in facts.done.overlap(start, stop))
            counts[piece.state] = counts.get(piece.state, 0) + jobs
        settled.add(piece.first, piece.stop)
    told = {int(state): count for state, count in facts.counts.items()}
    for state in sorted(counts.keys() | told.keys()):
        if counts.get(state, 0) != told.get(state, 0):
            what = f"the checkpoint tells of {told.get(state, 0)} jobs that are {JobState(state).name.lower()}"
            survey.report(tables.META, f"{what}, {counts.get(state, 0)} are there")


def _report_missing(survey: Survey, table: bytes, missing: RangeSet) -> None:
    """Name what is missing and not within a range that was named already."""
    named = RangeSet(_ranges_of(survey, table))
    for start, stop in missing:
        for low, high in named.gaps(start, stop):
            survey.report(table, "missing", low, high)


def _ranges_of(survey: Survey, table: bytes) -> Iterator[Range]:
    for finding in _of(survey, table):
        if finding.start is not None and finding.stop is not None:
            yield finding.start, finding.stop


def _of(survey: Survey, table: bytes | str) -> list[Finding]:
    name = table if isinstance(table, str) else table.decode()
    return [finding for finding in survey.findings if finding.table == name]
