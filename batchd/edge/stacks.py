"""Stacks as text: what faulthandler leaves at a death, and tracebacks, as people want to read them.

Nothing here prints, decides or reads a file. The one idea: a person looks for their own code, so batchd's own frames
around it (the loop of a worker, the reading of a value) are cut where a stack is shown; what is stored keeps them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from batchd.settings import OUTPUT_TAIL_BYTES

_FATAL: Final = "Fatal Python error: "
_FIRST: Final = "(most recent call first):"
_DUMP_LINE: Final = re.compile(
    r"Fatal Python error: |Python runtime state: |Current thread|Thread 0x|Extension modules: |<Cannot show"
    r'|  File "|  Binary file |  \.\.\.|  <|$'
)
_THREAD: Final = re.compile(r"(?:Current thread|Thread) 0x.*\(most recent call first\):$")
_DUMPED: Final = re.compile(r'  File "(?P<file>.*)", line (?:\d+|\?\?\?) in (?P<name>.*)$')
_FRAME: Final = re.compile(r'(?P<indent>[ |]*)File "(?P<file>.*)", line \d+, in ')
_TRACEBACK: Final = re.compile(r"[ |+]*(?:Exception Group )?Traceback \(most recent call last\):$")
_BOOT: Final = "<string>", "<module>"
"""The frame of `python -c`, by which templates and fresh workers start."""


def _spellings(folder: Path) -> frozenset[str]:
    """The ways a folder may stand in a stack: also through links, and as faulthandler writes what is not ASCII."""
    found = {f"{folder}/", f"{folder.resolve()}/"}
    return frozenset(found | {text.encode("ascii", "backslashreplace").decode("ascii") for text in found})


_PACKAGE: Final = Path(__file__).parents[1]
_OWN: Final = tuple(sorted(_spellings(_PACKAGE)))
_TASKS: Final = tuple(sorted(_spellings(_PACKAGE / "examples")))
"""Tasks that come with batchd are users' code like any other."""


def is_own(file: str) -> bool:
    """Whether a frame of this file is batchd's, and not of the user's or a library's code."""
    return file.startswith(_OWN) and not file.startswith(_TASKS)


# --- What faulthandler leaves ----------------------------------------------------------------------------------


class Thread(NamedTuple):
    """One thread of a dump: its heading, and its frames, the innermost first."""

    heading: str
    frames: list[str]

    @property
    def is_current(self) -> bool:
        """Whether it is the one that the signal met."""
        return self.heading.startswith("Current")

    def __str__(self) -> str:
        return "\n".join((self.heading, *self.frames))


def split_dump(output: str) -> tuple[str, str]:
    r"""Return (what a process printed, what faulthandler wrote when it died); the second is '' when it did not.

    >>> dump = 'Fatal Python error: Aborted\n\nThread 0x1 (most recent call first):\n  File "a.py", line 3 in f\n'
    >>> split_dump("hello\n" + dump) == ("hello\n", dump)
    True
    """
    start = output.rfind(_FATAL)
    if start < 0 or _FIRST not in output[start:]:
        return output, ""
    stop = start
    for line in output[start:].splitlines(keepends=True):
        if not _DUMP_LINE.match(line):
            break
        stop += len(line)
    return output[:start] + output[stop:], output[start:stop]


def threads_of(dump: str) -> list[Thread]:
    """Return the threads of a dump, the one that the signal met first."""
    found: list[Thread] = []
    is_within = False
    for line in dump.splitlines():
        if _THREAD.match(line):
            found.append(Thread(line, []))
            is_within = True
        elif is_within and line.startswith("  "):
            found[-1].frames.append(line)
        else:
            is_within = False  # What follows is of C: the calls there, the modules.
    return sorted(found, key=lambda thread: not thread.is_current)


def stack_of(dump: str) -> str:
    r"""Return the Python stack in a dump, the innermost call first, without batchd's own frames around the user's.

    When there are several threads, each has its heading.

    >>> stack_of('Current thread 0x1 (most recent call first):\n  File "/a.py", line 3 in f\n')
    '  File "/a.py", line 3 in f'
    """
    threads = [Thread(thread.heading, _users_frames(thread.frames)) for thread in threads_of(dump)]
    if threads and threads[0].is_current and not threads[0].frames:
        # It died in this package's hands, reading an input or pickling a result: where, is all there is to tell.
        threads[0].frames.extend(threads_of(dump)[0].frames[:1])
    threads = [thread for thread in threads if thread.frames]
    return "\n".join(threads[0].frames) if len(threads) == 1 else "\n".join(map(str, threads))


def condense(output: str, chars_max: int = OUTPUT_TAIL_BYTES) -> str:
    """Return captured output with at most so much of what was printed, and as much again of a dump.

    A dump loses its far end: the innermost calls of the thread that died are what must be kept.
    """
    if len(output) <= chars_max:
        return output
    printed, dump = split_dump(output)
    if len(dump) > chars_max:
        heading = dump.partition("\n")[0]
        parts = "\n\n".join((heading, *map(str, threads_of(dump))))[:chars_max]
        dump = parts.rpartition("\n")[0] + "\n"
    return printed[-chars_max:] + dump


def _users_frames(lines: list[str]) -> list[str]:
    places = [(match["file"], match["name"]) if (match := _DUMPED.match(line)) else ("", "") for line in lines]
    start, stop = 0, len(lines)
    if stop and places[-1] == _BOOT and any(is_own(file) for file, _ in places):
        stop -= 1
    while stop > start and is_own(places[stop - 1][0]):
        stop -= 1
    while stop > start and is_own(places[start][0]):
        start += 1
    return lines[start:stop]


# --- Tracebacks ------------------------------------------------------------------------------------------------


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without batchd's own frames at its outer end: all of it when there is nothing else."""
    found = trace
    while found is not None and is_own(found.tb_frame.f_code.co_filename):
        found = found.tb_next
    return found or trace


def cut_own_frames(text: str) -> str:
    r"""Return the text of a traceback without batchd's own frames at either end of each stack in it.

    >>> cut_own_frames('Traceback (most recent call last):\n  File "/a.py", line 3, in f\n    g()\nKeyError: 3\n')
    'Traceback (most recent call last):\n  File "/a.py", line 3, in f\n    g()\nKeyError: 3\n'
    """
    return "".join(_without_own(text.splitlines(keepends=True)))


def _without_own(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        yield lines[at]
        is_heading = _TRACEBACK.match(lines[at])
        at += 1
        if is_heading:
            frames, at = _frames_from(lines, at)
            start, stop = 0, len(frames)
            while stop > start and frames[start][0]:
                start += 1
            while stop > start and frames[stop - 1][0]:
                stop -= 1
            for _, told in frames[start:stop]:
                yield from told


def _frames_from(lines: list[str], at: int) -> tuple[list[tuple[bool, list[str]]], int]:
    """Return ((whether it is batchd's own, its lines) of each frame from line `at` on, the line behind them)."""
    frames: list[tuple[bool, list[str]]] = []
    first = _FRAME.match(lines[at]) if at < len(lines) else None
    while first is not None and at < len(lines):
        match = _FRAME.match(lines[at])
        if match is not None and match["indent"] == first["indent"]:
            frames.append((is_own(match["file"]), [lines[at]]))
        elif lines[at].startswith((first["indent"] + "  ", first["indent"] + "[Previous line repeated")):
            frames[-1][1].append(lines[at])
        else:
            break
        at += 1
    return frames, at
