"""Verbs that ask the supervisor: status, scale, cancel."""

import argparse
import json
import os
import sys

from batchd.cli.answers import remark
from batchd.client import request
from batchd.core.job import JobState
from batchd.edge import control
from batchd.edge.census import RUNNING
from batchd.edge.folder import journal_folder, open_folder
from batchd.edge.gauges import cpus_usable, parse_workers
from batchd.edge.shelf import find_batch
from batchd.errors import SupervisorError, UsageError
from batchd.units import counted, format_duration, format_size

_KEPT = (JobState.SUCCEEDED, JobState.FAILED, JobState.QUARANTINED)


def status(args: argparse.Namespace) -> int:
    """`batchd status`: what runs now. Never starts anything."""
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    try:
        control.connect(folder).close()
    except OSError:
        if args.json:
            print(json.dumps({"batchd": 1, "running": False}))
        else:
            print("nothing is running: `batchd ls` lists the batches, `batchd run` continues or starts one")
        return 0
    told = request(folder, "status")
    if args.json:
        print(json.dumps({"batchd": 1, "running": True, **told}))
        return 0
    machine = told["machine"]
    used, limit = format_size(machine["memory_used_bytes"]), format_size(machine["memory_limit_bytes"])
    workers = counted(len(told["workers"]), "worker")
    print(f"supervisor {told['pid']}: {workers}; memory of the machine {used} of {limit}")
    if told["trouble"]:
        print(f"  {told['trouble']}")
    for warning in told["warnings"]:
        print(f"  {warning}")
    for name, made in told["batches"].items():
        state = RUNNING if made["state"] in {"open", "sealed"} else made["state"]
        print(f"batch {name}: {made['done']:,} of {made['size']:,}{'+' * (not made['is_sealed'])} done, {state}")
    for row in told["workers"]:
        doing = "idle"
        if row["batch"] is not None:
            since = f" for {format_duration(row['since_s'])}" if row["since_s"] is not None else ""
            progress = f", {int(100 * row['progress'] + 1e-4)}%" if row["progress"] is not None else ""
            doing = f"{row['batch']}:{row['job']}{since}{progress}"
        memory = format_size(row["memory_bytes"]) if row["memory_bytes"] is not None else "-"
        cpu = f"{row['cpu_s']:.1f} s CPU" if row["cpu_s"] is not None else "-"
        print(f"worker {row['worker']:<4} pid {row['pid']:<8} {memory:>8} {cpu:>12}  {doing}")
    return 0


def scale(args: argparse.Namespace) -> int:
    """`batchd scale`: change the worker count of what runs."""
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    try:
        control.connect(folder).close()
    except OSError:
        raise SupervisorError(
            "nothing is running, so nothing can be scaled: `batchd run ... -j N` starts N"
        ) from None
    text = args.workers
    if text.startswith(("+", "-")):
        if not text[1:].isdigit():
            raise UsageError(f"cannot scale by {text!r}: write +2 or -1")
        told = request(folder, "scale", workers=None, change=int(text))
    else:
        told = request(folder, "scale", workers=None if text == "auto" else parse_workers(text, cpus_usable()))
    if args.json:
        print(json.dumps({"batchd": 1, **told}))
    else:
        print(f"workers: {told['before']} -> {told['workers'] or 'as the batches ask'}", file=sys.stderr)
    return 0


def cancel(args: argparse.Namespace) -> int:
    """`batchd cancel`: give a batch up."""
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    journal = find_batch(folder, args.batch)
    name, is_finished = journal.folder.name, journal.facts.is_finished
    journal.close()
    if is_finished:
        raise UsageError(f"batch {name} is finished already: nothing to cancel")
    told = request(folder, "cancel", note=remark, batch=name, reason=args.reason)
    cancelled = told["size"] - sum(told["counts"].get(str(int(state)), 0) for state in _KEPT)
    if args.json:
        print(json.dumps({"batchd": 1, **told}))
    else:
        print(
            f"{name}: {counted(cancelled, 'job')} cancelled; `batchd retry {name} --cancelled` runs them",
            file=sys.stderr,
        )
    return 0
