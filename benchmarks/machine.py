"""What the figures were measured on: machine, versions, load. Read before anything is timed."""

import os
import platform
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("batchd", "lmdb", "psutil", "cloudpickle")


def describe(scratch: Path, others: Mapping[str, str]) -> dict[str, Any]:
    """Machine and versions, those of other packages too, in JSON's types."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": file_system(scratch),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))} | dict(others),
    }


def moment() -> dict[str, Any]:
    """When a measurement began, and what else the machine was busy with."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "load_before": [round(part, 2) for part in os.getloadavg()],
    }


def name_of(machine: dict[str, Any]) -> str:
    """A short name of the kind of machine, for file names.

    >>> name_of({"cpu": "AMD EPYC 7B13 64-Core", "cores": 2})
    'amd-epyc-7b13-64-core-2'
    """
    words = re.findall(r"[a-z0-9]+", f"{machine['cpu']} {machine['cores']}".lower())
    return "-".join(words)[:40]


def cpu_model() -> str:
    """The processor as it calls itself."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def file_system(folder: Path) -> str:
    """The kind of file system below `folder`."""
    depth, kind = -1, "unknown"
    for part in psutil.disk_partitions(all=True):
        point = Path(part.mountpoint)
        if folder.is_relative_to(point) and len(point.parts) > depth:
            depth, kind = len(point.parts), part.fstype
    return kind


def command() -> str:
    """The command that repeats this run."""
    return " ".join(["scripts/bench", *sys.argv[1:]])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
