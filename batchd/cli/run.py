"""`batchd run` and `batchd retry`: bring a batch to its end in the foreground, and say what became of it."""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from batchd.cli import summary
from batchd.cli.results import ResultStream, check_target, extend_path
from batchd.client import Session, batch_id, request
from batchd.client.world import check_python, key_of_spec, stored_key
from batchd.core.events import Options
from batchd.core.job import Allowances, JobState
from batchd.edge.folder import journal_folder, open_folder
from batchd.edge.gauges import cpus_usable, parse_workers, workers_auto
from batchd.edge.journal import BatchJournal
from batchd.edge.shelf import find_batch
from batchd.edge.template import KeySpec
from batchd.errors import BatchdError, CodeChanged, UsageError
from batchd.sources import Block, Checkpoint, Source, open_source
from batchd.units import parse_duration, parse_share, parse_size
from batchd.view import ProgressNews, View, make_view
from batchd.worker import task as tasks

_PUMP_S = 0.25


def run(args: argparse.Namespace) -> int:
    """`batchd run`: start or continue the batch this command means."""
    if args.name in {"", "last"}:
        raise UsageError(f"--name {args.name!r} cannot be asked for later: choose another")
    source = open_source(
        args.inputs,
        paths=args.paths,
        range_spec=args.range_spec,
        null=args.null,
        skip_bad_input=args.skip_bad_input,
        cost=args.cost,
    )
    spec, key_spec = describe(args, source, spec_of_name(args))
    options = options_of(args)
    check_target(args.out, [*args.inputs, spec.get("source")])
    if args.dry_run:
        return dry_run(args, source, spec)
    folder = open_folder(journal_folder(args.journal, os.environ))
    batch = choose_id(folder, args, spec)
    runner = Runner(folder, batch, args, options, key_spec)
    known = read_known(folder, batch)
    if known is None:
        return runner.run(spec, source.blocks(), already_done=0, source=source)
    check_same(known["spec"], spec, args, batch)
    accept_code(folder, batch, known["spec"], spec["digest"])
    if known["is_cancelled"]:
        raise UsageError(
            f"batch {batch} was cancelled: `batchd retry {batch} --cancelled` runs what is left, --new starts again"
        )
    behind = known["checkpoint"]
    blocks = source.blocks(checkpoint_of(behind))
    if is_stream(spec) and not known["is_finished"]:  # It may come slowly: what is left runs meanwhile.
        runner.note(f"continuing {batch}: {known['done']:,} of {known['size']:,} jobs were already done")
        return runner.run(spec, blocks, already_done=known["done"], source=source, behind=behind)
    first = next(blocks, None)  # Reads the earlier input again: refuses it if it changed.
    if first is None and known["is_finished"]:
        return runner.report_finished(known["size"])
    rest: Iterator[Block] | None = chain([first], blocks) if first is not None else blocks
    if first is None and known["is_sealed"]:
        rest = None
    runner.note(f"continuing {batch}: {known['done']:,} of {known['size']:,} jobs were already done")
    return runner.run(spec, rest, already_done=known["done"], source=source, behind=behind)


def retry(args: argparse.Namespace) -> int:
    """`batchd retry`: run a batch's failed, quarantined or cancelled jobs again."""
    chosen = {"failed": JobState.FAILED, "quarantined": JobState.QUARANTINED, "cancelled": JobState.CANCELLED}
    states = [state for name, state in chosen.items() if getattr(args, name)]
    if not states:
        raise UsageError("say which jobs: batchd retry BATCH --failed, --quarantined or --cancelled")
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    journal = find_batch(folder, args.batch)
    spec, batch = dict(journal.spec), journal.folder.name
    is_sealed, counts = journal.facts.is_sealed, dict(journal.facts.counts)
    key_spec, options = stored_key(journal, is_fresh=args.start == "fresh"), options_of(args)
    journal.close()
    jobs = sum(counts.get(state, 0) for state in states)
    named = " or ".join(name for name in chosen if getattr(args, name))
    if not jobs:
        print(f"batchd: {batch} has no {named} jobs: nothing to retry", file=sys.stderr)
        return 0
    if key_spec.payload:
        check_python(spec, batch)
    else:  # Who retries after mending the task means the mended one.
        digest = tasks.source_digest(Path(spec["source"]) if spec.get("source") else None)
        accept_code(folder, batch, spec, digest)
        spec["digest"] = digest
    told = request(folder, "reopen", batch=batch, states=[int(state) for state in states])
    if told["is_live"]:
        print(f"batchd: {jobs:,} {named} jobs of {batch} go back to the command that runs it", file=sys.stderr)
        return 0
    runner = Runner(folder, batch, args, options, key_spec)
    runner.note(f"retrying {jobs:,} {named} jobs of {batch}")
    if not is_sealed:
        runner.note("its input was not complete: run the original command to go on with that")
    return runner.run(spec, None, already_done=sum(counts.values()) - jobs)


class Runner:
    """One batch in the foreground: its session, what is drawn, what is written."""

    def __init__(
        self, folder: Path, batch: str, args: argparse.Namespace, options: Options, key_spec: KeySpec
    ) -> None:
        self._folder, self._batch, self._args = folder, batch, args
        self._options, self._key_spec = options, key_spec
        self._view: View | None = None
        self._signals = 0
        self._started = time.monotonic()
        self._is_opening = False
        self._stream: ResultStream | None = None

    def _open_stream(self) -> None:
        """Find out now whether results can be written, but only when it is sure that something will be."""
        if self._args.out:
            self._stream = ResultStream(self._args.out, self._folder / "batches" / self._batch)

    def note(self, text: str) -> None:
        """Say something that stays."""
        if self._view is not None:
            self._view.note(text)
        elif not self._args.quiet:
            print(f"batchd: {text}", file=sys.stderr)

    def run(
        self,
        spec: dict[str, Any],
        blocks: Iterator[Block] | None,
        *,
        already_done: int,
        source: Source | None = None,
        behind: str = "",
    ) -> int:
        """Run the batch to its end, or to an interruption; return the exit code. `blocks` begin `behind` that."""
        self._open_stream()
        session = Session(
            self._folder,
            self._batch,
            spec=spec,
            options=self._options,
            key_spec=self._key_spec,
            digest=spec["digest"],
            note=self.note,
        )
        try:
            with self._watch_signals() as wake_fd:
                self._is_opening = True
                session.open()
                self._is_opening = False
                used_before = dict(session.progress["usage"])
                title = spec.get("name") or self._batch
                total = session.progress["size"] if blocks is None else None
                self._view = make_view(quiet=self._args.quiet, as_json=self._args.json, title=title, total=total)
                if source is not None and blocks is not None:
                    now = session.progress["checkpoint"]
                    if now != behind:  # A command that was killed had more on its way than could be seen until now.
                        blocks = source.blocks(checkpoint_of(now))
                    session.feed(blocks)
                self._follow(session, wake_fd)
        except BaseException:
            self._keep_partial()
            raise
        finally:
            session.close()
            if self._view is not None:
                self._view.close()
                self._view = None
        if source is not None and source.skipped:
            self.note(f"{source.skipped:,} pieces of the input could not be read and were skipped (--skip-bad-input)")
        return self._finish(session, already_done, used_before)

    def report_finished(self, size: int) -> int:
        """Say that there is nothing to run; still write the results."""
        self._open_stream()
        self.note(f"{self._batch} is finished already: {size:,} jobs done, nothing to run (--new starts another)")
        return self._conclude({}, ran=0, already_done=size, is_interrupted=False)

    def _follow(self, session: Session, wake_fd: int) -> None:
        heard, is_leaving, more = 0, False, False
        while True:
            session.pump(0.0 if more else _PUMP_S, [wake_fd])
            drain_pipe(wake_fd)
            progress = session.progress
            if self._view is not None:
                self._view.update(ProgressNews.from_fields(progress))
            more = self._stream is not None and self._stream.advance(progress["prefix"], progress["generation"])
            if session.is_put_down:
                return
            if self._signals > heard:
                heard, is_leaving = self._signals, True
                self.note(
                    "stopping: running jobs may finish; again to end them" if heard == 1 else "ending running jobs"
                )
                if heard > 2 or (heard > 1 and progress["trouble"]):
                    return  # It cannot be put down now, because the disk is full or somebody is stuck.
                session.leave(at_once=heard > 1)
            elif not is_leaving and (session.is_over or session.input_error is not None):
                is_leaving = True
                session.leave(at_once=False)

    @contextmanager
    def _watch_signals(self) -> Iterator[int]:
        wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup, `&`
        before = {number: signal.signal(number, self._on_signal) for number in heeded}
        previous_fd = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        try:
            yield wake
        finally:
            signal.set_wakeup_fd(previous_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wake)
            os.close(wake_write)

    def _on_signal(self, *_: object) -> None:
        self._signals += 1
        if self._is_opening:  # Nothing runs yet, and what is being waited for may take long.
            raise KeyboardInterrupt

    def _finish(self, session: Session, already_done: int, used_before: dict[str, float]) -> int:
        error = session.input_error
        if error is not None:
            self._keep_partial()
            if isinstance(error, BatchdError):
                raise type(error)(f"{error} (what was read before it is kept: {self._batch} can be continued)")
            raise error
        progress = session.progress
        is_left = progress["done"] < progress["size"] or session.has_input
        is_interrupted = progress["state"] == "sealed" or (progress["state"] == "open" and is_left)
        ran = max(0, progress["done"] - already_done)
        usage = summary.usage_since(used_before, progress["usage"])
        return self._conclude(usage, ran, already_done, is_interrupted)

    def _conclude(self, usage: dict[str, float], ran: int, already_done: int, is_interrupted: bool) -> int:
        elapsed_s = time.monotonic() - self._started
        partial = self._write_results(is_interrupted)
        journal = BatchJournal(self._folder / "batches" / self._batch)
        try:
            extend_path(journal.spec)
            facts = journal.facts
            state = "interrupted" if is_interrupted else facts.state.value
            told: dict[str, Any] = {
                "elapsed_s": elapsed_s,
                "ran": ran,
                "already_done": already_done,
                "usage": usage,
                "state": state,
            }
            if self._args.json:
                print(json.dumps(summary.summary_fields(journal, **told)), flush=True)
            if not self._args.quiet and not self._args.json:
                print("\n".join(summary.summarise(journal, **told)), file=sys.stderr)
            failed = facts.done.size - facts.count(JobState.SUCCEEDED)
        finally:
            journal.close()
        unwritable = self._tell_unwritable()
        if partial:
            self.note(f"results so far are in {partial}")
        if is_interrupted:
            return 130 if self._signals > 1 else 4
        return 1 if failed or unwritable or state not in {"finished", "open"} else 0

    def _write_results(self, is_interrupted: bool) -> str:
        """Finish the results file; return the name of the partial one when it must stay that."""
        if self._stream is None:
            return ""
        self._stream.release()
        journal = BatchJournal(self._folder / "batches" / self._batch)
        made = journal.progress()
        journal.close()
        if is_interrupted or made.prefix < made.size:
            return self._keep_partial()
        self._stream.finish(made.prefix, made.generation)
        return ""

    def _keep_partial(self) -> str:
        return self._stream.abandon() if self._stream is not None else ""

    def _tell_unwritable(self) -> int:
        found = self._stream.unwritable if self._stream is not None else []
        for index, why in found[:5]:
            self.note(f"{self._batch}:{index} cannot be written as JSON: {why}")
        if len(found) > 5:
            self.note(f"and {len(found) - 5:,} more results cannot be written as JSON")
        return len(found)


# --- What the command means ----------------------------------------------------------------------------------------


def describe(
    args: argparse.Namespace, source: Source, known: dict[str, Any] | None
) -> tuple[dict[str, Any], KeySpec]:
    """Return the specification of the batch this command means, and how its workers start.

    A batch that is found by its name keeps the folder and the import path it was started with.
    """
    task = tasks.parse(args.task, Path.cwd())
    cwd = Path(known["cwd"]) if known else Path.cwd()
    sys_path = known["sys_path"] if known else [str(cwd), *(each for each in sys.path if each and each != str(cwd))]
    found = tasks.find_source(task, sys_path)
    spec = {
        "name": args.name or task.name,
        "is_named": args.name is not None,
        "task": list(task),
        "input": source.spec,
        "args": constant_args(args.arg),
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
        memory_bytes_max=int(positive("--memory-per-job", parse_size(args.memory_per_job)))
        if args.memory_per_job
        else None,
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
    path = folder / "batches" / batch
    if not path.exists():
        return None
    journal = BatchJournal(path)
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


def checkpoint_of(text: str) -> Checkpoint | None:
    """Return a reader checkpoint as the journal has it, None when nothing was read yet."""
    return Checkpoint.from_json(json.loads(text)) if text else None


def check_same(known: dict[str, Any], spec: dict[str, Any], args: argparse.Namespace, batch: str) -> None:
    """Refuse to continue a batch whose code, Python, task or kind of input is another."""
    if not known["task"][0]:
        raise UsageError(
            f"batch {spec['name']} was made from Python, where it calls {known['task'][1]}: go on with it there, "
            f"`batchd retry {spec['name']} --failed` here, or use another --name"
        )
    if known["task"] != spec["task"] and not (known["task"][0].endswith(".py") and known["digest"] == spec["digest"]):
        raise UsageError(
            f"batch {spec['name']} runs {':'.join(known['task'])}, not {':'.join(spec['task'])}: "
            "use another --name, or --new"
        )
    if known["input"].get("kind") != spec["input"].get("kind") or known["args"] != spec["args"]:
        raise UsageError(f"batch {spec['name']} was started with other inputs or --arg: use another --name, or --new")
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
    count = source.count()
    block = next(source.blocks(), None)
    items = list(block.items[:3]) if block else []
    workers, why = workers_auto()
    if args.workers != "auto":
        workers, why = parse_workers(args.workers, cpus_usable()), f"-j {args.workers}"
    if args.json:
        shown = [repr(item) for item in items]
        print(json.dumps({"batchd": 1, "task": spec["task"], "jobs": count, "first": shown, "workers": workers}))
        return 0
    print(f"task     {':'.join(spec['task'])}" + (f"  with {spec['args']}" if spec["args"] else ""))
    print(f"jobs     {'not known before the input is read' if count is None else f'{count:,}'}")
    for index, item in enumerate(items):
        print(f"job {index}    {item!r:.100}")
    print(f"workers  {workers}: {why}")
    return 0


def drain_pipe(fd: int) -> None:
    """Empty a wake-up pipe."""
    try:
        os.read(fd, 512)
    except BlockingIOError:
        pass
