"""Asking a peer: a process of its own, with a time limit, ended with everything it started."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import psutil

from benchmarks.contest import Absent, Sample
from benchmarks.peers.peer import Request
from benchmarks.peers.place import ANSWER, FOLDER

_ROOT: Final = Path(__file__).resolve().parents[2]
_START_S: Final = 30.0
"""Beyond the cap: to import, start, warm up and end."""
_TOLD_BYTES: Final = 300


def ask(request: Request, then: Callable[[Sample], Sample]) -> Sample:
    """Have a request carried out. Raises what the peer's process raised, Absent when it hung."""
    folder, sockets = Path(mkdtemp(dir=request.folder)), mkdtemp()
    try:
        return then(_answer(request._replace(folder=folder), sockets))
    finally:
        _sweep(folder)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(sockets, ignore_errors=True)


def _answer(request: Request, sockets: str) -> Sample:
    """What comes back. Peers make sockets in their temporary folder, whose paths must be short."""
    folder, limit_s = request.folder, request.cap_s + _START_S
    with (folder / "told").open("wb") as told:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.child"],
            stdin=subprocess.PIPE,
            stdout=told,
            stderr=told,
            start_new_session=True,
            cwd=_ROOT,
            env=os.environ | {FOLDER: str(folder), "PYTHONPATH": str(_ROOT), "TMPDIR": sockets},
        )
    try:
        child.communicate(pickle.dumps(request), timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise Absent(f"no answer within {limit_s:.0f} s, ended") from None
    finally:
        child.kill()
        child.wait()
    path = folder / ANSWER
    if not path.exists():
        end = (folder / "told").read_bytes()[-_TOLD_BYTES:].decode(errors="replace")
        raise RuntimeError(f"its process ended with {child.returncode}: {' '.join(end.split())}")
    answer: Any = pickle.loads(path.read_bytes())
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, Sample)
    return answer


def _sweep(folder: Path) -> None:
    """End whatever was started for this request, wherever it went, and whatever that starts meanwhile."""
    while found := [process for process in psutil.process_iter() if _is_of(process, folder)]:
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, 1.0)


def _is_of(process: psutil.Process, folder: Path) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(FOLDER) == str(folder)
    return False
