"""One template process from the supervisor's side: started, asked for workers, watched.

What it does is in worker/template.py. A task that does not import, or whose import starts threads (forking would be
unsafe), is found out here; then workers are started as fresh interpreters instead.
"""

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchd.edge.exits import describe
from batchd.errors import FormatError
from batchd.worker.template import MESSAGE_BYTES_MAX, TAG, tag

_ROOT = str(Path(__file__).resolve().parents[2])
_BOOT = f"import sys; sys.path.insert(0, {_ROOT!r}); from batchd.worker.template import main; main()"
_THREAD_CAPS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_ANSWERS: Final[tuple[dict[str, type], ...]] = (
    {"ready": int},
    {"failed": str},
    {"started": int, "pid": int},
    {"unstarted": int, "why": str},
)
_NUMBER_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What workers of one key share: the task and the world it is imported in."""

    task: tuple[str, str]
    sys_path: tuple[str, ...]
    cwd: str
    environ: dict[str, str]
    executable: str
    is_fresh: bool = False
    """Start every worker as a fresh interpreter (`--start fresh`)."""
    payload: bytes = b""
    """The pickled bundle of worker/calls.py, when the task is not one that a name stands for."""

    def world(self) -> dict[str, str]:
        """Return the environment of template and workers: BLAS has one thread unless the user said otherwise."""
        return {**dict.fromkeys(_THREAD_CAPS, "1"), **self.environ}


class Home(NamedTuple):
    """Where workers find the journal and the recorder."""

    batches: Path
    journal_id: str
    epoch: int
    recorder_fd: int
    lifeline_fd: int
    echo: tuple[int, ...] = ()
    """Descriptors for what jobs print to stdout and stderr, where somebody is to see it at once."""


class TemplateProcess:
    """A running template. `door` becomes readable when it answers or dies."""

    def __init__(self, spec: KeySpec, home: Home, log_fd: int) -> None:
        """Start it. Raises OSError when no process can be started."""
        self._task = spec.task
        self.is_ready = False
        self.threads = 1
        self.failure = ""
        self.pending: list[int] = []
        """Workers asked for and not yet answered."""
        self._queue: list[tuple[int, int, Sequence[int]]] = []
        self.door, its_door = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.door.setblocking(False)
        try:
            self.process = spawn(spec, home, {}, its_door.fileno(), (), log_fd)
        finally:
            its_door.close()

    def ask(self, worker: int, slot: int, fds: Sequence[int]) -> None:
        """Ask for a worker; the descriptors are duplicated on their way."""
        self._queue.append((worker, slot, _duplicated(fds)))
        self.pending.append(worker)
        self._send_queue()

    def answers(self) -> list[dict[str, Any]] | None:
        """Return what it said since the last call, None when it is gone and has said everything."""
        said: list[dict[str, Any]] = []
        while True:
            try:
                data = self.door.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                if not said:
                    return None
                break
            if self.failure:
                continue  # Whatever it says yet, nothing comes of it.
            try:
                said.append(self._take_in(answer_of(data)))
            except FormatError as error:
                self.failure = f"the process that imports {':'.join(self._task)} said {error}"
                self.door.shutdown(socket.SHUT_RDWR)  # So it is gone, however long it lives.
        self._send_queue()
        return said

    def _take_in(self, message: dict[str, Any]) -> dict[str, Any]:
        """Note what it said and return it. Raises FormatError for what nobody asked, or for the second time."""
        if "ready" in message and not self.is_ready:
            self.is_ready, self.threads = True, message["ready"]
        elif "failed" in message and not self.is_ready:
            self.failure = message["failed"]
        elif (worker := message.get("started", message.get("unstarted"))) in self.pending:
            self.pending.remove(worker)
        else:
            raise FormatError(f"what it was not asked: {str(message)[:200]}")
        return message

    def _send_queue(self) -> None:
        while self._queue and self.is_ready and self.threads == 1:
            worker, slot, fds = self._queue[0]
            try:
                socket.send_fds(self.door, [json.dumps({"start": worker, "slot": slot}).encode()], list(fds))
            except (BlockingIOError, BrokenPipeError, ConnectionError):
                return
            self._queue.pop(0)
            for fd in fds:
                os.close(fd)

    def death(self) -> str:
        """Say how it died, once it is closed."""
        code = self.process.returncode
        how = describe(-code if code < 0 else code << 8)
        return f"the process that imports {':'.join(self._task)} for its workers died: {how}"

    def close(self) -> None:
        """End the template; its workers stay."""
        self.door.close()
        for _, _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
        self.process.kill()
        self.process.wait()


def answer_of(data: bytes) -> dict[str, Any]:
    """Return what a template says on its socket, where the user's code may say anything. Raises FormatError."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    kinds = {name: type(value) for name, value in answer.items()} if isinstance(answer, dict) else {}
    numbers = [answer[name] for name, kind in kinds.items() if kind is int]
    if kinds not in _ANSWERS or not all(0 < number <= _NUMBER_MAX for number in numbers):
        raise FormatError(f"what no template says: {data[:200]!r}")
    return {name: answer[name] for name in kinds}


def _duplicated(fds: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))  # noqa: PERF401  (what was made before an error must be closed)
    except OSError:
        for fd in copies:
            os.close(fd)
        raise
    return copies


def spawn(
    spec: KeySpec, home: Home, extra: dict[str, Any], door_fd: int, fds: Sequence[int], log_fd: int
) -> subprocess.Popen[bytes]:
    """Start a template, or with `extra` one fresh worker, as a child of this process. Raises OSError."""
    config = {
        "task": spec.task,
        "sys_path": spec.sys_path,
        "cwd": spec.cwd,
        "batches": str(home.batches),
        "journal_id": home.journal_id,
        "epoch": home.epoch,
        "echo": home.echo,
        **extra,
    }
    config_fd = os.memfd_create("batchd-config", 0)
    try:
        with open(config_fd, "wb", closefd=False) as file:
            file.write(json.dumps(config).encode() + b"\n" + spec.payload)
        os.lseek(config_fd, 0, os.SEEK_SET)
        # The tag comes last: this process may itself run in a job of another journal, and its environment tell so.
        environ = {**spec.world(), TAG: tag(home.journal_id, home.epoch, extra.get("worker", 0))}
        numbers = (config_fd, door_fd, home.lifeline_fd, home.recorder_fd)
        return subprocess.Popen(
            [spec.executable, "-c", _BOOT, *map(str, numbers)],
            pass_fds=(*numbers, *home.echo, *fds),
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            start_new_session=True,
        )
    finally:
        os.close(config_fd)
