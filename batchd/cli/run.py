"""`batchd run` and `batchd retry`: bring a batch to its end in the foreground, and say what became of it."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

from batchd.cli import summary
from batchd.cli.results import check_target
from batchd.cli.runner import Runner, checkpoint_of
from batchd.cli.signature import check_call
from batchd.client import batch_id, request
from batchd.client.world import check_name, check_python, key_of_spec, stored_key
from batchd.core.events import Options
from batchd.core.job import Allowances, JobState
from batchd.edge.census import is_queue
from batchd.edge.folder import journal_folder, open_folder
from batchd.edge.gauges import cpus_usable, parse_workers, workers_auto
from batchd.edge.shelf import find_batch
from batchd.edge.template import KeySpec
from batchd.errors import CodeChanged, UsageError
from batchd.sources import Block, Source, hints, open_source
from batchd.units import continuing, counted, job_memory, parse_duration, parse_share, visible_line
from batchd.worker import task as tasks
from batchd.worker.command import TASK as COMMAND
from batchd.worker.command import command_words, fill


def run(args: argparse.Namespace) -> int:
    """`batchd run`: start or continue the batch this command means."""
    task = tasks.parse(args.task, Path.cwd())
    return start(args, task, constant_args(args.arg), name=task.name)


def start(args: argparse.Namespace, task: tasks.Task, constants: dict[str, Any], name: str) -> int:
    """Start or continue the batch that means a task with these constant arguments; `name` is what it is shown as."""
    check_name(args.name)
    source = open_source(
        args.inputs,
        paths=args.paths,
        range_spec=args.range_spec,
        null=args.null,
        skip_bad_input=args.skip_bad_input,
        cost=args.cost,
    )
    spec, key_spec = describe(args, source, spec_of_name(args), task, constants)
    spec["name"] = args.name or name
    options = options_of(args)
    check_target(args.out, [*args.inputs, spec.get("source")])
    check_call(Path(spec["source"]) if spec["source"] else None, task, constants)
    if args.dry_run:
        return dry_run(args, source, spec)
    folder = open_folder(journal_folder(args.journal, os.environ))
    batch = choose_id(folder, args, spec)
    runner = Runner(folder, batch, args, options, key_spec)
    known = read_known(folder, batch)
    if known is None:
        for hint in hints(args.inputs if not args.null else ()):
            runner.note(hint)
        made = source.blocks()
        if not is_stream(spec):  # Of an input that cannot be read at all no batch is made.
            made = chain(list(islice(made, 1)), made)
        return runner.run(spec, made, already_done=0, source=source)
    check_same(known["spec"], spec, args, batch)
    accept_code(folder, batch, known["spec"], spec["digest"])
    if known["is_cancelled"]:
        raise UsageError(
            f"batch {batch} was cancelled: `batchd retry {batch} --cancelled` runs what is left, --new starts again"
        )
    behind = known["checkpoint"]
    blocks = source.blocks(checkpoint_of(behind))
    going_on = continuing(batch, known["done"], known["size"])
    if is_stream(spec) and not known["is_finished"]:  # It may come slowly: what is left runs meanwhile.
        runner.note(going_on)
        return runner.run(spec, blocks, already_done=known["done"], source=source, behind=behind)
    first = next(blocks, None)  # Reads the earlier input again: refuses it if it changed.
    if first is None and known["is_finished"]:
        runner.note(
            f"{batch} is finished already: {counted(known['size'], 'job')} done, nothing to run "
            "(--new starts another)"
        )
        return runner.report_over(known["size"])
    rest: Iterator[Block] | None = chain([first], blocks) if first is not None else blocks
    if first is None and known["is_sealed"]:
        rest = None
    runner.note(going_on)
    return runner.run(spec, rest, already_done=known["done"], source=source, behind=behind)


def retry(args: argparse.Namespace) -> int:
    """`batchd retry`: run a batch's failed, quarantined or cancelled jobs again, and those that have no outcome."""
    chosen = {"failed": JobState.FAILED, "quarantined": JobState.QUARANTINED, "cancelled": JobState.CANCELLED}
    states = [state for name, state in chosen.items() if getattr(args, name)]
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    with closing(find_batch(folder, args.batch)) as journal:
        spec, batch, facts = dict(journal.spec), journal.folder.name, journal.facts
        key_spec, options = stored_key(journal, is_fresh=args.start == "fresh"), options_of(args)
        again, limits = summary.command(journal, "retry"), summary.limits(journal.spec)
    check_target(args.out, [*spec["input"].get("files", ()), spec.get("source")])
    count, left = sum(map(facts.count, states)), facts.size - facts.done.size
    if not states and not left and not facts.is_sealed and not is_queue(spec):
        go_on = f"this goes on with it: {spec['command']}" if spec.get("command") else "start its program again"
        raise UsageError(f"the input of {batch} was not read to its end, and what was read has outcomes; {go_on}")
    if not states and not left:
        raise UsageError(
            f"every job of {batch} has an outcome: say which are to run again with --failed, --quarantined "
            "or --cancelled"
        )
    named = " or ".join(name for name in chosen if getattr(args, name))
    runner = Runner(folder, batch, args, options, key_spec)
    if limits and options.timeout_s is None and options.memory_bytes_max is None:
        runner.note(f"without the limits that {batch} was run with, which may be given again: {shlex.join(limits)}")
    if states and not count:
        rest = f"; {counted(left, 'job')} without an outcome: {again}" if left else ""
        found = "nothing to retry"
        if args.cancelled and facts.cancelled:
            request(folder, "reopen", note=runner.note, batch=batch, states=[int(state) for state in states])
            found = "it is cancelled no more"
        print(f"batchd: {batch} has no {named} jobs: {found}{rest}", file=sys.stderr)
        return runner.report_over(facts.size, is_interrupted=left > 0) if args.out else 0
    these = counted(count, f"{named} job")
    if key_spec.payload:
        check_python(spec, batch)
    else:  # Who retries after mending the task means the mended one.
        digest = tasks.source_digest(Path(spec["source"]) if spec.get("source") else None)
        if digest != spec["digest"]:
            runner.note(f"{spec['source']} changed since {batch} was started: going on with the code as it is now")
        accept_code(folder, batch, spec, digest)
        spec["digest"] = digest
    if states:
        told = request(folder, "reopen", note=runner.note, batch=batch, states=[int(state) for state in states])
        if told["is_live"]:
            print(f"batchd: {these} of {batch} handed back to the command that runs it", file=sys.stderr)
            return 0
        runner.note(f"retrying {these} of {batch}")
    else:
        runner.note(f"going on with {batch}: {left:,} of {counted(facts.size, 'job')} left")
    if not facts.is_sealed and not is_queue(spec):  # Of a queue there is no end.
        runner.note(f"its input was not complete: to go on with that, run again {spec.get('command', '')}")
    return runner.run(spec, None, already_done=facts.done.size - count)


# --- What the command means ----------------------------------------------------------------------------------------


def describe(
    args: argparse.Namespace,
    source: Source,
    known: dict[str, Any] | None,
    task: tasks.Task,
    constants: dict[str, Any],
) -> tuple[dict[str, Any], KeySpec]:
    """Return the specification of the batch this command means, and how its workers start.

    A batch that is found by its name keeps the folder and the import path it was started with.
    """
    cwd = Path(known["cwd"]) if known else Path.cwd()
    sys_path = known["sys_path"] if known else [str(cwd), *(each for each in sys.path if each and each != str(cwd))]
    found = tasks.find_source(task, sys_path) if task != COMMAND else None  # Which changes with batchd alone.
    spec = {
        "is_named": args.name is not None,
        "task": list(task),
        "input": source.spec,
        "args": constants,
        "source": str(found) if found else "",
        "digest": tasks.source_digest(found),
        "cwd": str(cwd),
        "sys_path": sys_path,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "durability": args.durability,
        "command": shlex.join(["batchd", *sys.argv[1:]]),
    }
    return spec, key_of_spec(spec, is_fresh=args.start == "fresh")


def constant_args(pairs: list[str]) -> dict[str, Any]:
    """Return --arg K=V as keyword arguments; V is JSON if it reads as such, else text.

    >>> constant_args(["width=64", "mode=fast"])
    {'width': 64, 'mode': 'fast'}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--arg {pair}: write name=value")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def options_of(args: argparse.Namespace) -> Options:
    """Return what the command asks of the scheduler."""
    if args.retries < 0 or args.max_crashes < 1:
        raise UsageError("--retries must be 0 or more, --max-crashes 1 or more")
    failures_max, share_max = parse_share(args.max_failures) if args.max_failures else (None, None)
    return Options(
        workers=parse_workers(args.workers, cpus_usable()),
        allowances=Allowances(retries=args.retries, crashes_max=args.max_crashes),
        timeout_s=positive("--timeout", parse_duration(args.timeout)) if args.timeout else None,
        memory_bytes_max=job_memory("--memory-per-job", args.memory_per_job),
        failures_max=failures_max,
        failures_share_max=share_max,
        keep_going=args.keep_going,
    )


def positive(option: str, value: float) -> float:
    """Return the value, refusing one that no job could keep."""
    if value <= 0:
        raise UsageError(f"{option} must be more than 0")
    return value


def spec_of_name(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the specification of the batch that already has the name in `args`, if there is one."""
    folder = journal_folder(args.journal, os.environ)
    if not args.name or args.new or not (folder / "batches").is_dir():
        return None
    known = read_known(folder, choose_id(folder, args, {}))
    return dict(known["spec"]) if known else None


def choose_id(folder: Path, args: argparse.Namespace, spec: dict[str, Any]) -> str:
    """Return the id of the batch this command means: the same command means the same batch, `--new` another."""
    if args.name:
        identity: Any = ["name", args.name]
    elif is_stream(spec):
        identity = ["stream", os.urandom(8).hex()]  # Without a name nothing says that two inputs are one.
    else:
        identity = ["command", spec["task"], spec["input"], spec["args"]]
    base = batch_id(identity)
    numbers = [
        int(found.name.partition("-")[2] or 1)
        for found in (folder / "batches").glob(f"{base}*")
        if found.name == base or found.name.startswith(f"{base}-")
    ]
    number = max(numbers, default=0) + (1 if args.new or not numbers else 0)
    return base if number <= 1 else f"{base}-{number}"


def is_stream(spec: dict[str, Any]) -> bool:
    """Whether the input can be read only once: stdin, a pipe, a process substitution."""
    files = spec["input"].get("files", ())
    return spec["input"]["kind"] == "stdin" or any(not Path(name).is_file() for name in files)


def read_known(folder: Path, batch: str) -> dict[str, Any] | None:
    """Return what the journal knows of the batch, None when it knows nothing."""
    if not (folder / "batches" / batch).exists():
        return None
    journal = find_batch(folder, batch)
    facts = journal.facts
    known = {
        "spec": journal.spec,
        "size": facts.size,
        "done": facts.done.size,
        "is_sealed": facts.is_sealed,
        "is_finished": facts.is_finished,
        "is_cancelled": bool(facts.cancelled),
        "checkpoint": facts.checkpoint,
    }
    journal.close()
    return known


def check_same(known: dict[str, Any], spec: dict[str, Any], args: argparse.Namespace, batch: str) -> None:
    """Refuse to continue a batch whose code, Python, task or kind of input is another."""
    if not known["task"][0]:
        raise UsageError(
            f"batch {spec['name']} was made from Python, where it calls {known['task'][1]}: give it more input there "
            f"({known.get('command', '')}), finish it with `batchd retry {spec['name']}`, or use another --name"
        )
    if known["task"] != spec["task"] and not (known["task"][0].endswith(".py") and known["digest"] == spec["digest"]):
        raise UsageError(
            f"batch {spec['name']} runs {':'.join(known['task'])}, not {':'.join(spec['task'])}: "
            "use another --name, or --new"
        )
    if known["input"].get("kind") != spec["input"].get("kind") or known["args"] != spec["args"]:
        raise UsageError(
            f"batch {spec['name']} was started with other inputs, or another --arg or command: use another --name, "
            "or --new"
        )
    if known["python"] != spec["python"]:
        raise UsageError(
            f"batch {batch} was written by Python {known['python']}, this is {spec['python']}: its values may not "
            "read back; use that Python, or --new"
        )
    if known["digest"] != spec["digest"] and not args.accept_code:
        raise CodeChanged(
            f"{spec['source']} changed since batch {batch} was started: --accept-code continues with the new code "
            "(results that are there stay), --new starts again from the beginning"
        )


def accept_code(folder: Path, batch: str, known: dict[str, Any], digest: str) -> None:
    """Store that the batch goes on with code of this digest."""
    if known["digest"] != digest:
        request(folder, "accept_code", batch=batch, digest=digest)


def dry_run(args: argparse.Namespace, source: Source, spec: dict[str, Any]) -> int:
    """Show what would be run."""
    for hint in hints(args.inputs if not args.null else ()):
        print(f"batchd: {hint}", file=sys.stderr)
    count, blocks = source.count(), source.blocks()
    block = next(blocks, None)
    items = list(block.items[:3]) if block else []
    if count is None and not is_stream(spec):
        count = sum(len(each.items) for each in chain([block], blocks) if each)
    workers, why = workers_auto()
    if args.workers != "auto":
        workers, why = parse_workers(args.workers, cpus_usable()), f"-j {args.workers}"
    words = command_words(spec)
    if args.json:
        shown = [repr(item) for item in items]
        told = {"batchd": 1, "task": spec["task"], "jobs": count, "first": shown, "workers": workers}
        print(json.dumps({**told, "exec": [fill(words, item) for item in items]} if words else told))
        return 0
    if words:
        print(f"command  {shlex.join(words)}")
    else:
        print(f"task     {':'.join(spec['task'])}" + (f"  with {spec['args']}" if spec["args"] else ""))
    print(f"jobs     {'not known before the pipe is read' if count is None else f'{count:,}'}")
    for index, item in enumerate(items):
        print(f"job {index}    {visible_line(shlex.join(fill(words, item))) if words else repr(item):.100}")
    print(f"workers  {workers}: {why}")
    return 0
