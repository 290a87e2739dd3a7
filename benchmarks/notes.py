"""Notes that batchd's own processes make while they are measured: what was called, when, and for how much CPU time.

Nothing of this is in batchd: a sitecustomize wraps a few of its functions in every process that finds it.
"""

import ast
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Final, NamedTuple

_SITE: Final = """
import importlib, os, sys, time

def note(place, before, after):
    module, _, path = place.partition(":")
    owner, _, name = path.rpartition(".")
    owner = getattr(importlib.import_module(module), owner)
    inner = getattr(owner, name)

    def noted(*args, **kwargs):
        if before:
            notes.append((before, clock(), 0))
        since = cpu()
        try:
            return inner(*args, **kwargs)
        finally:
            if after:
                notes.append((after, clock(), cpu() - since))

    setattr(owner, name, noted)

def tell():
    with open(os.path.join(os.environ["BATCHD_NOTES"], f"{role}.{os.getpid()}"), "w") as file:
        file.write(repr(notes))

def leave(code, leave=os._exit):
    tell()
    leave(code)

if "BATCHD_NOTES" in os.environ and "-c" in sys.orig_argv:
    notes, clock, cpu = [], time.perf_counter_ns, time.thread_time_ns
    command = sys.orig_argv[sys.orig_argv.index("-c") + 1]
    role = next((name for name in ("supervisor", "worker", "client") if f"batchd.{name}" in command), None)
    for place in PLACES.get(role, ()):
        note(*place)
    if role == "worker":
        os._exit = leave
    elif role is not None:
        import atexit
        atexit.register(tell)
"""

Places = Mapping[str, Sequence[tuple[str, str, str]]]
"""By role (supervisor, worker, client): (module:class.function, note before a call or '', note after it or '')."""


class Note(NamedTuple):
    """That something was called, or returned."""

    process: str
    what: str
    at_ns: int
    cpu_ns: int
    """CPU time of the call that returned."""


@contextmanager
def noting(scratch: Path, places: Places) -> Iterator[Path]:
    """Have processes that are started now make notes; give the folder where they leave them when they end."""
    folder = Path(mkdtemp(dir=scratch))
    (folder / "notes").mkdir()
    (folder / "sitecustomize.py").write_text(f"PLACES = {dict(places)!r}\n{_SITE}", "utf-8")
    before = dict(os.environ)
    os.environ["BATCHD_NOTES"] = str(folder / "notes")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, sys.path)])
    try:
        yield folder / "notes"
    finally:
        os.environ.clear()
        os.environ.update(before)


def read(folder: Path) -> list[Note]:
    """All notes, in the order of time."""
    found: list[Note] = []
    for path in folder.iterdir():
        found += [Note(path.name, *each) for each in ast.literal_eval(path.read_text("utf-8"))]
    return sorted(found, key=lambda note: note.at_ns)
