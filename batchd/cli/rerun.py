"""`batchd rerun`: one job once more, here: in this process, in the foreground, recorded nowhere.

Nothing is written to the journal, and no supervisor hears of it. The one idea: the job's world is made as a worker
has it (folder, import path, environment, task, initializer), and all that is known is read before its code runs; so
the job may do whatever it does, print to the terminal, stop in a debugger, and take this process with it.
"""

import argparse
import bdb
import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from batchd.cli.answers import remark
from batchd.core.job import JobState
from batchd.edge.folder import journal_folder, open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.edge.shelf import find_job
from batchd.edge.stacks import cut_own_frames, users_part
from batchd.edge.template import KeySpec
from batchd.errors import FormatError, TaskError, UsageError
from batchd.formats import tables
from batchd.formats.segment import Block
from batchd.formats.values import load_input
from batchd.units import format_duration, visible_line
from batchd.worker.calls import Bundle, bind, load_bundle
from batchd.worker.context import CurrentJob, provide
from batchd.worker.inputs import BatchInputs
from batchd.worker.outcome import Outcomes as WorkerOutcomes
from batchd.worker.task import Task, source_digest
from batchd.worker.task import load as load_task

_RESULT_CHARS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Job:
    """One job as the journal has it."""

    folder: Path
    """Of its batch."""
    index: int
    spec: dict[str, Any]
    attempt: int
    """Of the execution that is being looked into; of the next one, when the job has no outcome."""
    story: str
    """What became of it."""
    first: int
    block: Block
    """The block that holds its input, and the block's first job."""
    note: bytes | None
    """The checkpoint it left last."""
    payload: bytes
    """The pickled task, when no name stands for it."""

    def __str__(self) -> str:
        return f"{self.folder.name}:{self.index}"


class _Ended(NamedTuple):
    """How it went this time."""

    value: Any
    error: BaseException | None
    has_returned: bool
    """It did, and yet there may be an error: what it returned cannot be kept."""
    elapsed_s: float


def rerun(args: argparse.Namespace) -> int:
    """`batchd rerun`: run one job again in the foreground; 0 when it returned, 1 when it raised."""
    folder = open_folder(journal_folder(args.journal, os.environ), create=False)
    job = _read(folder, args.job)
    for line in (job.story, *_differences(job.spec)):
        remark(line)
    bundle = _enter_world(job)
    remark(f"running {job} in this process, as attempt {job.attempt}: without limits, and nothing is recorded")
    ended = _run(job, bundle)
    code = _tell_json(job, ended) if args.json else _tell(job, ended)
    if args.pdb and ended.error is not None and not isinstance(ended.error, bdb.BdbQuit):
        import pdb  # noqa: PLC0415, T100  (what --pdb asks for)

        pdb.post_mortem(users_part(ended.error.__traceback__))
    return code


# --- Reading -------------------------------------------------------------------------------------------------------


def _read(folder: Path, text: str) -> _Job:
    """Read all there is to know about a job, and close the journal again: the job may open it too."""
    name, _, number = text.rpartition(":")
    if not name or not number.isdecimal():
        raise UsageError(f"{text!r} is not a job: write BATCH:INDEX, such as last:17")
    journal, index = find_job(folder, text)
    with closing(journal):
        if index is None:
            raise UsageError(f"{text!r} is a batch: write BATCH:INDEX, such as {text}:17")
        attempt, story = _became(journal, index)
        place, spec = journal.folder, dict(journal.spec)
    with closing(BatchInputs(place)) as inputs:
        first, block = inputs.block(index)
        payload = inputs.function(tables.TASK_MARK) if not spec["task"][0] else b""
        return _Job(place, index, spec, attempt, story, first, block, inputs.note(index), payload)


def _became(journal: BatchJournal, index: int) -> tuple[int, str]:
    """Return (the attempt to look into, what became of the job then)."""
    facts, outcomes, name = journal.facts, Outcomes(journal), f"{journal.folder.name}:{index}"
    span = next(outcomes.spans(facts.done, facts.generation, index, index + 1), None)
    if span is None:
        running = "; it may be running now" if facts.is_attached else ""
        return facts.histories.get(index).attempts + 1, f"{name} has no outcome yet{running}"
    if span.state is JobState.SUCCEEDED:
        return 1, f"{name} succeeded then"
    from batchd.joberrors import error_of  # noqa: PLC0415  (20 ms)

    try:
        failure = next(span.failures())[1]
    except FormatError as trouble:
        return 1, f"what became of {name} does not read back: {trouble}"
    # What it raised is not unpickled: that may import the task, which is to happen in its own world.
    error = error_of(journal.folder.name, index, span.state, failure._replace(exception=b""))
    return max(1, error.attempt), f"what happened then: {error}"


def _differences(spec: dict[str, Any]) -> list[str]:
    """Say what may make it go another way than then."""
    found = []
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if spec.get("python", here) != here:
        found.append(
            f"the batch was written by Python {spec['python']}, this is {here}: its values may not read back"
        )
    source = spec.get("source")
    if source and (not Path(source).is_file() or source_digest(Path(source)) != spec.get("digest")):
        found.append(f"{source} changed since: this runs the code as it is now")
    return found


# --- Running -------------------------------------------------------------------------------------------------------


class _Foreground:
    """The `Host` of the job: what it says is shown, what it leaves is kept as long as it runs."""

    def __init__(self, note: bytes | None) -> None:
        self._note = note

    def tell_progress(self, job: CurrentJob, fraction: float) -> None:
        """Show nothing: whoever watches sees what it prints."""

    def log(self, job: CurrentJob, text: str) -> None:  # noqa: ARG002  (there is one job only)
        """Show it."""
        remark(f"log: {text}")

    def keep(self, job: CurrentJob, payload: bytes) -> None:  # noqa: ARG002
        """Hold it for this run."""
        self._note = payload

    def kept(self, job: CurrentJob) -> bytes | None:  # noqa: ARG002
        """Return the last one, of this run or of the journal."""
        return self._note

    def is_ending(self, job: CurrentJob) -> bool:  # noqa: ARG002
        """Nobody ends it but the person in front of it."""
        return False


def _enter_world(job: _Job) -> Bundle:
    """Make this process what a worker of the batch is, and return what such a worker is prepared with."""
    spec, task = job.spec, Task(*job.spec["task"])
    os.environ.update(KeySpec((task.module, task.name), (), spec["cwd"], dict(os.environ), sys.executable).world())
    try:
        os.chdir(spec["cwd"])
    except OSError as error:
        raise TaskError(f"cannot enter {spec['cwd']}: {error.strerror}; jobs of the batch run there") from None
    is_same_python = spec.get("python") == f"{sys.version_info.major}.{sys.version_info.minor}"
    # Another Python's standard library must not come before this one's.
    both = [*spec["sys_path"], *sys.path] if is_same_python else [*sys.path, *spec["sys_path"]]
    sys.path[:] = dict.fromkeys(both)
    sys.argv[:] = ["batchd-worker"]
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(
            line_buffering=True
        )  # Nearly as in a worker: what a job printed before its death is seen.
    faulthandler.enable(all_threads=True)
    return load_bundle(job.payload) if task.is_pickled else Bundle(load_task(task))


def _run(job: _Job, bundle: Bundle) -> _Ended:
    current = CurrentJob(job.folder.name, job.index, job.attempt, _Foreground(job.note))
    take_back = provide(lambda: current)
    pid, began, value, error, has_returned = os.getpid(), perf_counter(), None, None, False
    try:
        bundle.prepare()
        began = perf_counter()
        value = bind(job.spec, bundle.task, lambda mark: _function(job.folder, mark))(_input(job))
        has_returned = True
        # As in a worker: a result that cannot be kept is a failure of the job.
        WorkerOutcomes(_nowhere, str).admit(job.index, value)
    except BaseException as raised:
        error = raised
    finally:
        elapsed_s = perf_counter() - began
        take_back()
        if os.getpid() != pid:
            os._exit(0)  # A child that the job forked came back with it: it has nothing to say here.
    return _Ended(value, error, has_returned, elapsed_s)


def _input(job: _Job) -> Any:
    """Decode the input of this job alone. Raises what its own code raises."""
    at = job.index - job.first
    return load_input(job.block.separate()[at]) if job.block.is_separate else job.block.plain()[at]


def _function(folder: Path, mark: bytes) -> bytes:
    with closing(BatchInputs(folder)) as inputs:
        return inputs.function(mark)


def _nowhere(frames: list[bytes]) -> None:
    """Take a report that nobody reads."""


# --- Telling -------------------------------------------------------------------------------------------------------


def _tell(job: _Job, ended: _Ended) -> int:
    sys.stdout.flush()
    took = format_duration(ended.elapsed_s) if ended.elapsed_s >= 0.001 else "less than 1 ms"
    if ended.error is None:
        text = _text_of(ended.value, repr)
        print(text if len(text) <= _RESULT_CHARS_MAX else f"{text[:_RESULT_CHARS_MAX]}…", flush=True)
        remark(f"{job} returned after {took}")
    elif isinstance(ended.error, bdb.BdbQuit):
        remark(f"{job} was left in the debugger after {took}")
    else:
        print(_traceback_of(ended.error), end="", file=sys.stderr)
        how = f"raised {visible_line(type(ended.error).__name__)}"
        if isinstance(ended.error, KeyboardInterrupt):
            how = "was stopped"
        elif ended.has_returned:
            how = "returned what cannot be kept"
        remark(f"{job} {how} after {took}")
    return _code_of(ended)


def _tell_json(job: _Job, ended: _Ended) -> int:
    error = ended.error
    told: dict[str, Any] = {
        "batchd": 1,
        "batch": job.folder.name,
        "index": job.index,
        "attempt": job.attempt,
        "state": "succeeded" if error is None else "failed",
        "elapsed_s": round(ended.elapsed_s, 6),
        "result": _text_of(ended.value, repr) if error is None else None,
        "error": None,
    }
    if error is not None:
        told["error"] = {"type": type(error).__name__, "message": _text_of(error), "traceback": _traceback_of(error)}
    print(json.dumps(told), flush=True)
    return _code_of(ended)


def _code_of(ended: _Ended) -> int:
    if isinstance(ended.error, KeyboardInterrupt):
        return 130
    return 0 if ended.error is None else 1


def _traceback_of(error: BaseException) -> str:
    lines = traceback.format_exception(error.with_traceback(users_part(error.__traceback__)))
    return cut_own_frames("".join(lines))


def _text_of(value: Any, text: Callable[[Any], str] = str) -> str:
    try:
        return text(value)
    except Exception as error:
        return f"<{type(value).__name__} whose {text.__name__} raised {type(error).__name__}>"
