"""Runners of commands: every job is a process, a fresh interpreter here, that prints its result (`onejob`)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.peers.peer import Peer, Task


class Parallel(Peer):
    """GNU parallel with a job log; its own input is the list of jobs."""

    has_handles = False

    def open(self) -> None:
        """There is nothing to start before jobs are there."""

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterator[Any]:
        """One run of it, results in order. Lost jobs are left out."""
        del grain
        *command, _ = command_of(task, None)
        log = self.folder / "joblog"
        log.unlink(missing_ok=True)
        runner = ["parallel", "--will-cite", f"-j{self.workers}", "-k", "--joblog", str(log), *command, "{}"]
        environ = os.environ | {"PARALLEL_HOME": str(self.folder)}
        given = "".join(f"{json.dumps(item)}\n" for item in items)
        ended = subprocess.run(runner, input=given.encode(), stdout=subprocess.PIPE, check=False, env=environ)
        for line in ended.stdout.splitlines():
            yield from result_in(line)


def command_of(task: Task, item: Any) -> list[str]:
    """The command that runs one job: no site packages, which would only make its start slower."""
    name = f"{task.__module__}:{task.__qualname__}"
    return [sys.executable, "-S", "-m", "benchmarks.peers.onejob", name, json.dumps(item)]


def result_in(output: bytes) -> Iterable[Any]:
    """The result that a command printed; none where it died."""
    if not output.strip():
        return []
    found = json.loads(output)
    return [tuple(found) if isinstance(found, list) else found]
