"""What Python code is told of a job that did not succeed: the classes, their text, and what survives a pickle."""

import concurrent.futures
import pickle
import signal
import traceback
from collections import deque
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import batchd
from batchd.core.job import JobState
from batchd.edge.folder import open_folder
from batchd.errors import BatchdError
from batchd.formats.report import Failure
from batchd.joberrors import (
    JobCancelled,
    JobCrashed,
    JobError,
    JobFailed,
    JobInterrupted,
    JobOverMemory,
    JobTimeout,
    JobUnreadable,
    RemoteTraceback,
    card,
    error_of,
    input_text,
    original_of,
    rerun_command,
    traceback_of,
)
from tests.jobs import TwoArguments

LOOP = Path(batchd.__file__).parent / "worker/main.py"
DUMP = f"""\
Fatal Python error: Segmentation fault

Current thread 0x00007f584d9f1b80 (most recent call first):
  File "/home/ann/jobs.py", line 3 in inner
  File "/home/ann/jobs.py", line 6 in work
  File "{LOOP}", line 144 in _run

Extension modules: lmdb.cpython (total: 1)
"""
TRACEBACK = (
    'Traceback (most recent call last):\n  File "/home/ann/jobs.py", line 6, in work\nValueError: no such colour\n'
)
CRASH = Failure("JobCrashed", "killed by SIGSEGV", b"", f"row 7\n{DUMP}", {"attempt": 2, "pid": 77, "signal": 11})
EXIT = Failure("JobCrashed", "exited with code 3 before finishing", b"", "", {"pid": 77, "exit_code": 3})
TIMEOUT = Failure("JobTimeout", "timed out after 2.0 s", b"", f"slow\n{DUMP}", {"attempt": 1, "pid": 7, "signal": 9})
MEMORY = Failure("JobOverMemory", "memory 5.1G > 4G (memory per job)", b"", "", {"signal": 9})
INTERRUPTED = Failure("JobInterrupted", "was running at 5 deaths of the supervisor in a row", b"")
CANCELLED = Failure("Cancelled", "cancelled", b"")
FAILED = Failure(
    "ValueError", "no such colour", b"", "reading\n", {"attempt": 3}, pickle.dumps(ValueError("no such colour"))
)
UNREADABLE = Failure("batchd.errors.InputUnreadable", "could not unpickle the input: KeyError: 3", b"")
EVERY = [
    (JobState.QUARANTINED, CRASH, JobCrashed, BrokenProcessPool),
    (JobState.FAILED, TIMEOUT, JobTimeout, TimeoutError),
    (JobState.FAILED, MEMORY, JobOverMemory, MemoryError),
    (JobState.QUARANTINED, INTERRUPTED, JobInterrupted, JobError),
    (JobState.CANCELLED, CANCELLED, JobCancelled, concurrent.futures.CancelledError),
    (JobState.FAILED, FAILED, JobFailed, JobError),
    (JobState.FAILED, UNREADABLE, JobUnreadable, BrokenProcessPool),
]


class Leaves:
    """It ends whoever reads it."""

    def __reduce__(self) -> Any:
        return exit_now, ()


def exit_now() -> None:
    raise SystemExit(5)


# --- Which class, and what it carries --------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "failure", "kind", "standard"), EVERY, ids=[each[2].__name__ for each in EVERY])
def test_each_cause_has_its_class(
    state: JobState, failure: Failure, kind: type[JobError], standard: type[Exception]
) -> None:
    error = error_of("abc", 3, state, failure, TRACEBACK)
    assert type(error) is kind is getattr(batchd, kind.__name__)
    assert isinstance(error, JobError)
    assert isinstance(error, BatchdError)
    assert isinstance(error, standard)
    assert (error.batch, error.index, error.exit_code) == ("abc", 3, 1)
    assert error.attempt == failure.details.get("attempt", 0)


@pytest.mark.parametrize(("state", "failure"), [each[:2] for each in EVERY], ids=[each[2].__name__ for each in EVERY])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_keeps_what_is_known(state: JobState, failure: Failure, protocol: int) -> None:
    error = error_of("abc", 3, state, failure, TRACEBACK, "'row 7'", rerun="batchd rerun abc:3")
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is type(error)
    assert (str(copy), repr(copy), vars(copy)) == (str(error), repr(error), vars(error))
    assert copy.cause


def test_a_crash_is_told_by_its_signal_or_its_exit_code() -> None:
    crash, end = (error_of("abc", 3, JobState.QUARANTINED, failure) for failure in (CRASH, EXIT))
    assert isinstance(crash, JobCrashed)
    assert isinstance(end, JobCrashed)
    assert (crash.signal, crash.exitcode, crash.pid, crash.attempt) == (signal.SIGSEGV, None, 77, 2)
    assert (end.signal, end.exitcode, end.pid, end.attempt) == (None, 3, 77, 0)
    assert (crash.cause, end.cause) == ("killed by SIGSEGV", "exited with code 3 before finishing")


def test_the_stack_is_cut_out_of_the_output() -> None:
    for state, failure, printed in ((JobState.QUARANTINED, CRASH, "row 7\n"), (JobState.FAILED, TIMEOUT, "slow\n")):
        error = error_of("abc", 3, state, failure)
        assert isinstance(error, JobCrashed | JobTimeout)
        assert error.output == printed
        assert error.stack.splitlines() == [
            '  File "/home/ann/jobs.py", line 3 in inner',
            '  File "/home/ann/jobs.py", line 6 in work',
        ]


def test_a_dump_that_the_job_survived_is_not_the_stack_of_its_death() -> None:
    killed = CRASH._replace(details={"signal": int(signal.SIGKILL)})
    error = error_of("abc", 3, JobState.QUARANTINED, killed)
    assert isinstance(error, JobCrashed)
    assert (error.stack, error.output) == ("", f"row 7\n{DUMP}")


def test_a_quarantined_job_without_a_record_is_a_crash() -> None:
    error = error_of("abc", 3, JobState.QUARANTINED, Failure("Quarantined", "quarantined", bytes(8)))
    assert type(error) is JobCrashed
    assert str(error) == "job abc:3: quarantined"


def test_a_failure_that_is_named_like_a_cause_is_still_a_failure() -> None:
    error = error_of("abc", 3, JobState.FAILED, Failure("batchd.joberrors.JobCrashed", "job xyz:1: killed", b""))
    assert type(error) is JobFailed


# --- What the job raised ---------------------------------------------------------------------------------------


def test_what_was_raised_is_the_cause_and_its_cause_the_traceback() -> None:
    error = error_of("abc", 3, JobState.FAILED, FAILED, TRACEBACK)
    assert error.cause == "raised ValueError: no such colour"
    assert isinstance(error, JobFailed)
    assert (error.traceback, error.output) == (TRACEBACK, "reading\n")
    original = error.__cause__
    assert type(original) is ValueError
    assert original.args == ("no such colour",)
    assert isinstance(original.__cause__, RemoteTraceback)
    assert str(original.__cause__) == f'\n"""\n{TRACEBACK}"""'
    shown = "".join(traceback.format_exception(error))
    assert shown.count('File "/home/ann/jobs.py", line 6, in work') == 1
    assert shown.splitlines()[-3:] == [
        "batchd.joberrors.JobFailed: job abc:3, attempt 3: raised ValueError: no such colour",
        "  last lines it printed:",
        "    | reading",
    ]


def test_the_traceback_looks_as_the_standard_librarys_does() -> None:
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        theirs = pool.submit(int, "x").exception(30)
    ours = original_of(Failure("ValueError", "no", b"", exception=pickle.dumps(ValueError("no"))), "Traceback\n")
    assert ours is not None
    assert theirs is not None
    lines, their_lines = str(ours.__cause__).splitlines(), str(theirs.__cause__).splitlines()
    assert (lines[:2], lines[-1]) == (their_lines[:2], their_lines[-1]) == (["", '"""'], '"""')


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"garbage",
        pickle.dumps("no exception"),
        b"\x80\x05cno_such_module\nThing\n.",
        pickle.dumps(TwoArguments(1, 2)),
        pickle.dumps(Leaves()),
    ],
    ids=["none", "garbage", "a str", "unknown class", "unreadable", "leaves"],
)
def test_what_does_not_read_back_leaves_the_traceback(payload: bytes) -> None:
    failure = FAILED._replace(exception=payload)
    assert original_of(failure, TRACEBACK) is None
    error = error_of("abc", 3, JobState.FAILED, failure, TRACEBACK)
    assert type(error) is JobFailed
    assert isinstance(error.__cause__, RemoteTraceback)
    assert TRACEBACK in str(error.__cause__)


def test_a_value_that_did_not_read_back_has_the_traceback_too() -> None:
    error = error_of("abc", 3, JobState.FAILED, UNREADABLE, "Traceback:\nbatchd.errors.InputUnreadable: of another\n")
    assert str(error) == "job abc:3: could not unpickle the input: KeyError: 3"
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "InputUnreadable: could not unpickle the input: KeyError: 3" in str(error.__cause__)


def test_a_traceback_is_shown_without_batchds_own_frames() -> None:
    own = f'  File "{LOOP}", line 144, in call\n    call(item)\n'
    text = TRACEBACK.replace("  File", f"{own}  File", 1)
    assert traceback_of(FAILED, text) == TRACEBACK


@pytest.mark.parametrize(
    ("kind", "message", "told", "expected"),
    [
        ("ValueError", "no such colour", TRACEBACK, TRACEBACK),
        ("ValueError", "mauve", TRACEBACK, TRACEBACK.replace("no such colour", "mauve")),
        ("ValueError", "no such colour at all", TRACEBACK, TRACEBACK.replace("colour", "colour at all")),
        ("ValueError", "", TRACEBACK, TRACEBACK.replace(": no such colour", "")),
        ("ValueError", "mauve", "", "ValueError: mauve\n"),
        ("KeyboardInterrupt", "", "", "KeyboardInterrupt\n"),
        ("ValueError", "no such colour", f"{TRACEBACK}a note\n", f"{TRACEBACK}a note\n"),
        ("ValueError", "mauve", f"{TRACEBACK}a note\n", TRACEBACK.replace("no such colour", "mauve")),
        ("__main__.Refused", "b", "Traceback:\nRefused: a\n", "Traceback:\nRefused: b\n"),
        ("__main__.Refused", "a", "Traceback:\nRefused: a\n", "Traceback:\nRefused: a\n"),
        ("SyntaxError", "bad (x.py, line 1)", "Traceback:\nSyntaxError: bad\n", "Traceback:\nSyntaxError: bad\n"),
        ("ExceptionGroup", "b (1 sub-exception)", "  | ExceptionGroup: a\n", "  | ExceptionGroup: a\n"),
    ],
)
def test_a_traceback_told_of_another_job_gets_this_ones_message(
    kind: str, message: str, told: str, expected: str
) -> None:
    assert traceback_of(Failure(kind, message, b""), told) == expected


def test_of_a_chain_only_the_last_error_gets_the_message() -> None:
    chain = f"{TRACEBACK}\nThe above exception was the direct cause of the following exception:\n\n{TRACEBACK}"
    told = traceback_of(Failure("ValueError", "mauve", b""), chain)
    assert told == chain[: -len("no such colour\n")] + "mauve\n"


# --- Cards -----------------------------------------------------------------------------------------------------


def test_the_card_of_a_crash_says_all_there_is() -> None:
    error = error_of("abc", 3, JobState.QUARANTINED, CRASH, "", "'row 7'", rerun="batchd rerun abc:3")
    assert str(error).splitlines() == [
        "job abc:3, attempt 2: killed by SIGSEGV",
        "  input: 'row 7'",
        "  last lines it printed:",
        "    | row 7",
        "  Python stack, innermost call first:",
        '    File "/home/ann/jobs.py", line 3 in inner',
        '    File "/home/ann/jobs.py", line 6 in work',
        "  to run it again in the foreground: batchd rerun abc:3",
    ]
    assert repr(error) == "JobCrashed('job abc:3, attempt 2: killed by SIGSEGV')"


def test_a_card_is_bounded_and_keeps_what_matters() -> None:
    printed = "".join(f"line {n}\n" for n in range(50)) + "x" * 5000
    deep = "".join(f'  File "/home/ann/jobs.py", line {n} in deep\n' for n in range(80))
    dump = DUMP.replace('  File "/home/ann/jobs.py", line 3 in inner\n', deep)
    error = error_of("abc", 3, JobState.QUARANTINED, CRASH._replace(output=f"{printed}\n{dump}"))
    lines = card(error, lines_max=3)
    assert lines[1:4] == ["  last lines it printed:", "    | line 48", "    | line 49"]
    assert lines[4].startswith("    | xxxx")
    assert lines[4].endswith("…")
    assert lines[6].endswith("line 0 in deep")
    assert lines[9:] == ["    and 78 more"]
    assert max(map(len, lines)) < 260
    assert len(card(error)) < 35
    assert len(card(error, lines_max=None)) == 1 + 1 + 51 + 1 + 81


def test_a_card_cannot_steer_a_terminal() -> None:
    steering = CRASH._replace(message="\x1b[2Jgone", output="\x1b[31mred\a\n")
    error = error_of("abc", 3, JobState.QUARANTINED, steering, "", "'\x1b[0m'")
    assert "\x1b" not in str(error)
    assert "\a" not in str(error)
    assert error.output == "\x1b[31mred\a\n"


def test_the_first_line_is_short_whatever_was_raised() -> None:
    error = error_of("abc", 3, JobState.FAILED, Failure("ValueError", "x" * 1000 + "\nmore", b""))
    first, *rest = str(error).splitlines()
    assert (len(first) < 300, rest) == (True, [])
    assert error.cause.endswith("x\nmore")


def test_an_error_made_by_hand_has_its_words() -> None:
    for kind in (JobError, JobFailed, JobCrashed, JobTimeout, JobOverMemory, JobCancelled, JobInterrupted):
        error = kind("in words")
        assert (str(error), error.args, error.index, error.attempt) == ("in words", ("in words",), -1, 0)
        assert str(pickle.loads(pickle.dumps(error))) == "in words"
        assert type(kind.__new__(kind, *error.args)) is kind  # As pickles are read that keep tracebacks (tblib).


@pytest.mark.parametrize(
    ("spec", "value", "text"),
    [
        ({}, 3, "3"),
        ({"call": "one"}, {"row": [1, 2]}, "{'row': [1, 2]}"),
        ({"call": "star"}, (2, "x"), "(2, 'x')"),
        ({"call": "calls"}, (b"m", (), None), "()"),
        ({"call": "calls"}, (b"m", (1,), {}), "(1)"),
        ({}, deque(["two\nlines"]), "deque(['two\\nlines'])"),
    ],
)
def test_an_input_is_shown_as_it_was_given(spec: dict[str, Any], value: Any, text: str) -> None:
    assert input_text(spec, value) == text


class Table:
    def __repr__(self) -> str:
        return "a b\n1 2"


@pytest.mark.parametrize("value", ["x" * 10**7, b"x" * 10**7, list(range(10**6)), 10**4000, {"k": "v" * 10**6}])
def test_a_large_input_is_shown_in_part(value: Any) -> None:
    text = input_text({}, value)
    assert 50 < len(text) <= 200
    assert "..." in text or "…" in text


def test_an_input_is_shown_in_one_line() -> None:
    assert input_text({}, Table()) == "a b 1 2"


def test_the_command_names_the_journal_unless_it_is_the_one_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_folder(tmp_path / "a journal")
    monkeypatch.setenv("BATCHD_JOURNAL", str(folder))
    assert rerun_command(folder, "abc", 3) == "batchd rerun abc:3"
    monkeypatch.setenv("BATCHD_JOURNAL", str(tmp_path / "another"))
    assert rerun_command(folder, "abc", 3) == f"batchd rerun abc:3 --journal '{folder}'"
