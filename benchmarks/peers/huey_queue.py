"""Huey, on SQLite that flushes every change to the disk, and on Redis."""

import os
from importlib import import_module
from typing import Any, Final

from benchmarks.peers.peer import Task
from benchmarks.peers.place import folder
from benchmarks.peers.queues import Queue, redis_url

_STORE: Final = "BENCHMARKS_HUEY_STORE"
_huey = import_module("huey")


def _made() -> Any:
    if os.environ.get(_STORE) == "redis":
        return _huey.RedisHuey(url=redis_url())
    return _huey.SqliteHuey(filename=str(folder() / "huey.db"), fsync=True)


class Redis(Queue):
    """Its consumer with processes."""

    store = "redis"
    run: Any

    def command(self) -> list[str]:
        """The consumer."""
        return ["huey.bin.huey_consumer", "benchmarks.peers.huey_queue.app", "-w", str(self.workers), "-k", "process"]

    def open(self) -> None:
        """Start."""
        os.environ[_STORE] = self.store  # The consumer inherits it.
        self.run = _tasked(_made())
        super().open()

    def submit(self, task: Task, item: Any) -> Any:
        """A task."""
        return self.run(task, item)

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        """Its ResultTimeout is not the built-in error."""
        try:
            return handle.get(blocking=True, timeout=timeout_s)
        except _huey.exceptions.ResultTimeout as error:
            raise TimeoutError from error


class Sqlite(Redis):
    """The same without a server."""

    store = "sqlite"
    needs_redis = False


def _run(task: Task, item: Any) -> Any:
    return task(item)


def _tasked(made: Any) -> Any:
    return made.task(name="run")(_run)


app = _made()
_tasked(app)
