"""Who competes besides what the goals name: a line each, and how a contest asks them.

What a finished job is safe against is part of the line: `none`, `process` (a SIGKILL of anything) or `disk` (a power
cut). Nothing of a peer is imported here.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from math import inf
from typing import Any, Final, NamedTuple

from benchmarks.contest import Absent, Contender, Sample, Setting, Work
from benchmarks.peers.asking import ask
from benchmarks.peers.peer import Request, Task

_EXTRA: Final = "pip install 'batchd[peers]'"
BUDGET_S: Final = 1.0
"""About how long a peer runs in a round, where it may do fewer jobs than the others."""
CAP_S: Final = 30.0
"""Longer nobody waits, where it must do all of them."""
ROUNDS: Final = 2
"""So many rounds tell what is ten or a hundred times slower."""


class Entry(NamedTuple):
    """A peer before it is loaded."""

    home: str
    durability: str
    package: str = ""
    """As pip knows it; without one it comes with Python or the system."""
    module: str = ""
    program: str = ""
    """A command of the system it needs, named as Debian's package."""

    @property
    def wants(self) -> str:
        """What is missing, and how to get it; nothing when it can run."""
        if self.module and find_spec(self.module) is None:
            return f"not installed: {_EXTRA} brings {self.package}"
        if self.program and shutil.which(self.program) is None:
            return f"not installed: apt-get install {self.program}"
        return ""


ROSTER: Final = {
    "executor": Entry("benchmarks.peers.pools:Executor", "none"),
    "pool": Entry("benchmarks.peers.pools:Pool", "none"),
    "loky": Entry("benchmarks.peers.pools:Loky", "none", "joblib", "joblib"),
    "joblib": Entry("benchmarks.peers.pools:Joblib", "none", "joblib", "joblib"),
    "mpire": Entry("benchmarks.peers.pools:Mpire", "none", "mpire", "mpire"),
    "pebble": Entry("benchmarks.peers.pools:Pebble", "none", "pebble", "pebble"),
    "dask": Entry("benchmarks.peers.clusters:Dask", "none", "distributed", "distributed"),
    "ray": Entry("benchmarks.peers.clusters:Ray", "none", "ray", "ray"),
    "hyperqueue": Entry("benchmarks.peers.clusters:HyperQueue", "none", "hyperqueue", "hyperqueue"),
    "parallel": Entry("benchmarks.peers.commands:Parallel", "process", program="parallel"),
    "celery": Entry("benchmarks.peers.celery_queue:Celery", "process", "celery", "celery", "redis-server"),
    "rq": Entry("benchmarks.peers.rq_queue:Forking", "process", "rq", "rq", "redis-server"),
    "rq-simple": Entry("benchmarks.peers.rq_queue:Simple", "process", "rq", "rq", "redis-server"),
    "dramatiq": Entry("benchmarks.peers.dramatiq_queue:Dramatiq", "process", "dramatiq", "dramatiq", "redis-server"),
    "huey-redis": Entry("benchmarks.peers.huey_queue:Redis", "process", "huey", "huey", "redis-server"),
    "huey-sqlite": Entry("benchmarks.peers.huey_queue:Sqlite", "disk", "huey", "huey"),
}
STANDARD: Final = ("executor", "pool")
"""Those of the standard library, which some numbers are compared with anyway."""
COMMANDS: Final = ("hyperqueue", "parallel")
"""Those whose jobs are commands: what goes in and out is text."""


class UnknownPeer(Exception):
    """A name that is not in the roster."""


def chosen(names: str) -> tuple[str, ...]:
    """Names as given with --peers.

    >>> chosen("none"), chosen("rq, dask"), chosen("all") == tuple(ROSTER)
    ((), ('rq', 'dask'), True)
    """
    if names in {"all", "none"}:
        return tuple(ROSTER) if names == "all" else ()
    found = tuple(name.strip() for name in names.split(","))
    if unknown := [name for name in found if name not in ROSTER]:
        raise UnknownPeer(f"there is no peer {unknown[0]}; known are all, none, {', '.join(ROSTER)}")
    return found


def modules(names: Iterable[str]) -> list[str]:
    """What the chosen ones that are installed are imported as."""
    found = [ROSTER[name].module for name in names if not ROSTER[name].wants]
    return list(dict.fromkeys(filter(None, found)))


def versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of the chosen ones that are installed, and of the programs they need."""
    entries = [ROSTER[name] for name in names if not ROSTER[name].wants]
    packages = {entry.package: version(entry.package) for entry in entries if entry.package}
    programs = {entry.program: _program_version(entry.program) for entry in entries if entry.program}
    return packages | programs


def _program_version(program: str) -> str:
    told = subprocess.run([program, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    found = re.search(r"\d[\d.]*", told.stdout.decode(errors="replace"))
    return found[0] if found else "unknown"


def contenders(
    setting: Setting,
    way: str,
    task: Task,
    items: Callable[[], Sequence[Any]],
    fold: Callable[[Iterable[Any]], tuple[int, Any]],
    *,
    gathers: bool = False,
    budget_s: float = BUDGET_S,
    cap_s: float = CAP_S,
    rounds: int = ROUNDS,
    without: Sequence[str] = (),
    then: Callable[[Sample], Sample] = lambda sample: sample,
) -> tuple[Contender, ...]:
    """The chosen peers as contenders: `way` is one of `ways`, and `then` finishes the sample it gives.

    Items are made for each run. With `gathers`, jobs may travel many at a time. An endless budget
    gives each all of them.
    """
    asked = Request("", way, task, (), fold, setting.workers, setting.scratch, cap_s, budget_s, gathers)
    return tuple(
        Contender(
            name, ROSTER[name].durability, Turns(ROSTER[name], asked, items, then).take, peer=name, rounds_max=rounds
        )
        for name in setting.peers
        if name not in without
    )


@dataclass(slots=True)
class Turns:
    """A peer's turns in one table. In the first it tells how many of the jobs it can do; then it gets as many."""

    entry: Entry
    asked: Request
    items: Callable[[], Sequence[Any]]
    then: Callable[[Sample], Sample]
    jobs: int | None = None

    def take(self) -> Sample:
        """Start the peer, run, end it. Raises what `ask` raises."""
        if self.entry.wants:
            raise Absent(self.entry.wants)
        items = self.items()
        asked = self.asked._replace(home=self.entry.home, items=items)
        if self.jobs is not None:
            asked = asked._replace(items=items[: self.jobs], budget_s=inf)
        sample = ask(asked, self.then)
        self.jobs = sample.work.jobs if sample.work else len(asked.items)
        if self.jobs == len(items):
            return sample._replace(work=None)
        # What so many add up to is found out here, by running them: what a peer says is not taken for right.
        return sample._replace(work=Work(*self.asked.fold(map(self.asked.task, items[: self.jobs]))))
