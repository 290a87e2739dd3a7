"""Celery on Redis, as one sets it up to lose little: acknowledged late, redelivered when a worker is lost."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from benchmarks.peers.peer import Task
from benchmarks.peers.queues import Queue, redis_url

_celery = import_module("celery")
app = _celery.Celery("benchmarks", broker=redis_url("redis+socket"), backend=redis_url("redis+socket"))
app.conf.update(
    task_serializer="pickle",
    result_serializer="pickle",
    accept_content=["pickle", "json"],
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_hijack_root_logger=False,
)


def _run(task: Task, item: Any) -> Any:
    return task(item)


run = app.task(_run, name="run")


class Celery(Queue):
    """Its prefork pool."""

    environ = {"C_FORCE_ROOT": "1"}  # noqa: RUF012  (never changed; root may use pickle here)

    def command(self) -> list[str]:
        """Without talk between masters, of which there is one."""
        options = f"worker -P prefork -c {self.workers} --without-gossip --without-mingle -l ERROR"
        return ["celery", "-A", "benchmarks.peers.celery_queue", *options.split()]

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        """Chunks, each of which is one message."""
        if grain == 1:
            return super().map(task, items, grain)
        found = run.chunks(((task, item) for item in items), grain).apply_async()
        return (result for part in found.get() for result in part)

    def submit(self, task: Task, item: Any) -> Any:
        """A message."""
        return run.delay(task, item)

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        """Its TimeoutError is not the built-in one."""
        try:
            return handle.get(timeout=timeout_s)
        except _celery.exceptions.TimeoutError as error:
            raise TimeoutError from error
