"""What queues have in common: a server that keeps jobs, and a master with workers that can be killed and begun again.

Redis listens on a Unix socket and nowhere else. It appends every change to a file before it answers, and flushes that
once a second: what it has answered survives a SIGKILL and no power cut.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.contest import Absent
from benchmarks.peers.peer import Restartable
from benchmarks.peers.place import folder

_READY_S: Final = 10.0
_NAP_S: Final = 0.02


def redis_socket() -> Path:
    """Where redis listens."""
    return folder() / "redis.sock"


def redis_url(scheme: str = "unix") -> str:
    """The same as a URL."""
    return f"{scheme}://{redis_socket()}"


def redis_client() -> Any:
    """A client that waits as long as it is told to: redis-py 8 breaks off after five seconds."""
    return import_module("redis").Redis(unix_socket_path=str(redis_socket()), socket_timeout=None)


@contextmanager
def redis_server() -> Iterator[None]:
    """A redis server, until the end of the context."""
    options = f"--port 0 --unixsocketperm 700 --save --appendonly yes --appendfsync everysec --dir {folder()}"
    with (folder() / "redis.log").open("wb") as log:
        command = ["redis-server", "--unixsocket", str(redis_socket()), *options.split()]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline_s = time.monotonic() + _READY_S
        while not redis_socket().exists():
            if time.monotonic() > deadline_s or server.poll() is not None:
                raise Absent(f"not run: redis did not start: {(folder() / 'redis.log').read_text()[-200:]}")
            time.sleep(_NAP_S)
        yield
    finally:
        server.kill()
        server.wait()


class Queue(Restartable):
    """A queue with a command that starts its master."""

    needs_redis = True
    environ: dict[str, str] = {}  # noqa: RUF012  (never changed)
    """What the command needs besides."""
    master: subprocess.Popen[bytes]

    def command(self) -> list[str]:
        """The arguments of the interpreter that make it the master."""
        raise NotImplementedError

    def open(self) -> None:
        """Start the server, then master and workers."""
        if self.needs_redis:
            self.stack.enter_context(redis_server())
        self.begin()
        self.stack.callback(self.kill)

    def begin(self) -> None:
        """Start master and workers."""
        with (self.folder / "workers.log").open("ab") as log:
            self.master = subprocess.Popen(
                [sys.executable, "-m", *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environ,
                start_new_session=True,
            )

    def kill(self) -> None:
        """The master first, so that it replaces nobody."""
        with suppress(psutil.NoSuchProcess):
            master = psutil.Process(self.master.pid)
            workers = master.children(recursive=True)
            master.kill()
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
        self.master.wait()
