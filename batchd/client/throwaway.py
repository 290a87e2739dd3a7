"""The throw-away journal of a process: for work whose results are wanted once, by the process that asks for them.

One folder and one supervisor serve every executor and every map of the process that names no journal. The
supervisor deletes the folder when it leaves, and it leaves with the process, however that ends. What a death of both
left behind is swept by the next process that makes one.
"""

import atexit
import os
import tempfile
import threading
from pathlib import Path

from batchd.client.connection import Connection, SupervisorGone, connect
from batchd.edge import throwaway

_lock = threading.Lock()
_made: dict[int, tuple[Path, Connection]] = {}
"""By process: a child made by fork has none of its parent's."""


def _renew_lock() -> None:
    global _lock  # noqa: PLW0603  (whoever held it when this process was forked is not here to let go of it)
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def throwaway_folder() -> Path:
    """Return the folder of this process's throw-away journal, whose supervisor runs."""
    with _lock:
        pid = os.getpid()
        # Of one whose supervisor died, maps under way start another, which deletes it behind the last of them.
        if pid not in _made or not _is_there(*_made[pid]):
            _made.clear()
            place = Path(tempfile.gettempdir())
            throwaway.sweep(place)
            folder = throwaway.make(place)
            # Held open, so that the supervisor is there from one map to the next.
            _made[pid] = folder, connect(folder, is_throwaway=True)
            atexit.register(_leave, *_made[pid])
        return _made[pid][0]


def _is_there(folder: Path, connection: Connection) -> bool:
    try:
        connection.messages()
    except SupervisorGone:
        connection.close()
        return False
    return folder.exists()


def _leave(folder: Path, connection: Connection) -> None:
    connection.close()
    if throwaway.owner_of(folder) == os.getpid():
        throwaway.remove_vacant(folder)  # Unless its supervisor will.
