"""Clusters of one machine: a scheduler and workers as processes, which run a job again when its worker dies."""

import tempfile
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from benchmarks.peers.commands import command_of, result_in
from benchmarks.peers.peer import Peer, Task


class Dask(Peer):
    """`dask.distributed` with a local cluster of single-threaded workers."""

    client: Any

    def open(self) -> None:
        """Start."""
        distributed = import_module("distributed")
        cluster = distributed.LocalCluster(
            n_workers=self.workers, threads_per_worker=1, dashboard_address=None, local_directory=str(self.folder)
        )
        self.stack.enter_context(cluster)
        self.client = self.stack.enter_context(distributed.Client(cluster))

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        """The client's own."""
        results: Iterable[Any] = self.client.gather(self.client.map(task, list(items), pure=False, batch_size=grain))
        return results

    def submit(self, task: Task, item: Any) -> Any:
        """The client's own."""
        return self.client.submit(task, item, pure=False)

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        """The future's own."""
        return handle.result(timeout_s)


class Ray(Peer):
    """Ray's tasks; its pool where jobs should travel together."""

    needs_shutting_in = True
    ray: Any

    def open(self) -> None:
        """Start."""
        self.ray = import_module("ray")
        self.ray.init(
            num_cpus=self.workers, include_dashboard=False, log_to_driver=False, _temp_dir=tempfile.gettempdir()
        )
        self.stack.callback(self.ray.shutdown)
        self.calls: dict[Task, Any] = {}

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        """Some jobs in one task: what ray's own pool does, without its actors."""
        if grain == 1:
            return self.ray.get([self.submit(task, item) for item in items])  # type: ignore[no-any-return]
        many = self._remote(_many)
        parts = [many.remote(task, items[at : at + grain]) for at in range(0, len(items), grain)]
        return (result for part in self.ray.get(parts) for result in part)

    def submit(self, task: Task, item: Any) -> Any:
        """A task."""
        return self._remote(task).remote(item)

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        """Its GetTimeoutError is a TimeoutError."""
        return self.ray.get(handle, timeout=timeout_s)

    def _remote(self, task: Any) -> Any:
        if task not in self.calls:
            self.calls[task] = self.ray.remote(task)
        return self.calls[task]


def _many(task: Task, items: Sequence[Any]) -> list[Any]:
    return [task(item) for item in items]


class HyperQueue(Peer):
    """HyperQueue: a process a job, whose output is a file."""

    has_handles = False
    needs_shutting_in = True
    cluster: Any

    def open(self) -> None:
        """Start server and worker, in threads of this process."""
        clusters = import_module("hyperqueue.cluster")
        self.cluster = self.stack.enter_context(
            clusters.LocalCluster(str(self.folder / "server"), clusters.WorkerConfig(cores=self.workers))
        )
        self.maps = 0

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        """One job of HyperQueue with a task for each item. Lost tasks are left out."""
        del grain
        self.maps += 1
        folder = self.folder / f"map{self.maps}"
        folder.mkdir()
        job = import_module("hyperqueue").Job(max_fails=None)
        outputs = [folder / str(number) for number in range(len(items))]
        for item, output in zip(items, outputs, strict=True):
            job.program(command_of(task, item), stdout=output, stderr=None)
        client = self.cluster.client()
        client.wait_for_jobs([client.submit(job)], raise_on_error=False)
        for output in outputs:
            yield from result_in(output.read_bytes() if output.exists() else b"")
