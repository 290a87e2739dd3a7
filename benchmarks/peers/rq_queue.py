"""RQ on Redis: with a process for each job, as it is by default, and with workers that run jobs themselves."""

from importlib import import_module
from typing import Any

from benchmarks.peers.peer import Task
from benchmarks.peers.queues import Queue, redis_client, redis_url


class Forking(Queue):
    """RQ as it is by default."""

    worker = "rq.worker.Worker"
    queue: Any

    def command(self) -> list[str]:
        """A pool of workers."""
        return [
            *("rq.cli", "worker-pool", "-q", "-n", str(self.workers)),
            *("-w", self.worker, "-u", redis_url(), "default"),
        ]

    def open(self) -> None:
        """Start."""
        super().open()
        self.queue = import_module("rq").Queue(connection=redis_client())

    def submit(self, task: Task, item: Any) -> Any:
        """A job."""
        return self.queue.enqueue(task, item)

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        """The latest result, waited for in whole seconds."""
        while (found := handle.latest_result(timeout=1 if timeout_s is None else int(min(timeout_s, 1)))) is None:
            if timeout_s is not None:
                timeout_s -= 1
                if timeout_s < 0:
                    raise TimeoutError
        if found.type != found.Type.SUCCESSFUL:
            raise RuntimeError((found.exc_string or "failed").strip().splitlines()[-1])
        return found.return_value


class Simple(Forking):
    """RQ's SimpleWorker."""

    worker = "rq.worker.SimpleWorker"
