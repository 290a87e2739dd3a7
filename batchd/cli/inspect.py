"""Verbs that only read the journal: ls, show, failures.

They need no supervisor and disturb none. Their answer goes to standard output, remarks about it to standard error.
The one idea: every answer is first a dictionary with a stable shape; `--json` prints that, else it is said in words.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from batchd.cli.answers import answer, head, remark, told_lines
from batchd.cli.cards import card_lines, details_text, is_death
from batchd.cli.summary import (
    command,
    command_in,
    count_fields,
    count_parts,
    next_steps,
    usage_parts,
)
from batchd.core.facts import BatchState
from batchd.core.job import JobState
from batchd.edge.census import DAMAGED, IDLE, INTERRUPTED, QUEUE, RUNNING, is_queue, unread_state
from batchd.edge.control import connect
from batchd.edge.failures import RANGES_MAX, FailureGroup, group_failures
from batchd.edge.folder import journal_folder, open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.edge.shelf import Unread, find_batch, find_job, list_batches
from batchd.edge.stacks import cut_own_frames
from batchd.errors import BatchdError
from batchd.settings import NAME_CHARS_MAX
from batchd.units import counted, format_duration, format_size, visible, visible_line
from batchd.worker.command import command_words

_FROM_PYTHON: Final = {
    QUEUE: "a queue: jobs as applications hand them over",
    "calls": "calls of an executor",
    "iterable": "items from Python",
    "keyed": "items from Python, told by a key",
}
_ROWS_MAX: Final = 30
_CAUSES_MAX: Final = 10
_WORD_COLUMNS_MIN: Final = 8
_GAP: Final = 2
_HEADINGS: Final = ("BATCH", "NAME", "STATE", "DONE", "FAILED", "AGE", "DISK", "TASK")
_RIGHT: Final = frozenset({"DONE", "FAILED", "AGE", "DISK"})


# --- ls ------------------------------------------------------------------------------------------------------------


def ls(args: argparse.Namespace) -> int:
    """`batchd ls`: the batches of the journal, the newest first."""
    named = journal_folder(args.journal, os.environ)
    # Somebody who has not run anything yet is not told of an error; a folder that was named must be there.
    is_unused = args.journal is None and "BATCHD_JOURNAL" not in os.environ and not named.exists()
    folder = named if is_unused else open_folder(named, create=False)
    batches = [] if is_unused else _batches(folder)
    if args.json:
        answer([json.dumps({"batchd": 1, "journal": str(folder), "batches": batches})])
        return 0
    if not batches:
        first = command_in(
            folder, "run", "batchd.examples.demo:double", "--range", "0:1000", "--out", "doubled.jsonl"
        )
        answer([f"No batches yet in {folder}. Try: {first}"])
        return 0
    shown = batches if getattr(args, "all", False) else batches[:_ROWS_MAX]
    answer(_table([_row(batch) for batch in shown]))
    if len(shown) < len(batches):
        remark(f"{counted(len(batches) - len(shown), 'older batch')} not shown; --all shows everything")
    for batch in shown:
        if batch["error"]:
            remark(batch["error"])
    return 0


def _batches(folder: Path) -> list[dict[str, Any]]:
    is_live = _is_live(folder)
    found = [
        _no_fields(batch) if isinstance(batch, Unread) else _fields(batch, is_live=is_live)
        for batch in list_batches(folder)
    ]
    return sorted(found, key=lambda batch: (batch["created"], batch["batch"]), reverse=True)


def _row(batch: dict[str, Any]) -> tuple[str, ...]:
    if batch["error"]:
        return (batch["batch"], "", batch["state"], "", "", "", "", "")
    size = f"{batch['size']:,}" if batch["is_sealed"] else f"{batch['size']:,}+"
    failed = batch["failed"] + batch["quarantined"]
    return (
        batch["batch"],
        _cell(batch["name"]),
        batch["shown_state"],
        f"{batch['done']:,}/{size}",
        f"{failed:,}" if failed else "-",
        _age(batch["created"]),
        format_size(batch["disk_bytes"]),
        _cell(_task_name(batch)),
    )


def _cell(text: str) -> str:
    shown = visible_line(text)
    return shown if len(shown) <= NAME_CHARS_MAX else f"{shown[: NAME_CHARS_MAX - 1]}…"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", "unknown", ""}:
        return [_drawn(rows)]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    aligned = []
    for row in (_HEADINGS, *rows):
        cells = zip(row, widths, _HEADINGS, strict=True)
        padded = [cell.rjust(width) if head in _RIGHT else cell.ljust(width) for cell, width, head in cells]
        aligned.append("  ".join(padded).rstrip())
    return aligned


def _drawn(rows: list[tuple[str, ...]]) -> str:
    from rich.console import Console  # noqa: PLC0415  (only who draws pays for it)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    styles = {"finished": "green", RUNNING: "cyan", DAMAGED: "bold red", "stopped": "yellow", INTERRUPTED: "yellow"}
    console = Console(file=sys.stdout, highlight=False)
    widths = _fitted([max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)], console.width)
    # Where even that is too wide, the terminal breaks the lines: half an id would be of no use.
    console.width = max(console.width, sum(widths) + _GAP * (len(widths) - 1))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for heading, width in zip(_HEADINGS, widths, strict=True):
        justify: Literal["left", "right"] = "right" if heading in _RIGHT else "left"
        table.add_column(heading, justify=justify, no_wrap=True, overflow="ellipsis", width=width)
    for row in rows:
        cells = [Text(cell) for cell in row]
        cells[_at("STATE")].stylize(styles.get(row[_at("STATE")], ""))
        cells[_at("FAILED")].stylize("red" if row[_at("FAILED")] not in {"", "-"} else "dim")
        table.add_row(*cells)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")


def _fitted(widths: list[int], columns: int) -> list[int]:
    """Narrow the two columns of words until the table fits: what is typed or counted stays whole."""
    name, task = _at("NAME"), _at("TASK")
    room = columns - (sum(widths) - widths[name] - widths[task]) - _GAP * (len(widths) - 1)
    fitted = list(widths)
    fitted[name] = min(widths[name], max(room - widths[task], room // 2, _WORD_COLUMNS_MIN))
    fitted[task] = min(widths[task], max(room - fitted[name], _WORD_COLUMNS_MIN))
    return fitted


def _at(heading: str) -> int:
    return _HEADINGS.index(heading)


# --- show ----------------------------------------------------------------------------------------------------------


def show(args: argparse.Namespace) -> int:
    """`batchd show`: everything known about a batch, or about one job of it."""
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    is_live = _is_live(folder)
    journal, index = find_job(folder, args.batch)
    with closing(journal):
        if index is not None:
            from batchd.cli.job import described, job_fields  # noqa: PLC0415  (20 ms, which `ls` need not pay)

            told = job_fields(journal, index, is_live=is_live)
            answer([json.dumps(told)] if args.json else described(told))
            return 0
        fields = _fields(journal, is_live=is_live)
        fields["spec"] = journal.spec
        fields["next"] = [] if fields["is_running"] else next_steps(journal, fields["shown_state"])
        answer([json.dumps(fields)] if args.json else _described(journal, fields))
    return 0


def _described(journal: BatchJournal, fields: dict[str, Any]) -> Iterator[str]:
    spec = journal.spec
    yield f"{visible_line(fields['name'])} ({fields['batch']}): {fields['shown_state']}"
    jobs = f"{fields['done']:,} of {fields['size']:,}{'' if fields['is_sealed'] else '+'} done: "
    told = {
        "reason": fields["reason"],
        "jobs": jobs + " · ".join(count_parts(journal)),
        "begun": f"{counted(fields['begun'], 'job')} begun before and without an outcome yet"
        if fields["begun"]
        else "",
        "retried": f"{fields['generation']} times" if fields["generation"] > 1 else "once" * fields["generation"],
        "task": _task_name(fields),
        "arguments": ""
        if fields["exec"]
        else " ".join(f"{name}={value!r}" for name, value in spec.get("args", {}).items()),
        "input": _input_text(spec.get("input", {}), fields["size"])
        + ("" if fields["is_sealed"] or is_queue(spec) else " (not read to its end yet)"),
        "command": str(spec.get("command", "")),
        "folder": str(spec.get("cwd", "")),
        "created": f"{_moment(fields['created'])} ({_age(fields['created'])} ago), Python {spec.get('python', '?')}",
        "used": " · ".join(usage_parts(fields["usage"], None)),
        "disk": f"{format_size(fields['disk_bytes'])} in {journal.folder}",
        "durability": "process: survives kill -9, not power loss" if spec.get("durability") == "process" else "",
        "next": "\n".join(fields["next"]),
    }
    yield from told_lines(told)


def _input_text(spec: dict[str, Any], size: int) -> str:
    match spec:
        case {"kind": "text" | "table", "files": [*files]}:
            return shlex.join(map(str, files))
        case {"kind": "paths", "patterns": [*patterns]}:
            return " ".join(f"--paths {shlex.quote(str(pattern))}" for pattern in patterns)
        case {"kind": "range", "start": start, "step": step}:
            return f"--range {start}:{start + step * size}" + (f":{step}" if step != 1 else "")
        case {"kind": "stdin"}:
            return "standard input"
        case {"kind": str(kind)} if kind in _FROM_PYTHON:
            return _FROM_PYTHON[kind]
    return json.dumps(spec)


# --- failures ------------------------------------------------------------------------------------------------------


def failures(args: argparse.Namespace) -> int:
    """`batchd failures`: why jobs failed, grouped by cause."""
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    is_all = getattr(args, "all", False)
    with closing(find_batch(folder, args.batch)) as journal:
        groups = group_failures(journal, Outcomes(journal), ranges_max=sys.maxsize if is_all else RANGES_MAX)
        if args.json:
            causes = [_cause_fields(group) for group in groups]
            answer([json.dumps({"batchd": 1, **head(journal), **count_fields(journal), "causes": causes})])
        else:
            answer(_explained(journal, groups, len(groups) if is_all else _CAUSES_MAX))
    return 0


def _explained(journal: BatchJournal, groups: list[FailureGroup], causes_max: int) -> Iterator[str]:
    facts, names = journal.facts, head(journal)
    title = f"{visible_line(names['name'])} ({names['batch']})"
    failed, quarantined = facts.count(JobState.FAILED), facts.count(JobState.QUARANTINED)
    if not groups:
        yield f"{title}: nothing failed, {facts.done.size:,} of {counted(facts.size, 'job')} done"
        return
    counts = [f"{failed:,} failed"] * bool(failed) + [f"{quarantined:,} quarantined"] * bool(quarantined)
    causes = counted(len(groups), "cause")
    yield f"{title}: {' and '.join(counts)} of {counted(facts.size, 'job')}, {causes}"
    for number, group in enumerate(groups[:causes_max], 1):
        yield ""
        yield from _cause_lines(number, group, _story(journal, group))
    if len(groups) > causes_max:
        yield ""
        left = sum(group.count for group in groups[causes_max:])
        more = counted(len(groups) - causes_max, "more cause")
        yield f"and {counted(left, 'job')} of {more}: --json tells them all"
    yield ""
    options = ["--failed"] * bool(failed) + ["--quarantined"] * bool(quarantined)
    yield f"next: {command(journal, 'retry', *options)}"


def _story(journal: BatchJournal, group: FailureGroup) -> Iterator[str]:
    """What is known of a cause and of its first job."""
    if is_death(group):
        job = f"{journal.folder.name}:{group.example}"
        yield from card_lines(journal, group, command_in(journal.folder.parent.parent, "rerun", job))
        details, output = {name: value for name, value in group.details.items() if name != "attempt"}, ""
    else:
        told = cut_own_frames(group.traceback).rstrip() or group.message.rstrip()
        yield from map(visible, told.splitlines())
        from batchd.client.reading import input_at  # noqa: PLC0415  (20 ms, for a batch with failures)

        yield f"input of job {group.example}: {input_at(journal, Outcomes(journal), group.example)}"
        details, output = group.details, group.output.rstrip()
    if text := details_text(details):
        yield f"({text})"
    if output:
        yield f"last output of job {group.example}:"
        yield from (f"| {visible(line)}" for line in output.splitlines())


def _cause_lines(number: int, group: FailureGroup, story: Iterable[str]) -> Iterator[str]:
    state = " · quarantined" if group.state is JobState.QUARANTINED else ""
    yield f"{number}. {visible_line(group.type)} · {counted(group.count, 'job')}{state}: {group.indices}"
    yield from (f"   {line}" for line in story)


def _cause_fields(group: FailureGroup) -> dict[str, Any]:
    return {
        "type": group.type,
        "message": group.message,
        "state": group.state.name.lower(),
        "count": group.count,
        "example": group.example,
        "indices": group.indices,
        "ranges": group.ranges,
        "more": group.more,
        "fingerprint": group.fingerprint,
        "traceback": group.traceback,
        "output": group.output,
        "details": group.details,
    }


# --- What the verbs share ------------------------------------------------------------------------------------------


def _fields(journal: BatchJournal, *, is_live: bool) -> dict[str, Any]:
    """Everything about a batch that its journal tells without reading its outcomes."""
    facts, spec, made = journal.facts, journal.spec, journal.progress()
    is_running = is_live and facts.is_attached
    is_left = not is_queue(spec) or made.done < made.size
    is_over = facts.state in {BatchState.FINISHED, BatchState.STOPPED, BatchState.CANCELLED}
    return {
        "batchd": 1,
        **head(journal),
        "state": made.state,
        "shown_state": made.state if is_over else RUNNING if is_running else INTERRUPTED if is_left else IDLE,
        "is_running": is_running,
        "reason": made.reason,
        "size": made.size,
        "is_sealed": made.is_sealed,
        "done": made.done,
        **count_fields(journal),
        "begun": sum(stop - start for start, stop, _ in facts.histories.marked()),
        "generation": made.generation,
        "usage": journal.read_usage(),
        "disk_bytes": journal.bytes_used(),
        "task": list(spec.get("task", ())),
        "exec": shlex.join(command_words(spec)),
        "created": str(spec.get("created", "")),
        "error": "",
    }


def _no_fields(batch: Unread) -> dict[str, Any]:
    state = unread_state(batch.error)
    return {"batchd": 1, "batch": batch.folder.name, "state": state, "created": "", "error": str(batch.error)}


def _is_live(folder: Path) -> bool:
    try:
        connect(folder).close()
    except (OSError, BatchdError):
        return False
    return True


def _task_name(batch: dict[str, Any]) -> str:
    task = batch["task"]
    module, name = task if len(task) == 2 else ("", ":".join(task))
    if batch["exec"]:
        return str(batch["exec"])
    if not module:  # Made from Python.
        return name
    short = Path(module).name if module.endswith(".py") else module
    return f"{short}:{name}"


def _age(created: str) -> str:
    then = _parsed(created)
    return "?" if then is None else format_duration(max(0.0, (datetime.now(UTC) - then).total_seconds()))


def _moment(created: str) -> str:
    then = _parsed(created)
    return created if then is None else f"{then:%Y-%m-%d %H:%M:%S} UTC"


def _parsed(created: str) -> datetime | None:
    try:
        then = datetime.fromisoformat(created)
    except ValueError:
        return None
    return then.astimezone(UTC) if then.tzinfo else then.replace(tzinfo=UTC)
