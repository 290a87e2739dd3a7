"""Who competes besides what the goals name: a line each, and how a contest asks them.

What a finished job is safe against is part of the line: `none`, `process` (a SIGKILL of anything) or `disk` (a power
cut). Nothing of a peer is imported here.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

from benchmarks.contest import Absent, Contender, Sample, Setting
from benchmarks.peers.asking import ask
from benchmarks.peers.peer import Request, Task

_EXTRA: Final = "pip install 'batchd[peers]'"
CAP_S: Final = 60.0
_CAP_S_QUICK: Final = 20.0


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
    """The versions of the chosen ones that are installed."""
    return dict(_versions(dict.fromkeys(ROSTER[name].package for name in names)))


def _versions(packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    for package in filter(None, packages):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def contenders(
    setting: Setting,
    way: str,
    task: Task,
    items: Callable[[], Sequence[Any]],
    fold: Callable[[Iterable[Any]], tuple[int, Any]],
    *,
    gathers: bool = False,
    cap_s: float | None = None,
    without: Sequence[str] = (),
    then: Callable[[Sample], Sample] = lambda sample: sample,
) -> tuple[Contender, ...]:
    """The chosen peers as contenders: `way` is one of `ways`, and `then` finishes the sample it gives.

    Items are made for each run. With `gathers`, jobs may travel many at a time.
    """
    wait_s = cap_s or (_CAP_S_QUICK if setting.is_quick else CAP_S)
    asked = Request("", way, task, (), fold, setting.workers, setting.scratch, wait_s, gathers)
    return tuple(
        Contender(name, ROSTER[name].durability, partial(_run, ROSTER[name], asked, items, then))
        for name in setting.peers
        if name not in without
    )


def _run(
    entry: Entry, asked: Request, items: Callable[[], Sequence[Any]], then: Callable[[Sample], Sample]
) -> Sample:
    if entry.wants:
        raise Absent(entry.wants)
    return ask(asked._replace(home=entry.home, items=items()), then)
