"""Dramatiq on Redis, with its results middleware."""

from importlib import import_module
from typing import Any

from benchmarks.peers.peer import Task
from benchmarks.peers.queues import Queue, redis_client

_dramatiq = import_module("dramatiq")
_results = import_module("dramatiq.results")
_backend = import_module("dramatiq.results.backends").RedisBackend(
    client=redis_client(), encoder=_dramatiq.PickleEncoder()
)
broker = import_module("dramatiq.brokers.redis").RedisBroker(client=redis_client())
broker.add_middleware(_results.Results(backend=_backend))
_dramatiq.set_broker(broker)
_dramatiq.set_encoder(_dramatiq.PickleEncoder())


def _run(task: Task, item: Any) -> Any:
    return task(item)


run = _dramatiq.actor(_run, actor_name="run", store_results=True, max_retries=3)


class Dramatiq(Queue):
    """Processes of one thread."""

    def command(self) -> list[str]:
        """The master."""
        return ["dramatiq", "benchmarks.peers.dramatiq_queue", "-p", str(self.workers), "-t", "1"]

    def submit(self, task: Task, item: Any) -> Any:
        """A message."""
        return run.send(task, item)

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        """Its ResultTimeout is not the built-in error."""
        wait_ms = 3_600_000 if timeout_s is None else max(1, int(timeout_s * 1000))
        try:
            return handle.get_result(block=True, timeout=wait_ms)
        except _results.ResultTimeout as error:
            raise TimeoutError from error
