"""Stacks as people see them: the dump that a death leaves, and tracebacks, both without batchd's own frames."""

import sys
import traceback
from pathlib import Path
from types import TracebackType

import pytest

import batchd
from batchd.edge.stacks import condense, cut_own_frames, is_own, split_dump, stack_of, threads_of, users_part
from batchd.formats.values import load
from batchd.settings import OUTPUT_TAIL_BYTES

PACKAGE = Path(batchd.__file__).parent
LOOP = f"""\
  File "{PACKAGE}/worker/main.py", line 144 in _run
  File "{PACKAGE}/worker/template.py", line 69 in main
  File "<string>", line 1 in <module>
"""
DUMP = f"""\
Fatal Python error: Segmentation fault

Current thread 0x00007f584d9f1b80 (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/home/ann/jobs.py", line 3 in inner
{LOOP}
Extension modules: lmdb.cpython (total: 1)
"""


def dump_of(*frames: str, heading: str = "Current thread 0x1 (most recent call first):") -> str:
    return "\n".join(("Fatal Python error: Aborted", "", heading, *frames, ""))


# --- What faulthandler leaves ----------------------------------------------------------------------------------


def test_a_dump_is_cut_out_of_what_was_printed() -> None:
    assert split_dump(f"hello\n{DUMP}") == ("hello\n", DUMP)
    assert split_dump(f"half a line{DUMP}said by a child\n") == ("half a linesaid by a child\n", DUMP)


@pytest.mark.parametrize("output", ["", "hello\n", "Fatal Python error: so says the job\n", "File: x\n"])
def test_without_a_dump_all_of_it_was_printed(output: str) -> None:
    assert split_dump(output) == (output, "")


def test_the_last_dump_is_that_of_the_death() -> None:
    told = "Fatal Python error: none_dealloc: deallocating None\nPython runtime state: initialized\n\n"
    assert split_dump(told + DUMP) == (told, DUMP)


def test_the_stack_ends_where_the_users_code_begins() -> None:
    assert stack_of(DUMP).splitlines() == [
        '  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at',
        '  File "/home/ann/jobs.py", line 3 in inner',
    ]


def test_a_stack_does_not_begin_with_batchds_frames_either() -> None:
    inner = f'  File "{PACKAGE}/worker/context.py", line 90 in checkpoint'
    users = '  File "/home/ann/jobs.py", line 3 in work'
    own = f'  File "{PACKAGE}/worker/main.py", line 144 in _run'
    assert stack_of(dump_of(inner, users, own)) == users


def test_tasks_that_come_with_batchd_are_users_code() -> None:
    frame = f'  File "{PACKAGE}/examples/demo.py", line 3 in double'
    assert stack_of(dump_of(frame, *LOOP.splitlines())) == frame
    assert not is_own(f"{PACKAGE}/examples/demo.py")
    assert is_own(f"{PACKAGE}/worker/main.py")
    assert not is_own(f"{PACKAGE}-plugins/worker.py")


def test_of_a_death_in_batchds_hands_the_place_is_kept() -> None:
    reading = f'  File "{PACKAGE}/formats/values.py", line 60 in load'
    assert stack_of(dump_of(reading, *LOOP.splitlines())) == reading


def test_the_thread_that_died_comes_first_of_several() -> None:
    dump = f"""\
Fatal Python error: Aborted

Thread 0x00007f58 [pool 1] (most recent call first):
  File "/home/ann/jobs.py", line 9 in wait
  ...

Thread 0x00007f59 (most recent call first):
  <no Python frame>

Current thread 0x00007f60 [python] (most recent call first):
  File "/home/ann/jobs.py", line 3 in work
{LOOP}
Current thread's C stack trace (most recent call first):
  Binary file "/usr/lib/libc.so.6", at abort+0xdf
  <truncated rest of calls>

Extension modules: numpy.core (total: 1)
"""
    assert split_dump(dump) == ("", dump)
    assert stack_of(dump).splitlines() == [
        "Current thread 0x00007f60 [python] (most recent call first):",
        '  File "/home/ann/jobs.py", line 3 in work',
        "Thread 0x00007f58 [pool 1] (most recent call first):",
        '  File "/home/ann/jobs.py", line 9 in wait',
        "  ...",
        "Thread 0x00007f59 (most recent call first):",
        "  <no Python frame>",
    ]


def test_what_is_no_stack_has_none() -> None:
    assert stack_of("") == ""
    assert threads_of("Current thread 0x1 (most recent call first):\n")[0].frames == []
    assert stack_of("Current thread 0x1 (most recent call first):\n") == ""


def test_of_a_deep_stack_the_innermost_calls_are_kept() -> None:
    others = [
        f'Thread 0x{n} (most recent call first):\n  File "/home/ann/{"x" * 80}.py", line 1 in wait\n'
        for n in range(60)
    ]
    deep = [f'  File "/home/ann/jobs.py", line {n} in deep' for n in range(100)]
    dump = dump_of(*deep).replace("\nCurrent", "\n" + "\n".join(others) + "\nCurrent")
    kept = condense("first words\n" + "x" * 2 * OUTPUT_TAIL_BYTES + "\nlast words\n" + dump)
    assert len(kept) <= 2 * OUTPUT_TAIL_BYTES
    printed, cut = split_dump(kept)
    assert len(printed) == OUTPUT_TAIL_BYTES
    assert printed.endswith("x\nlast words\n")
    frames = threads_of(cut)[0].frames
    assert frames == deep[: len(frames)]
    assert len(frames) > 50


def test_short_output_is_kept_as_it_is() -> None:
    assert condense(f"hello\n{DUMP}") == f"hello\n{DUMP}"
    assert condense("x" * 3 * OUTPUT_TAIL_BYTES) == "x" * OUTPUT_TAIL_BYTES


# --- Tracebacks ------------------------------------------------------------------------------------------------


def frame(file: object, name: str) -> str:
    return f'  File "{file}", line 3, in {name}\n    {name}()\n    ^^^^^^\n'


HEADING = "Traceback (most recent call last):\n"
OWN = frame(PACKAGE / "worker/main.py", "call")
USERS = frame("/home/ann/jobs.py", "work")


def test_own_frames_are_cut_at_both_ends() -> None:
    repeated = "  [Previous line repeated 7 more times]\n"
    text = HEADING + OWN + repeated + USERS + OWN + USERS + repeated + OWN + "ValueError: no\n  more\n"
    assert cut_own_frames(text) == HEADING + USERS + OWN + USERS + repeated + "ValueError: no\n  more\n"


def test_each_stack_of_a_chain_is_cut() -> None:
    between = "\nDuring handling of the above exception, another exception occurred:\n\n"
    text = HEADING + OWN + USERS + "KeyError: 3\n" + between + HEADING + OWN + "ValueError: no\n"
    assert cut_own_frames(text) == HEADING + USERS + "KeyError: 3\n" + between + HEADING + "ValueError: no\n"


def test_text_without_stacks_stays() -> None:
    for text in ("", "no\n", "no", HEADING, HEADING + "SyntaxError: no", f"[...]\n{OWN}"):
        assert cut_own_frames(text) == text


def test_a_file_with_a_syntax_error_is_no_frame() -> None:
    text = HEADING + USERS + f'  File "{PACKAGE}/broken.py", line 1\n    def\n       ^\nSyntaxError: invalid syntax\n'
    assert cut_own_frames(text) == text


def test_groups_are_cut_too() -> None:
    inner = "".join(f"    | {line}\n" for line in (HEADING + OWN + USERS).splitlines())
    outer = "".join(f"  | {line}\n" for line in (OWN + USERS).splitlines())
    text = f"  + Exception Group {HEADING}{outer}  | ExceptionGroup: two (1 sub-exception)\n  +-+---- 1 ----\n{inner}"
    assert cut_own_frames(text) == text.replace("".join(f"  | {line}\n" for line in OWN.splitlines()), "").replace(
        "".join(f"    | {line}\n" for line in OWN.splitlines()), ""
    )


def trace_of_unreadable() -> TracebackType | None:
    try:
        load(b"\x80\x05cno_such_module\nThing\n.")
    except ModuleNotFoundError as error:
        return error.__traceback__
    raise AssertionError


def test_a_live_traceback_is_cut_at_its_outer_end() -> None:
    trace = trace_of_unreadable()
    assert users_part(trace) is trace  # It begins here.
    assert trace is not None
    assert users_part(trace.tb_next) is trace.tb_next  # All that is left is batchd's: it stays.
    assert users_part(None) is None


def test_what_python_prints_is_understood() -> None:
    """The forms above are this Python's own."""
    try:
        load(b"\x80\x05cno_such_module\nThing\n.")
    except ModuleNotFoundError as error:
        text = "".join(traceback.format_exception(error))
    assert f"{PACKAGE}/formats/values.py" in text
    cut = cut_own_frames(text)
    assert "values.py" not in cut
    assert cut.splitlines()[1].startswith(f'  File "{__file__}"')
    assert cut.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")
    assert sys.exc_info() == (None, None, None)
