"""What must be true of a batch after everybody in it was killed: held against the journal, the results and the runs.

Nothing here starts or kills anything, and nothing here trusts what the supervisor counted: the records are read one
by one as they lie in the journal, and what ran is read from a file the jobs wrote themselves. The one idea: an
outcome is right if it is what a plain loop gives, comes from a run that came to its end, and was followed by none.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from batchd.core.job import JobState
from batchd.edge.journal import BatchJournal
from batchd.formats import tables
from batchd.formats.report import Failure
from batchd.formats.segment import Block, unpack
from batchd.worker.valuefiles import read_value

CHECKS: Final = {
    "lost": "jobs without an outcome",
    "recorded_twice": "jobs with more than one outcome",
    "wrong": "outcomes other than a plain loop gives",
    "results_wrong": "lines of the results file that are missing or differ",
    "attempts_twice": "attempt numbers given twice",
    "ran_beside": "runs that went on while another of their job had begun",
    "ran_after": "runs of jobs whose outcome was recorded",
    "never_ran": "outcomes of runs that never came to their end",
    "broken_off": "ways in which the command did not do what it should",
    "left_behind": "processes and files left behind",
    "bugs": "errors nobody expected, in the supervisor's log",
}
"""Everything that must be zero, in words."""
_EXAMPLES_MAX: Final = 5

Answer = Callable[[int], Any]
"""What a job returns; raises what the job raises."""


@dataclass(slots=True)
class Findings:
    """How often each check failed, with a few examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, check: str, example: str) -> None:
        """Count a violation."""
        self.counts[check] += 1
        if self.counts[check] <= _EXAMPLES_MAX:
            self.examples.append(f"{check.replace('_', ' ')}: {example}")

    def __bool__(self) -> bool:
        return bool(self.counts)


class Run(NamedTuple):
    """One line of the ledger."""

    word: str
    """`begin`, then `end` or `raise`, or nothing when the run was cut off."""
    job: int
    attempt: int


def read_ledger(lines: Iterable[str]) -> Iterator[Run]:
    """Give what the jobs wrote down.

    >>> list(read_ledger(["begin 7 1"]))
    [Run(word='begin', job=7, attempt=1)]
    """
    for line in lines:
        word, index, attempt = line.split()
        yield Run(word, int(index), int(attempt))


class Ledger:
    """What ran, in the order in which it ran."""

    def __init__(self, runs: Iterable[Run], findings: Findings) -> None:
        self.executions = 0
        self.retries = 0
        """Runs that followed one that raised."""
        self._last: dict[int, int] = {}
        """By job: its latest attempt."""
        self._over: dict[tuple[int, int], str] = {}
        """How attempts came to their end."""
        begun: set[tuple[int, int]] = set()
        for word, index, attempt in runs:
            key, last = (index, attempt), self._last.get(index, 0)
            if word == "begin":
                self.executions += 1
                self.retries += self._over.get((index, last)) == "raise"
                if key in begun:
                    findings.add("attempts_twice", f"job {index}, attempt {attempt}")
                elif attempt < last:
                    findings.add("ran_beside", f"job {index}: attempt {attempt} began after attempt {last}")
                begun.add(key)
                self._last[index] = max(attempt, last)
                continue
            if attempt < last:
                findings.add("ran_beside", f"job {index}: attempt {attempt} ended after attempt {last} began")
            self._over[key] = word

    @property
    def replays(self) -> int:
        """Runs beyond one per job, without those that followed a failure."""
        return self.executions - len(self._last) - self.retries

    def last(self, index: int) -> int:
        """The latest attempt of a job, 0 when there was none."""
        return self._last.get(index, 0)

    def ending(self, index: int, attempt: int) -> str:
        """`end` or `raise`, '' when the attempt never came to its end."""
        return self._over.get((index, attempt), "")


class Auditor:
    """Holds what is recorded against what ran and what must have come of it."""

    def __init__(self, jobs: int, answer: Answer, ledger: Ledger, findings: Findings) -> None:
        self._jobs, self._answer, self._ledger, self._findings = jobs, answer, ledger, findings
        self._attempts: dict[int, int] = {}
        """By job that succeeded: the attempt its outcome is of."""

    def check_journal(self, journal: BatchJournal) -> None:
        """Check every outcome record as it lies there."""
        times: Counter[int] = Counter()
        for block in recorded_blocks(journal):
            for index, outcome in outcomes_of(block):
                times[index] += 1
                if block.state in {JobState.SUCCEEDED, JobState.FAILED}:
                    self._check_outcome(index, outcome)
                else:
                    self._findings.add("wrong", f"job {index} is {JobState(block.state).name.lower()}")
        for index in range(self._jobs):
            if not times[index]:
                self._findings.add("lost", f"job {index}")
        for index, count in times.items():
            if count > 1:
                self._findings.add("recorded_twice", f"job {index}, {count} times")
            if not 0 <= index < self._jobs:
                self._findings.add("wrong", f"there is no job {index}")

    def _check_outcome(self, index: int, outcome: Any) -> None:
        expected = plain(self._answer, index)
        last = self._ledger.last(index)
        if isinstance(outcome, Failure):
            told = f"{outcome.type}: {outcome.message}"
            if told != expected:
                self._findings.add("wrong", f"job {index}: {told!r:.200} instead of {expected!r:.200}")
            elif self._ledger.ending(index, last) != "raise":
                self._findings.add("never_ran", f"job {index} failed, and its attempt {last} did not raise")
            return
        if not isinstance(outcome, tuple) or len(outcome) != 2 or outcome[0] != expected:
            self._findings.add("wrong", f"job {index}: {outcome!r:.200} instead of {expected!r:.200}")
            return
        attempt = self._attempts[index] = outcome[1]
        if self._ledger.ending(index, attempt) != "end":
            self._findings.add("never_ran", f"job {index}: attempt {attempt} is recorded and never ended")
        if attempt < last:
            self._findings.add("ran_after", f"job {index}: attempt {attempt} is recorded, attempt {last} ran too")

    def check_results(self, lines: Iterable[str]) -> None:
        """Check the results file: every job in order, with the outcome that the journal has."""
        count = 0
        for count, line in enumerate(lines, 1):
            if count > self._jobs or json.loads(line) != self._line(count - 1):
                self._findings.add("results_wrong", f"line {count}: {line:.200}")
        for index in range(count, self._jobs):
            self._findings.add("results_wrong", f"no line for job {index}")

    def _line(self, index: int) -> dict[str, Any]:
        try:
            value = self._answer(index)
        except Exception as error:
            told = {"type": kind_of(error), "message": str(error)}
            return {"index": index, "state": "failed", "error": told}
        return {"index": index, "state": "succeeded", "result": [value, self._attempts.get(index)]}


def check_log(lines: Iterable[str], findings: Findings) -> None:
    """Check the supervisor's log: another supervisor takes over after any error, and would hide it."""
    where = ""
    for line in lines:
        if line.startswith("  File "):
            where = line.strip()
        elif where and not line.startswith(" "):
            findings.add("bugs", f"{line.strip()} ({where})")
            where = ""
        elif "a commit failed" in line:
            findings.add("bugs", line.strip())


def recorded_blocks(journal: BatchJournal) -> Iterator[Block]:
    """Give every outcome block of a batch, whatever its facts say."""
    with journal.begin() as txn:
        for _, record in txn.cursor(db=journal.table(tables.OUTCOMES)):
            yield from unpack(bytes(record), partial(read_value, journal.folder))


def outcomes_of(block: Block) -> Iterator[tuple[int, Any]]:
    """Give (index, value) of jobs that succeeded, (index, Failure) of the others."""
    if block.state == JobState.SUCCEEDED:
        yield from enumerate(block.values(), block.first)
    elif block.body:
        yield from ((index, Failure.decode(payload)) for index, payload in enumerate(block.payloads(), block.first))
    else:
        nothing = Failure(JobState(block.state).name, "", b"")
        yield from ((index, nothing) for index in range(block.first, block.first + block.count))


def plain(answer: Answer, index: int) -> Any:
    """What a plain loop gives for a job: its value, or what it raises in words.

    >>> plain(lambda index: 1 // index, 1), plain(lambda index: 1 // index, 0)
    (1, 'ZeroDivisionError: integer division or modulo by zero')
    """
    try:
        return answer(index)
    except Exception as error:
        return f"{kind_of(error)}: {error}"


def kind_of(error: BaseException) -> str:
    """The type of an exception as failures name it."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
