"""Processes that outlived the worker they came from, found by the tag in their environment (worker/template.py).

One that was given another environment is found by its mark, a limit that it inherited.
"""

import ctypes
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from select import POLLIN, poll
from time import monotonic

from batchd.settings import KILL_WAIT_S
from batchd.worker.template import TAG, WORKER_BITS, mark

_PR_SET_CHILD_SUBREAPER = 36
_MARK = re.compile(rb"^Max realtime timeout +(\d+)", re.MULTILINE)
_WATCHED_MAX = 16
"""At once: however many a job has started, they are to take few descriptors."""
_TAGS = re.compile(rb"(?:^|\0)" + TAG.encode() + rb"=([^\0]*)")


def become_subreaper() -> None:
    """Make orphaned descendants children of this process, so that it sees them end. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def tagged(*prefixes: str) -> Iterator[int]:
    """Give the pids of this user's processes whose tag starts with one of `prefixes`, or whose mark says so."""
    tags, mine = tuple(prefix.encode() for prefix in prefixes), os.getpid()
    marks = {mark(prefix) for prefix in prefixes}
    journals = {mark(prefix) >> WORKER_BITS for prefix in prefixes if prefix.count(".") < 2}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == mine:
            continue
        try:
            is_tagged = any(tag.startswith(tags) for tag in _TAGS.findall((entry / "environ").read_bytes()))
            found = None if is_tagged else _MARK.search((entry / "limits").read_bytes())
        except OSError:
            continue  # Gone, or somebody else's.
        number = int(found[1]) if found else 0
        if is_tagged or number in marks or number >> WORKER_BITS in journals:
            yield int(entry.name)


def kill_tagged(*prefixes: str, wait_s: float = 0.0) -> int:
    """Kill what carries one of the tags and wait for up to `wait_s` until it is dead; return how many there were."""
    pids = list(tagged(*prefixes))
    deadline = monotonic() + wait_s
    for at in range(0, len(pids), _WATCHED_MAX):
        _kill_and_wait(pids[at : at + _WATCHED_MAX], deadline)
    return len(pids)


def _kill_and_wait(pids: Sequence[int], deadline: float) -> None:
    fds: list[int] = []
    for pid in pids:
        try:
            fds.append(os.pidfd_open(pid))
            signal.pidfd_send_signal(fds[-1], signal.SIGKILL)
        except ProcessLookupError:
            continue
    for fd in fds:
        watch = poll()
        watch.register(fd, POLLIN)
        watch.poll(max(0.0, deadline - monotonic()) * 1000)
        os.close(fd)


def sweep(journal_id: str) -> int:
    """Kill every process an earlier supervisor of this journal left, and see them dead. Raises TimeoutError."""
    found = kill_tagged(journal_id, wait_s=KILL_WAIT_S)
    left = [pid for pid in tagged(journal_id) if not _is_zombie(pid)] if found else []
    if left:
        raise TimeoutError(f"processes {left} of an earlier supervisor do not die")
    return found


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


def reap_adopted(known: set[int]) -> None:
    """Collect the exits of adopted descendants, leaving those in `known` to their owners."""
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if info is None or info.si_pid in known:
            return
        os.waitpid(info.si_pid, 0)
