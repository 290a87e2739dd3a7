"""Chaos: runs a real batch in a journal of its own, kills its processes at seeded moments, then has it audited.

Nothing here is simulated and nothing here says what is right (audit.py does). The one idea: what is killed are the
processes that the journal itself names (the holder of its lock, whoever carries its tag), each pinned by a pidfd and
looked at once more before the signal leaves, so that no other process of this machine can be meant.

The kills come from outside, so the allowances that protect a batch from its own jobs must not be used up by them:
crashes are allowed without end, and after STRIKES_MAX kills nobody is killed before another outcome is durable.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from pathlib import Path
from select import POLLIN, poll
from threading import Thread
from time import monotonic
from typing import IO, Final, NamedTuple

from batchd.edge.folder import journal_id, open_folder, recorder_path
from batchd.edge.journal import BatchJournal
from batchd.edge.lock import holder_of
from batchd.edge.orphans import tagged
from batchd.errors import BatchdError
from batchd.testing.audit import Auditor, Findings, Ledger, check_log, read_ledger
from batchd.worker.template import TAG

TASK: Final = "batchd.examples.chaos:run"
JOBS_PER_WORKER_S: Final = 100
"""Jobs given per second and worker: half of what a worker could do, so that kills meet both work and waiting."""
STRIKES_MAX: Final = 3
"""Kills without progress in between; the smallest allowance of the product that they use up is five."""
STUCK_S: Final = 120.0
"""Longer than any job waits that was killed again and again."""
GIVE_UPS_MAX: Final = 3
"""A command that ends so often by itself is not started again."""
_STRIKE_S: Final = 0.12
_BURST_S: Final = 0.01
_PAUSE_SHARE: Final = 0.15
_PAUSES_S: Final = (0.02, 0.1, 0.5, 1.0)
_FEED_S: Final = 0.02
_SETTLE_S: Final = 0.1
_DEATH_S: Final = 1.0
_TEMPLATE_WORKER: Final = b"00000000"
_ROOT: Final = str(Path(__file__).resolve().parents[2])


class Target(Enum):
    """Who is killed. The values are what people read."""

    WORKER = "workers"
    SUPERVISOR = "supervisors"
    TEMPLATE = "templates"
    """The process that workers are forked from."""
    CLIENT = "commands"
    """`batchd run` itself; the same command is started again, as its user would."""


_SHARES: Final = {Target.WORKER: 70, Target.SUPERVISOR: 13, Target.TEMPLATE: 10, Target.CLIENT: 7}


class Strike(NamedTuple):
    """One kill as the seed has it: so long after the one before, whom, and which of those there are (0 to 1)."""

    delay_s: float
    target: Target
    which: float
    pause_s: float
    """For how long the process is only stopped, 0 when it is killed: a pause shows what deaths hurry past."""


def strikes(seed: int) -> Iterator[Strike]:
    """Give the kills of a seed, without end.

    >>> [next(strikes(seed)) for seed in (1, 1, 2)].count(next(strikes(1)))
    2
    """
    dice = random.Random(seed)  # noqa: S311  (it must be repeatable)
    targets, weights = list(_SHARES), list(_SHARES.values())
    while True:
        in_burst = dice.random() < 0.25
        delay_s = dice.uniform(0.0, _BURST_S) if in_burst else dice.expovariate(1 / _STRIKE_S)
        pause_s = dice.choice(_PAUSES_S) if dice.random() < _PAUSE_SHARE else 0.0
        yield Strike(delay_s, dice.choices(targets, weights)[0], dice.random(), pause_s)


@dataclass(slots=True)
class Report:
    """What happened, for people and programs."""

    seed: int
    duration_s: float
    jobs: int
    workers: int
    kills: Counter[Target] = field(default_factory=Counter)
    pauses: int = 0
    done: int = 0
    elapsed_s: float = 0.0
    executions: int = 0
    retries: int = 0
    replays: int = 0
    findings: Findings = field(default_factory=Findings)


class Chaos:
    """One run of it, in a folder that must be new."""

    def __init__(self, folder: Path, report: Report, show: Callable[[Report], None]) -> None:
        self.report = report
        self._folder = folder
        self._journal = open_folder(folder / "journal")
        self._id = journal_id(self._journal)
        self._ledger = folder / "ledger"
        self._log = folder / "run.log"
        for file in (self._ledger, self._log):
            file.touch(0o600)
        self._out = folder / "results.jsonl"
        self._show = show
        self._plan = strikes(report.seed)
        self._began_at = monotonic()
        self._client: subprocess.Popen[bytes] | None = None
        self._stopped: list[tuple[float, int]] = []
        """When a process that was stopped is to go on, and its pidfd."""

    def run(self) -> Report:
        """Run, kill, let it finish, audit. Whatever happens, nothing of it is left running."""
        report = self.report
        try:
            self._start()
            self._strike_until(self._began_at + report.duration_s)
            self._finish()
            report.elapsed_s = monotonic() - self._began_at
            self._check_left_behind()
            self._audit()
        finally:
            self._end()
        return report

    # --- The command -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the command that runs the batch, and give it its whole input from the beginning."""
        command = [
            *(sys.executable, "-m", "batchd", "run", TASK, "-", "--name", "chaos"),
            *("--arg", f"ledger={self._ledger}", "--out", str(self._out), "--workers", str(self.report.workers)),
            *("--retries", "1", "--max-crashes", "1000000000", "--journal", str(self._journal)),
        ]
        paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._log.open("ab") as log:
            self._client = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TERM": "dumb"},
                start_new_session=True,  # Ctrl-C is for whoever watches: it must not stop the batch first.
            )
        assert self._client.stdin is not None
        Feeder(self._client.stdin, self.report.jobs, self._began_at, self.report.duration_s)

    @property
    def _command(self) -> "subprocess.Popen[bytes]":
        assert self._client is not None
        return self._client

    def _finish(self) -> None:
        """Wait until the command ends by itself, unless nothing moves any more."""
        done, since = -1, monotonic()
        while self._command.poll() is None:
            if (now_done := self._progress()) != done:
                done, since = now_done, monotonic()
            if monotonic() - since > STUCK_S:
                self.report.findings.add("broken_off", f"no progress for {STUCK_S:.0f} s at {done} jobs done")
                return
            self._show(self.report)
            with suppress(subprocess.TimeoutExpired):
                self._command.wait(0.1)
        self._progress()
        code = self._command.returncode
        expected = 1 if any(_is_refused(index) for index in range(self.report.jobs)) else 0
        if code != expected:
            self.report.findings.add("broken_off", f"the command ended with {code}, not {expected}: {self._words()}")

    def _words(self) -> str:
        lines = self._log.read_text("utf-8", "replace").splitlines()
        return " | ".join(lines[-3:])

    def _progress(self) -> int:
        """Return how many outcomes are durable; jobs that were never given count as none."""
        for batch in (self._journal / "batches").glob("[!.]*"):
            with suppress(BatchdError):
                journal = BatchJournal(batch)
                self.report.done = max(self.report.done, journal.facts.done.size)
                journal.close()
        return self.report.done

    # --- Killing -----------------------------------------------------------------------------------------------

    def _strike_until(self, deadline: float) -> None:
        count = 0
        for strike in self._plan:
            if count >= STRIKES_MAX:
                self._await_progress(deadline)
                count = 0
            self._wait(min(strike.delay_s, deadline - monotonic()))
            if monotonic() >= deadline:
                break
            if (code := self._command.poll()) is not None:
                self.report.findings.add("broken_off", f"the command gave up with {code}: {self._words()}")
                if self.report.findings.counts["broken_off"] == GIVE_UPS_MAX:
                    break
                self._start()
            if self._strike(strike):
                count += not strike.pause_s
                self._note(strike)
            self._show(self.report)
        self._resume(float("inf"))

    def _wait(self, seconds: float) -> None:
        """Let the others run; let those go on that were stopped for long enough."""
        until = monotonic() + seconds
        while (now := monotonic()) < until:
            self._resume(now)
            wait(min([until, *(due for due, _ in self._stopped)]) - now)
        self._resume(now)

    def _resume(self, now: float) -> None:
        for due, pidfd in self._stopped:
            if due <= now:
                send(pidfd, signal.SIGCONT)
                os.close(pidfd)
        self._stopped = [(due, pidfd) for due, pidfd in self._stopped if due > now]

    def _note(self, strike: Strike) -> None:
        """Count and write down a strike, and how much had run when it was done: the ledger has no clock."""
        if strike.pause_s:
            self.report.pauses += 1
        else:
            self.report.kills[strike.target] += 1
        what = f"stopped for {strike.pause_s} s" if strike.pause_s else "killed"
        where = f"at {monotonic() - self._began_at:.3f} s, byte {self._ledger.stat().st_size} of the ledger"
        with (self._folder / "kills").open("a", encoding="ascii") as file:
            file.write(f"{strike.target.name.lower()} {what} {where}\n")

    def _await_progress(self, deadline: float) -> None:
        """Wait for an outcome that was not even on its way when the last one was killed."""
        self._wait(_SETTLE_S)
        done = self._progress()
        while self._progress() == done and monotonic() < deadline and self._command.poll() is None:
            self._show(self.report)
            self._wait(_FEED_S)

    def _strike(self, strike: Strike) -> bool:
        """Kill or stop whom the strike means; return whether there was somebody."""
        pidfd = self._pinned(strike)
        if pidfd < 0:
            return False
        if strike.pause_s:
            send(pidfd, signal.SIGSTOP)
            self._stopped.append((monotonic() + strike.pause_s, pidfd))
            return True
        kill(pidfd)
        if strike.target is Target.CLIENT:
            self._command.wait()
            self._start()
        return True

    def _pinned(self, strike: Strike) -> int:
        """Return a pidfd of the process that the strike means, -1 when there is none."""
        if strike.target is Target.CLIENT:
            return os.pidfd_open(self._command.pid)  # Nobody else collects it, so it is nobody else's number.
        if strike.target is Target.SUPERVISOR:
            return self._supervisor()
        workers, templates = self._processes()
        if not workers:  # Without workers a template may still be importing, and a task that dies then is refused.
            return -1
        chosen = workers if strike.target is Target.WORKER else templates
        return self._tagged(chosen[int(strike.which * len(chosen))]) if chosen else -1

    def _supervisor(self) -> int:
        pid = holder_of(self._journal).get("pid", 0)
        is_number = isinstance(pid, int) and pid > 0
        return pinned(pid, "cmdline", os.fsencode(self._journal), is_whole=True) if is_number else -1

    def _tagged(self, pid: int) -> int:
        return pinned(pid, "environ", f"{TAG}={self._id:.16}.".encode())

    def _processes(self) -> tuple[list[int], list[int]]:
        """Return (workers, templates) of the newest supervisor: workers of another tell nothing of its imports."""
        found: dict[bytes, tuple[list[int], list[int]]] = {}
        for pid in sorted(tagged(self._id)):
            for entry in entries_of(pid, "environ"):
                if entry.startswith(f"{TAG}=".encode()):
                    epoch, _, worker = entry.rpartition(b".")
                    found.setdefault(epoch, ([], []))[worker == _TEMPLATE_WORKER].append(pid)
        return found[max(found)] if found else ([], [])

    # --- The end -----------------------------------------------------------------------------------------------

    def _check_left_behind(self) -> None:
        """A moment after the command, nothing of the batch may be left."""
        deadline = monotonic() + 5.0
        place = recorder_path(self._journal, self._id)
        while (left := self._left()) or place.exists():
            if monotonic() > deadline:
                for pid in left:
                    self.report.findings.add(
                        "left_behind", f"process {pid}: {b' '.join(entries_of(pid, 'cmdline'))!r}"
                    )
                if place.exists():
                    self.report.findings.add("left_behind", str(place))
                return
            wait(_FEED_S)

    def _left(self) -> list[int]:
        pid = holder_of(self._journal).get("pid", 0)
        is_alive = isinstance(pid, int) and os.fsencode(self._journal) in entries_of(pid, "cmdline")
        return [*([pid] if is_alive else []), *tagged(self._id)]

    def _audit(self) -> None:
        report = self.report
        with self._ledger.open(encoding="ascii") as lines:
            ledger = Ledger(read_ledger(lines), report.findings)
        report.executions, report.retries, report.replays = ledger.executions, ledger.retries, ledger.replays
        auditor = Auditor(report.jobs, import_module("batchd.examples.chaos").answer_of, ledger, report.findings)
        batches = list((self._journal / "batches").glob("[!.]*"))
        if len(batches) != 1:
            report.findings.add("lost", f"the batch: there are {len(batches)} in the journal")
        for batch in batches:
            try:
                journal = BatchJournal(batch)
                auditor.check_journal(journal)
                journal.close()
            except BatchdError as error:
                report.findings.add("lost", str(error))
        if (log := self._journal / "supervisor.log").exists():
            with log.open(encoding="utf-8", errors="replace") as lines:
                check_log(lines, report.findings)
        if self._out.exists():
            with self._out.open(encoding="utf-8") as lines:
                auditor.check_results(lines)
        else:
            report.findings.add("results_wrong", "there is no results file")

    def _end(self) -> None:
        """End what is still there: nothing on the good way."""
        self._resume(float("inf"))
        if self._client is not None:
            self._client.kill()
            self._client.wait()
        for pidfd in (self._supervisor(), *map(self._tagged, list(tagged(self._id)))):
            if pidfd >= 0:
                kill(pidfd)
        recorder_path(self._journal, self._id).unlink(missing_ok=True)


class Feeder:
    """Writes the input, job by job as it is due, in a thread of its own: a reader that is killed must not stop us."""

    def __init__(self, pipe: IO[bytes], jobs: int, began_at: float, duration_s: float) -> None:
        self._pipe, self._jobs, self._began_at, self._duration_s = pipe, jobs, began_at, duration_s
        self.thread = Thread(target=self._run, name="feeder", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        given = 0
        with suppress(OSError), self._pipe:
            while given < self._jobs:
                due = min(self._jobs, int(self._jobs * (monotonic() - self._began_at) / self._duration_s))
                self._pipe.write(b"".join(b"%d\n" % index for index in range(given, due)))
                self._pipe.flush()
                given = due
                wait(_FEED_S)


def pinned(pid: int, what: str, needle: bytes, *, is_whole: bool = False) -> int:
    """Return a pidfd of the process if its `cmdline` or `environ` has an entry that starts with `needle`, else -1.

    With `is_whole` the entry must be just that.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return -1
    # Only now: from here on the number cannot come to mean another process.
    found = entries_of(pid, what)
    if any(entry == needle if is_whole else entry.startswith(needle) for entry in found):
        return pidfd
    os.close(pidfd)
    return -1


def kill(pidfd: int) -> None:
    """SIGKILL a process, see it dead and close its pidfd."""
    send(pidfd, signal.SIGKILL)
    watch = poll()
    watch.register(pidfd, POLLIN)
    watch.poll(_DEATH_S * 1000)
    os.close(pidfd)


def send(pidfd: int, number: signal.Signals) -> None:
    """Send a signal to a process, if it is still there."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def entries_of(pid: int, what: str) -> list[bytes]:
    """Return a process's arguments (`cmdline`) or environment (`environ`), nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().split(b"\0")
    except OSError:
        return []


def wait(seconds: float) -> None:
    """Let the others run."""
    if seconds > 0:
        time.sleep(seconds)


def _is_refused(index: int) -> bool:
    return bool(import_module("batchd.examples.chaos").is_refused(index))


def remove(folder: Path) -> None:
    """Delete what a run left, as far as it can be deleted."""
    shutil.rmtree(folder, ignore_errors=True)
