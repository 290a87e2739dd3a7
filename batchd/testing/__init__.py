"""For tests: a made-up job around a task of yours; and the deciding core in a made-up world, a seeded simulation.

Nothing named here starts a process, opens a file or reads a clock. Time is simulated and all chance comes from one
seed, so a schedule that broke something is repeated by its number. The opposite stands in chaos.py: a real batch
whose processes are killed, and audit.py, which judges what became of it.

>>> from batchd.testing import Simulation
>>> Simulation(seed=1).run().seed
1
"""

from typing import TYPE_CHECKING, Any

__all__ = ["FakeJob", "Faults", "MemoryJournal", "Report", "Simulation", "die", "fake_job"]

if TYPE_CHECKING:
    from batchd.testing.fake import FakeJob, fake_job
    from batchd.testing.faults import Faults, die
    from batchd.testing.journal import MemoryJournal
    from batchd.testing.simulation import Report, Simulation

_HOMES = {
    "FakeJob": "batchd.testing.fake",
    "Faults": "batchd.testing.faults",
    "MemoryJournal": "batchd.testing.journal",
    "Report": "batchd.testing.simulation",
    "Simulation": "batchd.testing.simulation",
    "die": "batchd.testing.faults",
    "fake_job": "batchd.testing.fake",
}


def __getattr__(name: str) -> Any:
    """Load a name on first use (PEP 562): a test of a task needs no simulator."""
    if name not in _HOMES:
        raise AttributeError(f"module 'batchd.testing' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  (the point of this function)

    return getattr(import_module(_HOMES[name]), name)
