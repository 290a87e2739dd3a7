"""The throw-away journal of a process: for work whose results are wanted once, by the process that asks for them.

One folder and one supervisor serve every executor and every map of the process that names no journal. The
supervisor deletes the folder when it leaves, and it leaves with the process, however that ends. What a death of both
left behind is swept by the next process that makes one.
"""

import atexit
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from batchd.client.connection import Connection, connect
from batchd.edge.folder import open_folder
from batchd.edge.lock import holder_of

_lock = threading.Lock()
_made: dict[int, tuple[Path, Connection]] = {}
"""By process: a child made by fork has none of its parent's."""


def throwaway_folder() -> Path:
    """Return the folder of this process's throw-away journal, whose supervisor runs."""
    with _lock:
        pid = os.getpid()
        if pid not in _made or not _made[pid][0].exists():
            _made.clear()
            place = Path(tempfile.gettempdir())
            _sweep(place)
            folder = open_folder(Path(tempfile.mkdtemp(prefix=f"batchd-{os.geteuid()}-{pid}-", dir=place)))
            # Held open, so that the supervisor is there from one map to the next.
            _made[pid] = folder, connect(folder, is_throwaway=True)
            atexit.register(_made[pid][1].close)
        return _made[pid][0]


def _sweep(place: Path) -> None:
    """Delete what dead processes of this user left, as far as no supervisor holds it."""
    for found in place.glob(f"batchd-{os.geteuid()}-*-*"):
        pid = found.name.split("-")[2]
        with suppress(OSError):
            is_mine = found.lstat().st_uid == os.geteuid() and not found.is_symlink()
            if pid.isdigit() and is_mine and not Path("/proc", pid).exists() and not _is_held(found):
                shutil.rmtree(found, ignore_errors=True)


def _is_held(folder: Path) -> bool:
    holder = holder_of(folder)
    return bool(holder) and Path("/proc", str(holder.get("pid", 0))).exists()
