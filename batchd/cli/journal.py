"""`batchd journal`: look after the journal itself. Find damage, bring out what can be had, copy all of it.

None of these verbs writes the journal or needs a supervisor. The one idea: every answer is first a dictionary with a
stable shape; `--json` prints that, else it is said in words, with the command that comes next.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from batchd.cli.salvaged import DOUBTFUL_NAME, INPUTS_NAME, OUTCOMES_NAME, REPORT_NAME, bring_out
from batchd.cli.summary import command_in
from batchd.core.ranges import Range
from batchd.edge.backup import back_up
from batchd.edge.census import DAMAGED, NEWER
from batchd.edge.damage import Diagnosis, check_batch
from batchd.edge.folder import journal_folder, open_folder
from batchd.edge.salvage import Salvage
from batchd.edge.shelf import batch_folders, find_folder
from batchd.errors import BatchdError, JournalDamaged, JournalNewer
from batchd.units import counted, format_size

_FINE: Final = "fine"
_UNREADABLE: Final = "unreadable"
_FINDINGS_SHOWN: Final = 20
_RANGES_SHOWN: Final = 5


def journal(args: argparse.Namespace) -> int:
    """`batchd journal`: check, salvage, backup."""
    acts = {"check": _check, "salvage": _salvage, "backup": _backup}
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    return acts[args.act](args, folder)


# --- check -----------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace, folder: Path) -> int:
    places = [find_folder(folder, args.batch)] if args.batch else batch_folders(folder)
    checked: list[dict[str, Any]] = []
    for place in places:
        fields = _checked(place)
        if fields["state"] == _UNREADABLE and not place.exists():
            continue  # It was removed meanwhile.
        checked.append(fields)
        if not args.json:
            _print(_check_lines(fields))
    damaged = [fields["batch"] for fields in checked if fields["state"] == DAMAGED]
    others = [fields["batch"] for fields in checked if fields["state"] in {NEWER, _UNREADABLE}]
    steps = [command_in(folder, "journal", "salvage", name, "--to", f"salvaged-{name}") for name in damaged]
    if args.json:
        told = {"batchd": 1, "journal": str(folder), "is_well": not damaged and not others, "batches": checked}
        print(json.dumps({**told, "next": steps}))
    else:
        counts = [f"{len(damaged)} damaged"] * bool(damaged) + [f"{len(others)} not checked"] * bool(others)
        total = counted(len(checked), "batch")
        verdict = ", ".join(counts) or "every record reads back as it was written"
        _print([f"{total}: {verdict}" if checked else f"there are no batches in {folder}"])
        for number, step in enumerate(steps):
            _print([f"{'     ' if number else 'next:'} {step}"])
    return JournalDamaged.exit_code if damaged or others else 0


def _checked(place: Path) -> dict[str, Any]:
    try:
        found = check_batch(place)
    except JournalNewer as error:
        return _fields(Diagnosis(place.name, 0, 0, [], 0), NEWER, str(error))
    except BatchdError as error:
        return _fields(Diagnosis(place.name, 0, 0, [], 0), _UNREADABLE, str(error))
    return _fields(found, _FINE if found.is_well else DAMAGED, "")


def _fields(found: Diagnosis, state: str, error: str) -> dict[str, Any]:
    return {
        "batch": found.batch,
        "state": state,
        "size": found.size,
        "done": found.done,
        "error": error,
        "damage": [{**finding._asdict(), "text": str(finding)} for finding in found.findings],
        "more": found.unsaid,
    }


def _check_lines(fields: dict[str, Any]) -> Iterator[str]:
    yield f"{fields['batch']}  {fields['state']}" + (
        f": {fields['error']}"
        if fields["error"]
        else f"  {fields['done']:,} of {counted(fields['size'], 'job')} done"
    )
    yield from (f"  {finding['text']}" for finding in fields["damage"][:_FINDINGS_SHOWN])
    more = len(fields["damage"][_FINDINGS_SHOWN:]) + fields["more"]
    if more:
        yield f"  and {more:,} more damaged places: --json names them"


# --- salvage ---------------------------------------------------------------------------------------------------


def _salvage(args: argparse.Namespace, folder: Path) -> int:
    place, target = find_folder(folder, args.batch), Path(args.to)
    with Salvage(place) as salvage:
        report = bring_out(salvage, place, target, lambda report: list(_salvage_steps(folder, target, report)))
    if args.json:
        print(json.dumps(report))
    else:
        _print(_salvage_lines(target, report))
    return 0 if not report["damage"] or _is_any(report) else JournalDamaged.exit_code


def _is_any(report: dict[str, Any]) -> bool:
    """Whether anything of the batch could be read."""
    counts = report["outcomes"]["count"], report["inputs"]["count"], report["doubtful"], report["unplaced"]
    return any(counts) or bool(report["spec"])


def _salvage_lines(target: Path, report: dict[str, Any]) -> Iterator[str]:
    lost, outcomes, inputs = report["lost"], report["outcomes"], report["inputs"]
    yield f"{report['batch']}: {outcomes['count']:,} outcomes are in {target / OUTCOMES_NAME}"
    if inputs["count"] or inputs["jobs"]:
        jobs = counted(inputs["count"], "job")
        yield f"  inputs of {jobs} without an outcome are in {target / INPUTS_NAME}, in their order"
    if inputs["unlike"]:
        yield f"  {len(inputs['unlike']):,} of them are not quite what JSON can hold: see {target / REPORT_NAME}"
    if outcomes["unreadable"]:
        yield f"  {len(outcomes['unreadable']):,} results do not read back here: see {target / REPORT_NAME}"
    if report["doubtful"]:
        yield f"  {report['doubtful']:,} of them failed before, and may have been retried since: {DOUBTFUL_NAME}"
    if report["unplaced"]:
        yield f"  {report['unplaced']:,} inputs were found whose jobs are not known"
    if report["damage"] and not _is_any(report):
        yield "  lost: all of it, and how many jobs that were is not known; a copy of the batch, where there is one,"
        yield "        can be put back in its place: `batchd prune` below makes room for it"
    else:
        yield f"  lost: {_lost_text(lost)}"
    if report["damage"]:
        yield f"  {len(report['damage']):,} damaged places are named in {target / REPORT_NAME}"
    for number, step in enumerate(report["next"]):
        yield f"{'     ' if number else 'next:'} {step}"


def _lost_text(lost: dict[str, list[Range]]) -> str:
    parts = [f"{what} of jobs {_ranges_text(lost[what])}" for what in ("outcomes", "inputs") if lost[what]]
    return "; ".join(parts) or "nothing that the journal knows of"


def _ranges_text(ranges: list[Range]) -> str:
    shown = [
        f"{start:,}-{stop - 1:,}" if stop - start > 1 else f"{start:,}" for start, stop in ranges[:_RANGES_SHOWN]
    ]
    more = len(ranges) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more ranges" if more else "")


def _salvage_steps(folder: Path, target: Path, report: dict[str, Any]) -> Iterator[str]:
    spec, inputs = report["spec"], target / INPUTS_NAME
    task = spec.get("task")
    if report["inputs"]["count"] and isinstance(task, list) and all(task) and not spec.get("call"):
        constants = [f"--arg={name}={_constant(value)}" for name, value in spec.get("args", {}).items()]
        command = [
            "batchd",
            "run",
            ":".join(map(str, task)),
            str(inputs),
            *constants,
            "--out",
            str(target / "rest.jsonl"),
        ]
        yield f"{shlex.join(command)} (runs the jobs that have no outcome)"
    if report["damage"]:
        yield f"{command_in(folder, 'prune', report['batch'])} (removes the damaged batch)"


def _constant(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# --- backup ----------------------------------------------------------------------------------------------------


def _backup(args: argparse.Namespace, folder: Path) -> int:
    target = Path(args.to)
    copied = []
    for each in back_up(folder, target):
        copied.append(each)
        if each.trouble and not args.json:
            print(f"batchd: {each.batch} is copied with its damage: {each.trouble}", file=sys.stderr)
    size = sum(each.disk_bytes for each in copied)
    damaged = [each for each in copied if each.trouble]
    step = shlex.join(["batchd", "ls", "--journal", str(target)])
    if args.json:
        batches = [{"batch": each.batch, "disk_bytes": each.disk_bytes, "damage": each.trouble} for each in copied]
        print(
            json.dumps(
                {"batchd": 1, "journal": str(folder), "backup": str(target), "batches": batches, "next": [step]}
            )
        )
    else:
        whole = "" if damaged else ", and every record was read back"
        total = counted(len(copied), "batch")
        _print([f"{total}, {format_size(size)}, copied to {target}{whole}", f"next: {step}"])
    return JournalDamaged.exit_code if damaged else 0


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)
