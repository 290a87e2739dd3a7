"""Reading outcomes as Python values and errors: what a span of the journal means to whoever asked for it."""

from collections.abc import Iterator
from typing import Any

from batchd.core.job import JobState
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes, Span
from batchd.errors import UsageError
from batchd.formats.report import Failure
from batchd.formats.values import load
from batchd.joberrors import JobError, JobUnreadable, error_of, input_text, rerun_command


def values_of(span: Span, journal: BatchJournal, outcomes: Outcomes, on_error: str) -> Iterator[Any]:
    """Give the results of a span's jobs. Raises JobError for one that failed; `on_error` as in `batchd.map`."""
    if span.state is not JobState.SUCCEEDED:
        for index, failure in span.failures():
            error = error_at(journal, outcomes, index, span.state, failure)
            if on_error == "raise":
                raise error
            if on_error == "return":
                yield error
    elif span.block.is_separate:
        for index, payload in enumerate(span.separate(), span.start):
            try:
                value = load(payload)
            except Exception as cause:
                value = unreadable(journal.folder.name, index, cause)
                if on_error == "raise":
                    raise value from cause
                if on_error == "skip":
                    continue
            yield value
            del value  # Its taker may let go of it before the next is asked for.
    else:
        yield from span.values()


def check_on_error(on_error: str) -> None:
    """Raise UsageError unless it says what becomes of a job that failed."""
    if on_error not in {"raise", "return", "skip"}:
        raise UsageError(f'on_error={on_error!r}: it is "raise", "return" or "skip"')


def unreadable(batch: str, index: int, cause: Exception) -> JobUnreadable:
    """Return the error of a result that cannot be unpickled here."""
    error = JobUnreadable(f"the result of job {batch}:{index} could not be unpickled: {cause}")
    error.batch, error.index, error.__cause__ = batch, index, cause
    return error


def input_at(journal: BatchJournal, outcomes: Outcomes, index: int) -> str:
    """Return a job's input as people read it, or why it is not shown. Runs no code that may be at fault."""
    try:
        return input_text(journal.spec, outcomes.input_value(index, harmless=True))
    except Exception as error:
        return f"(not shown: {error})"


def error_at(journal: BatchJournal, outcomes: Outcomes, index: int, state: JobState, failure: Failure) -> JobError:
    """Return the error of a job with all that its journal knows: for a death, its input and how to run it again."""
    batch, spec = journal.folder.name, journal.spec
    given = rerun = ""
    if "pid" in failure.details:  # A death that was seen.
        given = input_at(journal, outcomes, index)
        if not spec.get("is_throwaway"):
            rerun = rerun_command(journal.folder.parent.parent, batch, index)
    error = error_of(batch, index, state, failure, outcomes.explain(failure.fingerprint), given, rerun=rerun)
    error.is_thrown_away = bool(given and not rerun)
    return error
