"""The deciding core in a made-up world: a seeded simulation and a journal in memory, for tests.

Nothing here starts a process, opens a file or reads a clock. Time is simulated and all chance comes from one seed,
so a schedule that broke something is repeated by its number.

>>> from batchd.testing import Simulation
>>> Simulation(seed=1).run().seed
1
"""

from batchd.testing.journal import MemoryJournal
from batchd.testing.simulation import Report, Simulation

__all__ = ["MemoryJournal", "Report", "Simulation"]
