"""One job, as `batchd show BATCH:INDEX` tells of it: what became of it, what it was given and what it said.

It writes nothing and runs no code of the task's, but for reading its result back, as `batchd results` does. The one
idea: the answer is a dictionary with a stable shape; `--json` prints that, else it is said in words.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

from batchd.cli.answers import head, told_lines
from batchd.cli.cards import details_text
from batchd.cli.results import extend_path, json_of
from batchd.cli.summary import command_in, limits
from batchd.client import request
from batchd.client.reading import input_at
from batchd.core.job import JobState
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes, Span
from batchd.errors import BatchdError, FormatError, ResultError
from batchd.formats.values import load
from batchd.joberrors import error_of
from batchd.units import format_duration, visible, visible_line

_RESULT_CHARS_MAX: Final = 1_000
_WAYS: Final = {"failed": "--failed", "quarantined": "--quarantined", "cancelled": "--cancelled"}


def job_fields(journal: BatchJournal, index: int, *, is_live: bool) -> dict[str, Any]:
    """Return everything that is known of a job of this batch. `is_live`: a supervisor runs."""
    facts, outcomes = journal.facts, Outcomes(journal)
    folder, batch = journal.folder.parent.parent, journal.folder.name
    told: dict[str, Any] = {
        "batchd": 1,
        **head(journal),
        "index": index,
        "job": f"{batch}:{index}",
        "state": "queued",
        "attempts": None,
        "history": None,
        "running": None,
        "input": input_at(journal, outcomes, index),
        "result": None,
        "unreadable": "",
        "error": None,
        "next": [],
    }
    span = next(outcomes.spans(facts.done, facts.generation, index, index + 1), None)
    if span is None:
        history = facts.histories.get(index)
        told["running"] = _run_now(folder, batch, index) if is_live and facts.is_attached else None
        told["state"] = "running" if told["running"] else "queued"
        told["history"], told["attempts"] = history._asdict(), history.attempts
    elif span.state is JobState.SUCCEEDED:
        told["state"] = "succeeded"
        extend_path(journal.spec)
        told.update(_result(span))
        told["next"] = [] if told["unreadable"] else [command_in(folder, "results", told["job"], "--values")]
    else:
        told["state"] = span.state.name.lower()
        told.update(_failure(outcomes, span))
        rerun = [] if span.state is JobState.CANCELLED else [command_in(folder, "rerun", told["job"])]
        told["next"] = [*rerun, command_in(folder, "retry", batch, _WAYS[told["state"]], *limits(journal.spec))]
    return told


def described(told: dict[str, Any]) -> Iterator[str]:
    """Say in words what `job_fields` returned."""
    yield f"{visible_line(told['name'])} ({told['batch']}), job {told['index']}: {told['state']}"
    error, attempts = told["error"] or {}, told["attempts"]
    result = json.dumps(told["result"], ensure_ascii=False) if told["state"] == "succeeded" else ""
    if told["unreadable"]:
        result = told["unreadable"]
    elif len(result) > _RESULT_CHARS_MAX:
        result = f"{result[:_RESULT_CHARS_MAX]}… ({len(result):,} characters)"
    yield from told_lines(
        {
            "cause": visible(error.get("cause", "")),
            "attempt": _attempt_text(attempts, told["history"], is_running=bool(told["running"])) if attempts else "",
            "running": _running_text(told["running"]) if told["running"] else "",
            "input": visible(told["input"]),
            "result": visible(result),
            "used": details_text({**error.get("details", {}), "attempt": 1}),
            "traceback": visible(error.get("traceback", "").rstrip()),
            "stack": dedent(visible(error.get("stack", ""))),
            "printed": "\n".join(f"| {visible(line)}" for line in error.get("output", "").rstrip().splitlines()),
            "next": "\n".join(told["next"]),
        }
    )


def _result(span: Span) -> dict[str, Any]:
    """Return the result in JSON's types, or why it has none."""
    try:
        value = load(span.separate()[0]) if span.block.is_separate else span.values()[0]
        return {"result": json.loads(json_of(value)), "unreadable": ""}
    except ResultError as error:
        return {"unreadable": f"not shown: {error}"}
    except Exception as error:
        return {"unreadable": f"cannot be read back: {error!r}"}


def _failure(outcomes: Outcomes, span: Span) -> dict[str, Any]:
    """Return what is known of a job that did not succeed. What it raised is not unpickled: that may run anything."""
    try:
        index, failure = next(span.failures())
    except FormatError as trouble:
        return {"error": {"cause": f"what became of it does not read back: {trouble}"}}
    traceback = outcomes.explain(failure.fingerprint)
    error = error_of("", index, span.state, failure._replace(exception=b""), traceback)
    return {
        "attempts": error.attempt or None,
        "error": {
            "type": failure.type,
            "message": failure.message,
            "cause": error.cause,
            "traceback": getattr(error, "traceback", "") if traceback else "",
            "stack": getattr(error, "stack", ""),
            "output": error.output,
            "details": failure.details,
        },
    }


def _run_now(folder: Path, batch: str, index: int) -> dict[str, Any] | None:
    """Return which worker is at the job, None when none is, or nobody can say."""
    try:
        rows = request(folder, "status")["workers"]
    except BatchdError:
        return None
    found = (row for row in rows if row["batch"] == batch and row["job"] == index)
    return next(({name: row[name] for name in ("worker", "pid", "since_s", "progress")} for row in found), None)


def _running_text(row: dict[str, Any]) -> str:
    since = f" for {format_duration(row['since_s'])}" if row["since_s"] is not None else ""
    progress = f", {int(100 * row['progress'] + 1e-4)}%" if row["progress"] is not None else ""
    return f"on worker {row['worker']}, pid {row['pid']}{since}{progress}"


def _attempt_text(attempts: int, history: dict[str, int] | None, *, is_running: bool) -> str:
    """Say which number its attempt has: none is given twice, and one may have gone to an attempt that never began."""
    if history is None:
        return f"{attempts:,}"
    kinds = {"failures": "failed", "crashes": "crashed", "interruptions": "interrupted"}
    parts = [f"{history[name]:,} {word}" for name, word in kinds.items() if history.get(name)]
    before = f" ({', '.join(parts)} before)" if parts else ""
    return f"{attempts + 1:,}{'' if is_running else ' is the next'}{before}"
