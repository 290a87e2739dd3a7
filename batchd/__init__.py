"""batchd: a durable batch processor for one big machine.

This module only names what users import; it loads neither lmdb nor psutil, so `import batchd` stays cheap.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["BatchdError", "CurrentJob", "__version__", "current_job"]

if TYPE_CHECKING:
    from batchd.errors import BatchdError
    from batchd.worker.context import CurrentJob, current_job

_HOMES = {
    "BatchdError": "batchd.errors",
    "CurrentJob": "batchd.worker.context",
    "current_job": "batchd.worker.context",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'batchd' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  (the point of this function)

    return getattr(import_module(_HOMES[name]), name)
