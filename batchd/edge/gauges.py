"""The gauges: how much memory and CPU the machine has, and who uses how much of it.

psutil reads processes and the host; the cgroup files are read here, because psutil does not know them and a
container may use far less than the host owns. Nothing here decides anything. The one idea: a limit may be set at
any level of the cgroup tree, in either version of the interface, so every level is asked and the tightest counts.
"""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Final

import psutil

from batchd import settings
from batchd.errors import UsageError
from batchd.units import parse_share

_ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class WorkerGauge:
    """What one worker uses: private memory now, CPU seconds since it started."""

    pid: int
    memory_bytes: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class MachineGauge:
    """What the machine uses. Memory is given for the level, host or cgroup, that has the least room left."""

    memory_used_bytes: int
    memory_limit_bytes: int
    cpu_ratio: float
    cpus: float


class Gauges:
    """Reads workers and the machine, and knows what reading them costs.

    >>> Gauges().sample([os.getpid()])[os.getpid()].memory_bytes > 0
    True
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self.cost_s = 0.0
        self._root = root
        self._processes: dict[int, psutil.Process] = {}
        self._cpu_seen: tuple[float, float] | None = None

    def sample(self, pids: Iterable[int]) -> dict[int, WorkerGauge]:
        """Return a gauge for each of `pids` that is alive and can be read; the others are left out and forgotten."""
        started_s = time.perf_counter()
        known, self._processes = self._processes, {}
        gauges = {}
        for pid in pids:
            try:
                process = known.get(pid) or psutil.Process(pid)
                memory = process.memory_info()
                cpu = process.cpu_times()
            except (psutil.NoSuchProcess, OSError):  # Or there is no descriptor to read it with: another time.
                continue
            if memory.vms == 0:  # A zombie keeps its times, but no memory; psutil does not say so here.
                continue
            self._processes[pid] = process
            gauges[pid] = WorkerGauge(pid, max(0, memory.rss - memory.shared), cpu.user + cpu.system)
        self.cost_s = time.perf_counter() - started_s
        return gauges

    def interval_s(self) -> float:
        """Return how long to wait between samples: longer when they are dear, so that they stay below a share."""
        return max(settings.SAMPLE_S, self.cost_s / settings.SAMPLE_COST_MAX)

    def machine(self) -> MachineGauge:
        """Return the machine's gauge; `cpu_ratio` covers the time since the last call and is 0 at the first."""
        used, limit = _memory_tightest(self._root)
        cpus = cpus_usable(self._root)
        busy_s, now_s = _cpu_busy_s(self._root), time.monotonic()
        ratio = 0.0
        if self._cpu_seen is not None and now_s > self._cpu_seen[1]:
            ratio = (busy_s - self._cpu_seen[0]) / ((now_s - self._cpu_seen[1]) * cpus)
        self._cpu_seen = busy_s, now_s
        return MachineGauge(used, limit, min(1.0, max(0.0, ratio)), cpus)


def cpus_usable(root: Path = _ROOT) -> float:
    """Return the CPUs this process may use: its affinity, or the tightest cgroup quota if that is less."""
    affinity = float(len(os.sched_getaffinity(0)))
    quota = _cpu_quota(root)
    return affinity if quota is None else min(affinity, quota)


def memory_limit_bytes(root: Path = _ROOT) -> int:
    """Return the memory this process may use: the host's, or the tightest cgroup limit if that is less."""
    limits = (_level_memory_limit(level) for level in _levels(root, "memory"))
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)])


def workers_auto(root: Path = _ROOT) -> tuple[int, str]:
    """Return how many workers suit this machine, and the reason in words."""
    cpus, quota = cpus_usable(root), _cpu_quota(root)
    cgroup = "no cgroup quota" if quota is None else f"cgroup quota {quota:g}"
    noun = "CPU" if cpus == 1 else "CPUs"
    return max(1, floor(cpus)), f"{cpus:g} {noun} usable (affinity {len(os.sched_getaffinity(0))}, {cgroup})"


def parse_workers(text: str, cpus: float) -> int:
    """Return the number of workers that `text` asks for: a count, a share of `cpus`, or "auto".

    >>> [parse_workers(text, cpus=8) for text in ("3", "75%", "auto")]
    [3, 6, 8]
    """
    if text.strip().lower() == "auto":
        return max(1, floor(cpus))
    try:
        count, share = parse_share(text)
    except UsageError:
        count = share = None
    if count:
        return count
    if share:
        return max(1, floor(cpus * share))
    raise UsageError(
        f"{text!r} is not a number of workers; write a count, a share of the CPUs or auto, such as 8 or 75%."
    )


@dataclass(frozen=True, slots=True)
class _Level:
    """One cgroup of this process: the folder with its files, and the version of the interface."""

    folder: Path
    version: int

    def text(self, name: str) -> str:
        return _read(self.folder / name)

    def number(self, name: str) -> int | None:
        text = self.text(name)
        return int(text) if text.isdecimal() else None

    def field(self, name: str, key: str) -> int:
        """Return the number behind `key` in a file of `key number` lines, or 0."""
        for line in self.text(name).splitlines():
            found, _, value = line.partition(" ")
            if found == key and value.isdecimal():
                return int(value)
        return 0


def _levels(root: Path, controller: str) -> Iterator[_Level]:
    """Yield every cgroup that holds this process for `controller`, innermost first."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # The path is as the host sees it. A container sees its own cgroup as the mount point, so levels that do
        # not exist are simply skipped, and a path that leaves the mount counts as the mount itself.
        inner = Path() if ".." in Path(path).parts else Path(path.lstrip("/"))
        version = 1 if controllers else 2
        names = ("unified", "") if version == 2 else (controller, controllers)
        mounts = [root / "sys/fs/cgroup" / name for name in dict.fromkeys(names)]
        mount = next((mount for mount in mounts if mount.is_dir()), mounts[0])
        for part in (inner, *inner.parents):
            yield _Level(mount / part, version)


def _cpu_quota(root: Path) -> float | None:
    quotas = [quota for level in _levels(root, "cpu") if (quota := _level_quota(level)) is not None]
    return min(quotas, default=None)


def _level_quota(level: _Level) -> float | None:
    """Return the CPUs that one level may use, or None where it sets no quota."""
    if level.version == 2:
        quota, _, period = level.text("cpu.max").partition(" ")
    else:
        quota, period = level.text("cpu.cfs_quota_us"), level.text("cpu.cfs_period_us")
    # No quota is "max" in version 2 and -1 in version 1; neither is a number of digits.
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _cpu_busy_s(root: Path) -> float:
    """Return the CPU seconds used so far by those that share our CPUs: our cgroup under a quota, else the host."""
    if _cpu_quota(root) is not None and (usage_s := _cgroup_cpu_s(root)) is not None:
        return usage_s
    times = psutil.cpu_times(percpu=True)
    affinity = [cpu for cpu in os.sched_getaffinity(0) if cpu < len(times)]
    return sum(times[cpu].user + times[cpu].nice + times[cpu].system for cpu in affinity)


def _cgroup_cpu_s(root: Path) -> float | None:
    """Return the CPU seconds that our innermost cgroup used so far, or None where it does not count them."""
    for level in _levels(root, "cpuacct"):
        if level.version == 1 and (usage_ns := level.number("cpuacct.usage")) is not None:
            return usage_ns / 1e9
        if level.version == 2 and (usage_us := level.field("cpu.stat", "usage_usec")):
            return usage_us / 1e6
    return None


def _memory_tightest(root: Path) -> tuple[int, int]:
    """Return (used, limit) in bytes of the level, host or cgroup, that has the least room left."""
    host = psutil.virtual_memory()
    found = [(host.total - host.available, host.total)]
    for level in _levels(root, "memory"):
        limit, used = _level_memory_limit(level), _level_memory_used(level)
        if limit is not None and used is not None and limit < host.total:
            found.append((used, limit))
    return min(found, key=lambda pair: pair[1] - pair[0])


def _level_memory_limit(level: _Level) -> int | None:
    # Without a limit the file says "max" in version 2, and a number beyond any host in version 1.
    return level.number("memory.max" if level.version == 2 else "memory.limit_in_bytes")


def _level_memory_used(level: _Level) -> int | None:
    """Return what a level uses without its page cache, which the kernel gives up first, as it does for the host."""
    total_prefix = "" if level.version == 2 else "total_"
    used = level.number("memory.current" if level.version == 2 else "memory.usage_in_bytes")
    if used is None:
        return None
    cache = sum(level.field("memory.stat", f"{total_prefix}{kind}_file") for kind in ("active", "inactive"))
    return max(0, used - cache)


def _read(path: Path) -> str:
    """Return the text of a small kernel file, or "" where there is none: an absent file sets no limit."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
