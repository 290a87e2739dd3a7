"""The template process: imports the task once, then forks workers in a few milliseconds each.

Exec'ed by the supervisor, one thread, never opens the journal. It forks twice, so that each worker becomes the
child of the supervisor (a subreaper), which alone can see how it ends. One template serves one key.

On its socket (one JSON message a packet): it says {"ready": threads} or {"failed": text}; it is sent
{"start": worker, "slot": n} with the descriptors leases, reports, output; it answers {"started": worker, "pid": p}
or {"unstarted": worker, "why": text}.
"""

import ctypes
import gc
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from batchd.errors import TaskError
from batchd.worker.calls import Bundle, load_bundle
from batchd.worker.main import Fds, Place, hold_lifeline, run
from batchd.worker.recorder import Recorder
from batchd.worker.task import Task, load

TAG: Final = "BATCHD_WORKER"
"""In the environment of every worker and of all it starts: journal id, epoch, worker number, at fixed width."""
WORKER_BITS: Final = 24
"""Of a mark: those below are the worker's, those above the journal's."""
MESSAGE_BYTES_MAX: Final = 65_536
_PID: Final = struct.Struct("<q")


def tag(journal_id: str, epoch: int, worker: int) -> str:
    """Return the value of TAG.

    >>> tag("0123456789abcdef", 3, 17)
    '0123456789abcdef.00000003.00000017'
    """
    return f"{journal_id:.16}.{epoch:08d}.{worker:08d}"


def mark(tag: str) -> int:
    """Return the limit that stands for a tag in processes whose environment is another: journal, then worker.

    >>> hex(mark("0123456789abcdef.00000003.00000017")), hex(mark("0123456789abcdef"))
    ('0x2068c4f033000011', '0x2068c4f033000000')
    """
    journal, _, rest = tag.partition(".")
    worker = int(rest.rpartition(".")[2] or 0) if "." in rest else 0
    return 1 << 61 | zlib.crc32(journal.encode()) << WORKER_BITS | worker % (1 << WORKER_BITS)


def leave_mark() -> None:
    """Mark this process and all that it will ever start, as the tag does, by a limit that limits nothing.

    It is one on the time of real-time processes, of seventy thousand years, and it is inherited whatever becomes of
    the environment.
    """
    hard = resource.getrlimit(resource.RLIMIT_RTTIME)[1]
    with suppress(ValueError, OSError):  # A system that allows only less has no mark.
        resource.setrlimit(resource.RLIMIT_RTTIME, (mark(os.environ[TAG]), hard))


def bear_no_mark() -> None:
    """Be nobody's: for a supervisor that a job has started, which is not to end with that job's worker."""
    hard = resource.getrlimit(resource.RLIMIT_RTTIME)[1]
    resource.setrlimit(resource.RLIMIT_RTTIME, (hard, hard))


def main() -> None:
    """Run as the supervisor starts it: descriptors of config, socket, lifeline and recorder as arguments."""
    config_fd, socket_fd, lifeline_fd, recorder_fd = map(int, sys.argv[1:5])
    with open(config_fd, "rb") as file:
        config, payload = json.loads(file.readline()), file.read()
    lifeline = os.open(f"/proc/self/fd/{lifeline_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    hold_lifeline(lifeline)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    recorder = Recorder(recorder_fd)
    inherited = open_fds()  # What the task's module opens later is its own, and stays open in its workers.
    if "worker" in config:  # A fresh interpreter, exec'ed to be one worker.
        leave_mark()
        leases, reports, output = config["fds"]
        fds = Fds(leases, reports, _own_lifeline(lifeline_fd), output, *config["echo"])
        run(_load(config, payload), fds, _place(recorder, config["slot"]), Path(config["batches"]), inherited)
    door = socket.socket(fileno=socket_fd)
    try:
        bundle = _load(config, payload)
    except TaskError as error:
        _say(door, {"failed": str(error)})
        return
    _say(door, {"ready": _threads()})
    gc.collect()
    gc.freeze()  # Keeps the collector from touching, and so copying, the pages shared with the workers.
    _serve(door, Nest(config, recorder, bundle, lifeline_fd, inherited))


def _load(config: dict[str, Any], payload: bytes) -> Bundle:
    sys.path[:] = config["sys_path"]
    sys.argv[:] = ["batchd-worker"]
    try:
        os.chdir(config["cwd"])
    except OSError as error:
        raise TaskError(f"cannot enter {config['cwd']}: {error.strerror}") from None
    task = Task(*config["task"])
    return load_bundle(payload) if task.is_pickled else Bundle(load(task))


class Nest(NamedTuple):
    """What every worker of this template is made from."""

    config: dict[str, Any]
    recorder: Recorder
    bundle: Bundle
    lifeline: int
    inherited: frozenset[int]


def _serve(door: socket.socket, nest: Nest) -> None:
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(door, MESSAGE_BYTES_MAX, 3)
        except ConnectionResetError:
            return  # The supervisor died with an answer unread.
        if not data:
            return
        request = json.loads(data)
        worker = request["start"]
        try:
            pid = _fork_twice(
                lambda pipe: _become_worker(request, fds, nest, pipe)  # noqa: B023  (called at once)
            )
            _say(door, {"started": worker, "pid": pid})
        except OSError as error:
            _say(door, {"unstarted": worker, "why": f"cannot fork: {error.strerror}"})
        finally:
            for fd in fds:
                os.close(fd)


def open_fds() -> frozenset[int]:
    """Return the descriptors that are open, above the standard three."""
    listed = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    return frozenset(fd for fd in listed if fd > 2 and is_open(fd))  # The one that lists them is closed again.


def is_open(fd: int) -> bool:
    """Whether the number names an open file."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _fork_twice(child: Callable[[tuple[int, int]], None]) -> int:
    """Run `child` in a grandchild and return its pid, once it belongs to the supervisor."""
    mine, its = os.pipe()
    try:
        middle = os.fork()
        if middle == 0:
            _in_middle((mine, its), child)
        os.waitpid(middle, 0)  # From here on the worker's parent is the supervisor.
        answer = os.read(mine, _PID.size) if _is_readable(mine) else b""
    finally:
        os.close(mine)
        os.close(its)
    if len(answer) < _PID.size or _PID.unpack(answer)[0] <= 0:
        raise OSError(11, "Resource temporarily unavailable")
    return int(_PID.unpack(answer)[0])


def _is_readable(fd: int) -> bool:
    from select import select  # noqa: PLC0415

    return bool(select([fd], [], [], 0)[0])


def _in_middle(pipe: tuple[int, int], child: Callable[[tuple[int, int]], None]) -> None:
    try:
        pid = os.fork()
        if pid == 0:
            child(pipe)
        os.write(pipe[1], _PID.pack(pid))
    finally:
        os._exit(0)


def _become_worker(request: dict[str, Any], fds: list[int], nest: Nest, pipe: tuple[int, int]) -> None:
    config = nest.config
    set_tag(tag(config["journal_id"], config["epoch"], request["start"]))
    leave_mark()
    leases, reports, output = fds
    own = Fds(leases, reports, _own_lifeline(nest.lifeline), output, *config["echo"])
    run(nest.bundle, own, _place(nest.recorder, request["slot"]), Path(config["batches"]), nest.inherited | {*pipe})


def _place(recorder: Recorder, number: int) -> Place:
    return Place(recorder.slot(number), recorder.transcript(number))


def _own_lifeline(shared: int) -> int:
    """Open the lifeline pipe once more: who is killed at a hang-up belongs to the open file, not to the pipe."""
    return os.open(f"/proc/self/fd/{shared}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def set_tag(value: str) -> None:
    """Change TAG in place, so that /proc/PID/environ of this process and of its later forks shows it.

    setenv() would leave the old text in the area the kernel shows.
    """
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    address = libc.getenv(TAG.encode())
    if address and len(ctypes.string_at(address)) == len(value):
        ctypes.memmove(address, value.encode("ascii"), len(value))
    os.environ[TAG] = value


def _threads() -> int:
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:
        return threading.active_count()


def _say(door: socket.socket, message: dict[str, Any]) -> None:
    if "failed" in message:  # Four bytes a character at most, and room for what JSON escapes.
        message["failed"] = message["failed"][-MESSAGE_BYTES_MAX // 8 :]
    try:
        door.send(json.dumps(message, ensure_ascii=False).encode(errors="replace"))
    except OSError:
        os._exit(0)  # The supervisor is gone.


if __name__ == "__main__":
    main()
