"""The throw-away journal of a process: for work whose results are wanted once, by the process that asks for them.

One folder and one supervisor serve every executor and every map of the process that names no journal. The
supervisor deletes the folder when it leaves, and it leaves with the process, however that ends. What a death of both
left behind is swept by the next process that makes one.
"""

import atexit
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from batchd.client.connection import Connection, SupervisorGone, connect
from batchd.edge.folder import open_folder, remove_journal
from batchd.edge.lock import vacant

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
            _sweep(place)
            folder = open_folder(Path(tempfile.mkdtemp(prefix=f"batchd-{os.geteuid()}-{pid}-", dir=place)))
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
    if folder.name.split("-")[2] == str(os.getpid()):
        _delete(folder)  # Unless its supervisor will.


def _sweep(place: Path) -> None:
    """Delete what dead processes of this user left, as far as no supervisor holds it."""
    for found in place.glob(f"batchd-{os.geteuid()}-*-*"):
        pid = found.name.split("-")[2]
        with suppress(OSError):
            is_mine = found.lstat().st_uid == os.geteuid() and not found.is_symlink()
            if pid.isdigit() and is_mine and not Path("/proc", pid).exists():
                _delete(found)


def _delete(folder: Path) -> None:
    """Delete a journal that no supervisor holds."""
    with suppress(OSError), vacant(folder) as is_vacant:
        if is_vacant:
            remove_journal(folder)
