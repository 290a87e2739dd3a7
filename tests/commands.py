"""Running batchd as its users do: real commands, a journal of one's own, and what jobs left behind."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from batchd.client import request
from batchd.edge import control
from batchd.edge.folder import recorder_path
from batchd.edge.orphans import tagged
from batchd.worker.template import TAG

TASKS = Path(__file__).with_name("tasks.py")
WAIT_S = 60.0


class Desk:
    """A journal in a folder of its own, and commands on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        self.marks = folder / "marks"
        """Where tasks write down each execution: `index attempt`, a line each."""
        self.environ = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            "BATCHD_JOURNAL": str(self.journal),
            "HOME": str(folder),
            "MARKS": str(self.marks),
            "NO_COLOR": "1",
        }

    def start(
        self, *args: str, stdin: int | None = subprocess.DEVNULL, cwd: Path | None = None
    ) -> "subprocess.Popen[str]":
        """Start a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "batchd", *args],
            env=self.environ,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd or self.folder,
        )

    def run(
        self, *args: str, given: str | None = None, cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        process = self.start(*args, stdin=subprocess.PIPE if given is not None else subprocess.DEVNULL, cwd=cwd)
        out, err = process.communicate(given, timeout=WAIT_S)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def task(self, name: str) -> str:
        """Return a task of tests/tasks.py."""
        return f"{TASKS}:{name}"

    def supervisor(self) -> int:
        """Return the living supervisor's pid, 0 when there is none."""
        try:
            pid = int(json.loads((self.journal / "supervisor.lock").read_text())["pid"])
            os.kill(pid, 0)
        except (OSError, ValueError, KeyError):
            return 0
        return pid

    def journal_id(self) -> str:
        """Return the journal's id, by which its processes are tagged."""
        return str(json.loads((self.journal / "journal.json").read_text())["id"])

    def recorder(self) -> Path:
        """Return where the journal's flight recorder lies, while there is one."""
        return recorder_path(self.journal, self.journal_id())

    def processes(self) -> list[int]:
        """Return templates and workers of this journal."""
        return list(tagged(self.journal_id())) if (self.journal / "journal.json").exists() else []

    def workers(self) -> list[int]:
        """Return the living workers of this journal, without the templates they are forked from."""
        return [pid for pid in self.processes() if not dead(pid) and not is_template(pid)]

    def executions(self) -> Counter[int]:
        """Return how often each job was begun."""
        return Counter(index for index, _ in self.attempts())

    def attempts(self) -> list[tuple[int, int]]:
        """Return (index, attempt) of every execution, in order."""
        if not self.marks.exists():
            return []
        return [(int(index), int(attempt)) for index, attempt in map(str.split, self.marks.read_text().splitlines())]

    def wait_for_jobs(self, count: int, process: "subprocess.Popen[str]", *, may_end: bool = False) -> None:
        """Wait until so many executions were begun, or with `may_end` until the command has ended."""
        until(lambda: len(self.attempts()) >= count or (may_end and process.poll() is not None), f"{count} jobs ran")

    def results(self, path: str = "out.jsonl") -> list[Any]:
        """Return the lines of a results file."""
        return [json.loads(line) for line in (self.folder / path).read_text().splitlines()]

    def values(self, path: str = "out.jsonl") -> list[Any]:
        """Return what the jobs in a results file returned."""
        return [line["result"] for line in self.results(path)]


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        """It is."""
        return True


def squares(jobs: int) -> list[int]:
    """Return what so many jobs return whose task squares their index."""
    return [index * index for index in range(jobs)]


def until(condition: Callable[[], Any], what: str, process: "subprocess.Popen[str] | None" = None) -> Any:
    """Return what `condition` gives as soon as it is true. Fails after a deadline, or when `process` ended."""
    deadline = monotonic() + WAIT_S
    while not (found := condition()):
        assert monotonic() < deadline, f"never: {what}"
        if process is not None and process.poll() is not None:
            found = condition()
            assert found, f"the command ended with {process.returncode} before: {what}\n{process.communicate()}"
            break
        pause()
    return found


def pause(seconds: float = 0.005) -> None:
    """Let others run, by waiting for a descriptor that never becomes ready."""
    read, write = os.pipe()
    import select

    select.select([read], [], [], seconds)
    os.close(read)
    os.close(write)


def dead(pid: int) -> bool:
    """Whether a process is gone, or only a zombie of it is left. Nobody is process 0."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def private_bytes(pid: int) -> int:
    """Return how much memory of its own a process has, 0 when it is gone."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return 0


def is_template(pid: int) -> bool:
    """Whether a tagged process is a template: its tag names no worker."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(f"{TAG}=".encode()) and entry.endswith(b".00000000") for entry in environ)


def status_of(desk: Desk) -> dict[str, Any]:
    """Return what a supervisor tells `batchd status`, {} while there is none. Asked often, so without a command."""
    try:
        control.connect(desk.journal).close()
    except OSError:
        return {}
    return request(desk.journal, "status")


def summary_of(text: str) -> dict[str, Any]:
    """Return the JSON answer of a command."""
    answer: dict[str, Any] = json.loads(text.splitlines()[-1])
    return answer
