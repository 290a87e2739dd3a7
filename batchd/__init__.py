"""batchd: a durable batch processor for one big machine.

This module only names what users import; it loads neither lmdb nor psutil, so `import batchd` stays cheap.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Batch",
    "BatchdError",
    "Client",
    "CurrentJob",
    "Executor",
    "JobCancelled",
    "JobCrashed",
    "JobError",
    "JobFailed",
    "JobInterrupted",
    "JobOverMemory",
    "JobTimeout",
    "JobUnreadable",
    "__version__",
    "current_job",
    "map",
    "starmap",
]

if TYPE_CHECKING:
    from batchd.application import AsyncClient, Client
    from batchd.batch import Batch
    from batchd.errors import BatchdError
    from batchd.executor import Executor
    from batchd.joberrors import (
        JobCancelled,
        JobCrashed,
        JobError,
        JobFailed,
        JobInterrupted,
        JobOverMemory,
        JobTimeout,
        JobUnreadable,
    )
    from batchd.mapping import map, starmap  # noqa: A004
    from batchd.worker.context import CurrentJob, current_job

_HOMES = {
    "Batch": "batchd.batch",
    "Client": "batchd.application",
    "AsyncClient": "batchd.application",
    "BatchdError": "batchd.errors",
    "Executor": "batchd.executor",
    "map": "batchd.mapping",
    "starmap": "batchd.mapping",
    "CurrentJob": "batchd.worker.context",
    "current_job": "batchd.worker.context",
    "JobCancelled": "batchd.joberrors",
    "JobCrashed": "batchd.joberrors",
    "JobError": "batchd.joberrors",
    "JobFailed": "batchd.joberrors",
    "JobInterrupted": "batchd.joberrors",
    "JobOverMemory": "batchd.joberrors",
    "JobTimeout": "batchd.joberrors",
    "JobUnreadable": "batchd.joberrors",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'batchd' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  (the point of this function)

    return getattr(import_module(_HOMES[name]), name)
