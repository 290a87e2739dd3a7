"""batchd: a durable batch processor for one big machine.

This module only names what users import; it loads neither lmdb nor psutil, so `import batchd` stays cheap.
"""

TYPE_CHECKING = False  # Importing typing would cost more than all the rest of this module.

__version__ = "0.1.0"
__all__ = [
    "AsyncBatch",
    "AsyncClient",
    "AsyncJob",
    "Batch",
    "BatchInfo",
    "BatchdError",
    "Client",
    "CurrentJob",
    "Executor",
    "FailureGroup",
    "Job",
    "JobCancelled",
    "JobCrashed",
    "JobError",
    "JobFailed",
    "JobInterrupted",
    "JobOverMemory",
    "JobRecord",
    "JobTimeout",
    "JobUnreadable",
    "Standing",
    "__version__",
    "current_job",
    "map",
    "starmap",
]

if TYPE_CHECKING:
    from typing import Any

    from batchd.application import BatchInfo, Client, Job, JobRecord
    from batchd.asyncbatch import AsyncBatch
    from batchd.asyncclient import AsyncClient, AsyncJob
    from batchd.batch import Batch
    from batchd.edge.failures import FailureGroup
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
    from batchd.standing import Standing
    from batchd.worker.context import CurrentJob, current_job

_HOMES = {
    "AsyncBatch": "batchd.asyncbatch",
    "AsyncClient": "batchd.asyncclient",
    "AsyncJob": "batchd.asyncclient",
    "Batch": "batchd.batch",
    "BatchInfo": "batchd.application",
    "BatchdError": "batchd.errors",
    "Client": "batchd.application",
    "CurrentJob": "batchd.worker.context",
    "Executor": "batchd.executor",
    "FailureGroup": "batchd.edge.failures",
    "Job": "batchd.application",
    "JobCancelled": "batchd.joberrors",
    "JobCrashed": "batchd.joberrors",
    "JobError": "batchd.joberrors",
    "JobFailed": "batchd.joberrors",
    "JobInterrupted": "batchd.joberrors",
    "JobOverMemory": "batchd.joberrors",
    "JobRecord": "batchd.application",
    "JobTimeout": "batchd.joberrors",
    "JobUnreadable": "batchd.joberrors",
    "Standing": "batchd.standing",
    "current_job": "batchd.worker.context",
    "map": "batchd.mapping",
    "starmap": "batchd.mapping",
}


def __getattr__(name: str) -> "Any":
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'batchd' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  (the point of this function)

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> "list[str]":
    """Name what is public before it is loaded, for completion."""
    return sorted({*__all__, *globals()})
