"""What Python code is given for a job that did not succeed: one class a cause, each a card that a person can act on.

Errors of batchd itself are in errors.py; nothing here reads a journal or runs a job. The one idea: an error carries
all that is known of the job as attributes, and its text is made of them, so it reads the same in a traceback, in a
log, and after it was pickled into another process.
"""

import shlex
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from reprlib import Repr
from typing import Any, Final, Self

from batchd.core.job import JobState
from batchd.edge.stacks import cut_own_frames, split_dump, stack_of
from batchd.errors import BatchdError, InputUnreadable, ResultUnreadable
from batchd.formats.report import Failure
from batchd.formats.values import load
from batchd.settings import MESSAGE_CHARS_MAX
from batchd.units import visible
from batchd.worker.calls import CALLS

INPUT_CHARS_MAX: Final = 200
_LINES_MAX: Final = 12
"""Of the output and of the stack, a card shows so many lines."""
_LINE_CHARS_MAX: Final = 240
_LEAVE_STACKS: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT})
"""The deaths that faulthandler sees; a dump before any other is of something that the job survived."""


class JobError(BatchdError):
    """A job that did not succeed.

    >>> error = JobError("it is told in words")
    >>> error.batch, error.index, error.cause = "abc", 3, "cancelled"
    >>> print(error)
    job abc:3: cancelled
    """

    exit_code = 1

    batch: str = ""
    """The batch's id."""
    index: int = -1
    """Which job of it."""
    attempt: int = 0
    """Which attempt, from 1; 0 when that is not known."""
    cause: str = ""
    """In words: `killed by SIGSEGV`, `raised ValueError: no such colour`, `timed out after 2.0 s`."""
    output: str = ""
    """The last lines it printed."""
    input_repr: str = ""
    """Its input as text, when whoever made the error knew it."""
    rerun: str = ""
    """The command that runs it again in the foreground, '' for a job whose journal is thrown away."""

    is_thrown_away: bool = False
    """Whether its worker died, or was ended, and its journal will not be there to look for the cause."""

    def __str__(self) -> str:
        return "\n".join(card(self)) if self.cause else super().__str__()


class JobFailed(JobError):
    """A job that raised. `__cause__` is what it raised, when that reads back here, else the worker's traceback.

    >>> import batchd
    >>> (error,) = batchd.map(int, ["many"], on_error="return", workers=1)
    >>> type(error.__cause__), error.cause
    (<class 'ValueError'>, "raised ValueError: invalid literal for int() with base 10: 'many'")
    """

    traceback: str = ""
    """The worker's traceback."""


class JobCrashed(JobError, BrokenProcessPool):
    """A job that took its worker with it. Either `signal` or `exitcode` says how, the other is None.

    >>> import batchd, os
    >>> (error,) = batchd.map(os._exit, [3], on_error="return", workers=1, crashes_max=1)
    >>> error.exitcode, error.signal
    (3, None)
    """

    signal: int | None = None
    exitcode: int | None = None
    pid: int = 0
    """The worker's."""
    stack: str = ""
    """The Python stack at death, the innermost call first, '' when nothing could print it."""


class JobTimeout(JobError, TimeoutError):
    """A job that took longer than it was given.

    >>> import batchd, time
    >>> (error,) = batchd.map(time.sleep, [60], on_error="return", workers=1, timeout=0.1)
    >>> isinstance(error, TimeoutError), error.cause.partition(" after ")[0]
    (True, 'timed out')
    """

    stack: str = ""
    """Where it was then, the innermost call first."""


class JobOverMemory(JobError, MemoryError):
    """A job that took more memory than it was given.

    >>> import batchd, time
    >>> with batchd.Executor(1, memory_per_job=200 << 20) as executor:
    ...     error = executor.submit(lambda: (b"x" * (300 << 20), time.sleep(60))).exception()
    >>> type(error).__name__, isinstance(error, MemoryError), " > 200M " in error.cause
    ('JobOverMemory', True, True)
    """

    def __new__(cls, *args: object) -> Self:
        """Make it as Python does. MemoryError's, which would be found by this name, refuses."""
        return Exception.__new__(cls, *args)


class JobCancelled(JobError, CancelledError):
    """A job that was cancelled before it had an outcome.

    >>> import time
    >>> batch = client.submit_batch(time.sleep, [60, 60])
    >>> batch.cancel()
    >>> [isinstance(error, JobCancelled) for error in batch.results(on_error="return")]
    [True, True]
    """


class JobInterrupted(JobError):
    """A job that was running too often when the supervisor or the machine died.

    It may be what kills them, so it is quarantined: `batchd retry --quarantined` or `Batch.retry` runs it again.

    >>> failure = Failure("JobInterrupted", "was running at 5 deaths of the supervisor in a row", b"")
    >>> error_of("abc", 3, JobState.QUARANTINED, failure)
    JobInterrupted('job abc:3: was running at 5 deaths of the supervisor in a row')
    """


class JobUnreadable(JobError, BrokenProcessPool):
    """A job whose input or result could not be unpickled where it was wanted.

    >>> import batchd
    >>> class Unpacked:
    ...     def __reduce__(self):
    ...         return int, ("many",)  # What unpickling calls.
    >>> (error,) = batchd.map(str, [Unpacked()], on_error="return", workers=1)
    >>> print(error.cause)
    could not unpickle the input: ValueError: invalid literal for int() with base 10: 'many'
    """


class RemoteTraceback(Exception):
    r"""The traceback of another process, for a traceback of this one to show as the cause.

    >>> str(RemoteTraceback("Traceback ...\nKeyError: 3")).splitlines()[2:3]
    ['Traceback ...']
    """

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def error_of(
    batch: str,
    index: int,
    state: JobState,
    failure: Failure,
    traceback_text: str = "",
    input_repr: str = "",
    *,
    rerun: str = "",
) -> JobError:
    """Return the error that tells of a job which did not succeed. Unpickles what it raised: for clients only.

    >>> error_of("abc", 3, JobState.QUARANTINED, Failure("JobCrashed", "killed by SIGKILL", b"", "hello"), "", "7")
    JobCrashed('job abc:3: killed by SIGKILL')
    """
    error = _kind_of(state, failure.type)()
    error.batch, error.index, error.cause = batch, index, _cause_of(error, failure)
    error.attempt = int(failure.details.get("attempt", 0))
    error.output, error.input_repr, error.rerun = failure.output, input_repr, rerun
    if isinstance(error, JobCrashed):
        error.signal, error.exitcode = failure.details.get("signal"), failure.details.get("exit_code")
        error.pid = int(failure.details.get("pid", 0))
    if isinstance(error, JobTimeout) or (isinstance(error, JobCrashed) and error.signal in _LEAVE_STACKS):
        error.output, dump = split_dump(failure.output)
        error.stack = stack_of(dump)
    if isinstance(error, JobFailed):
        error.traceback = traceback_of(failure, traceback_text)
        error.__cause__ = original_of(failure, traceback_text) or RemoteTraceback(error.traceback)
    if isinstance(error, JobUnreadable):
        error.__cause__ = RemoteTraceback(traceback_of(failure, traceback_text))
    error.args = (_heading(error),)
    return error


def cancellation(batch: str, index: int) -> JobCancelled:
    """Return the error of a job that was cancelled before it began.

    >>> cancellation("abc", 3)
    JobCancelled('job abc:3: cancelled')
    """
    error = JobCancelled()
    error.batch, error.index, error.cause = batch, index, "cancelled"
    error.args = (_heading(error),)
    return error


def original_of(failure: Failure, traceback_text: str = "") -> BaseException | None:
    """Return what the job raised, with the worker's traceback as its cause; None when it does not read back here.

    >>> import pickle
    >>> original_of(Failure("ValueError", "no", b"", exception=pickle.dumps(ValueError("no"))))
    ValueError('no')
    """
    if not failure.exception:
        return None
    try:
        original = load(failure.exception)
    except (Exception, SystemExit):  # Its own code runs, and here may lack what it had in the worker.
        return None
    if not isinstance(original, BaseException):
        return None
    original.__cause__ = RemoteTraceback(traceback_of(failure, traceback_text))
    return original


def traceback_of(failure: Failure, told: str = "") -> str:
    r"""Return the worker's traceback of this very failure, without batchd's own frames.

    `told` is that of the first job which failed at the same place: this one may have had something else to say.

    >>> print(traceback_of(Failure("KeyError", "'b'", b""), "Traceback ...\n  File ...\nKeyError: 'a'\n"), end="")
    Traceback ...
      File ...
    KeyError: 'b'
    """
    own = f"{failure.type}: {failure.message}" if failure.message else failure.type
    text = cut_own_frames(told)
    short = failure.type.removeprefix("__main__.")  # As tracebacks have it.
    lines = text.splitlines(keepends=True)
    at = max((at for at, line in enumerate(lines) if line.rstrip("\n").partition(":")[0] == short), default=-1)
    if at < 0:
        return text or f"{own}\n"
    last, expected = "".join(lines[at:]).rstrip("\n"), own.removeprefix("__main__.")
    is_same = last == expected or last.startswith(f"{expected}\n") or expected.startswith(f"{last} (")
    if is_same or len(failure.message) >= MESSAGE_CHARS_MAX:
        return text
    return "".join((*lines[:at], f"{expected}\n"))


def card(error: JobError, *, lines_max: int | None = _LINES_MAX) -> list[str]:
    r"""Return all that is known of a job which did not succeed, in lines, the first of which says what happened.

    >>> failure = Failure("JobCrashed", "killed by SIGKILL", b"", "half way\n", {"attempt": 2, "signal": 9})
    >>> print(*card(error_of("abc", 3, JobState.QUARANTINED, failure, rerun="batchd rerun abc:3")), sep="\n")
    job abc:3, attempt 2: killed by SIGKILL
      last lines it printed:
        | half way
      to run it again in the foreground: batchd rerun abc:3
    """
    return list(_card_lines(error, lines_max))


def input_text(spec: Mapping[str, Any], value: Any, chars_max: int = INPUT_CHARS_MAX) -> str:
    """Return the input of a job of the batch as people read it, cut to so many characters. Runs its own `repr`.

    >>> input_text({}, "abc"), input_text({"call": "calls"}, (b"mark", (2, "x"), {"key": 3}))
    ("'abc'", "(2, 'x', key=3)")
    """
    short = Repr()
    short.maxlevel = 4
    short.maxstring = short.maxother = short.maxlong = chars_max
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = short.maxdeque = 20
    if spec.get("call") == CALLS:
        _, args, kwargs = value
        parts = [*map(short.repr, args), *(f"{name}={short.repr(each)}" for name, each in (kwargs or {}).items())]
        text = f"({', '.join(parts)})"
    else:
        text = short.repr(value[: 2 * chars_max] if type(value) is bytes else value)
    text = " ".join(text.split("\n"))  # Tables and arrays have several lines.
    return text if len(text) <= chars_max else f"{text[: chars_max - 1]}…"


def rerun_command(folder: Path, batch: str, index: int) -> str:
    """Return the command that runs a job of the journal in `folder` again in the foreground.

    >>> rerun_command(Path("/no/such"), "abc", 3)
    'batchd rerun abc:3 --journal /no/such'
    """
    from batchd.edge.shelf import is_default  # noqa: PLC0415  (loads lmdb; to catch an error takes none)

    options = () if is_default(folder) else ("--journal", str(folder))
    return shlex.join(["batchd", "rerun", f"{batch}:{index}", *options])


def _kind_of(state: JobState, type_name: str) -> type[JobError]:
    if state is JobState.CANCELLED:
        return JobCancelled
    kinds = {kind.__name__: kind for kind in (JobCrashed, JobTimeout, JobOverMemory, JobInterrupted)}
    if type_name in {f"{kind.__module__}.{kind.__qualname__}" for kind in (InputUnreadable, ResultUnreadable)}:
        return JobUnreadable
    # A quarantined job without a record of how it died took its worker with it all the same.
    return kinds.get(type_name, JobCrashed if state is JobState.QUARANTINED else JobFailed)


def _cause_of(error: JobError, failure: Failure) -> str:
    if isinstance(error, JobFailed):
        return f"raised {failure.type}: {failure.message}" if failure.message else f"raised {failure.type}"
    return failure.message


def _heading(error: JobError) -> str:
    attempt = f", attempt {error.attempt}" if error.attempt else ""
    first = visible(error.cause.partition("\n")[0])
    return f"job {error.batch}:{error.index}{attempt}: {_bounded(first)}"


def _card_lines(error: JobError, lines_max: int | None) -> Iterator[str]:
    yield _heading(error)
    if error.input_repr:
        yield f"  input: {visible(error.input_repr)}"
    printed = [_bounded(visible(line)) for line in error.output.rstrip().splitlines()]
    if printed:
        yield "  last lines it printed:"
        yield from (f"    | {line}" for line in printed[-(lines_max or len(printed)) :])
    stack = getattr(error, "stack", "").splitlines()
    if stack:
        shown = stack[:lines_max]
        yield "  Python stack, innermost call first:"
        yield from (f"  {visible(line)}" for line in shown)
        if len(stack) > len(shown):
            yield f"    and {len(stack) - len(shown)} more"
    if error.rerun:
        yield f"  to run it again in the foreground: {error.rerun}"
    elif error.is_thrown_away:
        yield "  to run it again in the foreground: with name= or journal= its journal is kept for `batchd rerun`"


def _bounded(line: str) -> str:
    return line if len(line) <= _LINE_CHARS_MAX else f"{line[: _LINE_CHARS_MAX - 1]}…"
