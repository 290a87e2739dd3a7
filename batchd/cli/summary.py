"""The end of a run in a few lines: what became of the jobs, why some failed, and what to type next.

Nothing is written here: lines and fields go back to whoever prints them. The one idea: the next command is always
said in full, so that it does what it says when it is pasted.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from batchd.cli.cards import card_lines, is_death
from batchd.core.facts import BatchState
from batchd.core.job import JobState
from batchd.edge.census import is_queue
from batchd.edge.environment import LOST
from batchd.edge.failures import OTHER, FailureGroup, group_failures
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.edge.shelf import LAST, is_default, is_newest
from batchd.errors import BatchdError
from batchd.units import format_duration, format_size, visible, visible_line
from batchd.worker.command import command_words

_CAUSES_MAX: Final = 5
_TYPES_MAX: Final = 3
_CARDS_MAX: Final = 2
_CARD_LINES_MAX: Final = 6
_MESSAGE_CHARS_MAX: Final = 100
_LIMITS: Final = ("--timeout", "--memory-per-job")
_CPU_KNOWN_S: Final = 2.0
"""CPU seconds are sampled: below this they say little."""
_CORES_MIN: Final = 0.05
_CPU_CLOSE: Final = 0.2
"""Within this share of the time in jobs, CPU time is the same news twice."""


def summarise(
    journal: BatchJournal,
    *,
    elapsed_s: float,
    ran: int,
    already_done: int,
    usage: Mapping[str, float],
    state: str,
) -> list[str]:
    """The lines at the end of a run. `usage` is that of this run alone: see `usage_since`."""
    groups, trouble = _read_causes(journal)
    parts = list(count_parts(journal, groups))
    if ran:
        elapsed = format_duration(elapsed_s)
        parts += [f"ran {ran:,} in {elapsed}" if already_done else elapsed, *usage_parts(usage, elapsed_s)]
    lines = [f"{visible_line(_name(journal))}: {' · '.join(parts)}", *cause_lines(journal, groups)]
    if trouble:
        lines.append(f"  the causes could not be read: {trouble}")
    lines += (f"  {line}" for line in crash_lines(journal, groups))
    lines += reason_lines(journal, state)
    return lines + [f"{'next:' if at == 0 else '     '} {text}" for at, text in enumerate(next_steps(journal, state))]


def summary_fields(
    journal: BatchJournal,
    *,
    elapsed_s: float,
    ran: int,
    already_done: int,
    usage: Mapping[str, float],
    state: str,
) -> dict[str, Any]:
    """What `summarise` says, for programs."""
    groups, trouble = _read_causes(journal)
    facts = journal.facts
    return {
        "batchd": 1,
        "batch": journal.folder.name,
        "name": _name(journal),
        "state": state,
        "reason": facts.cancelled or facts.stopped,
        "size": facts.size,
        "done": facts.done.size,
        **count_fields(journal),
        "ran": ran,
        "already_done": already_done,
        "elapsed_s": round(elapsed_s, 3),
        "usage": dict(usage),
        "cores_busy": round(cores, 2) if (cores := _cores_busy(usage, elapsed_s)) is not None else None,
        "causes": [
            {
                "type": group.type,
                "message": group.message,
                "count": group.count,
                "state": group.state.name.lower(),
                "example": group.example,
            }
            for group in groups
        ],
        "causes_error": trouble,
        "next": next_steps(journal, state),
    }


def usage_since(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """What a run used, when the sums of its batch were `before` at its start; a peak is the batch's.

    >>> usage_since({"busy_s": 2.0, "memory_peak_bytes": 9.0}, {"busy_s": 5.0, "memory_peak_bytes": 9.0})
    {'busy_s': 3.0, 'memory_peak_bytes': 9.0}
    """
    return {
        name: value - before.get(name, 0.0) if name.endswith("_s") else value  # Seconds add up, bytes do not.
        for name, value in now.items()
    }


# --- Parts that other verbs say too ----------------------------------------------------------------------------


def count_fields(journal: BatchJournal) -> dict[str, int]:
    """Jobs by final state, all four of them."""
    finals = (JobState.SUCCEEDED, JobState.FAILED, JobState.QUARANTINED, JobState.CANCELLED)
    return {state.name.lower(): journal.facts.count(state) for state in finals}


def count_parts(journal: BatchJournal, groups: list[FailureGroup] | None = None) -> Iterator[str]:
    """Jobs by final state in words: `4,812 succeeded`, `7 failed (7 SyntaxError)`; zeros are left out."""
    facts = journal.facts
    if not facts.size:
        yield "no jobs: the input was empty" if facts.is_sealed else "no jobs yet"
        return
    for name, count in count_fields(journal).items():
        if not count and name != "succeeded":
            continue
        named = [group for group in groups or () if group.state.name.lower() == name and group.type != OTHER]
        types: dict[str, int] = {}
        for group in named:
            types[_label(group)] = types.get(_label(group), 0) + group.count
        shown = [f"{types[label]:,} {label}" for label in sorted(types, key=lambda label: -types[label])[:_TYPES_MAX]]
        if shown and (others := count - sum(sorted(types.values(), reverse=True)[:_TYPES_MAX])) > 0:
            shown.append(f"{others:,} other")
        yield f"{count:,} {name}" + (f" ({', '.join(shown)})" if shown else "")
    if left := facts.size - facts.done.size:
        yield f"{left:,} not done"


def usage_parts(usage: Mapping[str, float], elapsed_s: float | None) -> Iterator[str]:
    """What it took: cores kept busy when the time is known, and the highest memory of one worker."""
    busy_s, cpu_s = usage.get("busy_s", 0.0), usage.get("cpu_s", 0.0)
    if elapsed_s is None:
        if busy_s:
            yield f"{format_duration(busy_s)} in jobs"
        if cpu_s:
            yield f"{format_duration(cpu_s)} of CPU"
    elif (cores := _cores_busy(usage, elapsed_s) or 0.0) >= _CORES_MIN:
        if cpu_s < _CPU_KNOWN_S:
            yield f"{busy_s / elapsed_s:.1f} workers busy"  # Whether they computed is not known.
        elif cpu_s < (1 - _CPU_CLOSE) * busy_s:
            # Jobs that wait are not computing: whoever tunes must see the difference.
            yield f"{busy_s / elapsed_s:.1f} workers busy, {cores:.1f} cores"
        else:
            yield f"{cores:.1f} cores busy"
    if peak := usage.get("memory_peak_bytes", 0):
        yield f"peak {format_size(peak)} a worker"


def cause_lines(journal: BatchJournal, groups: list[FailureGroup]) -> Iterator[str]:
    """The most frequent causes of failure, a line each."""
    width = max((len(f"{group.count:,}") for group in groups[:_CAUSES_MAX]), default=0)
    for group in groups[:_CAUSES_MAX]:
        first = visible(group.message.strip().partition("\n")[0])
        text = first if len(first) <= _MESSAGE_CHARS_MAX else f"{first[: _MESSAGE_CHARS_MAX - 1]}…"
        name = visible_line(group.type)
        what = f"{name}: {text}" if text else name
        yield f"  {group.count:>{width},}  {what}   (job {journal.folder.name}:{group.example})"
    if (more := len(groups) - _CAUSES_MAX) > 0:
        yield f"  and {more:,} more {'cause' if more == 1 else 'causes'}"


def crash_lines(journal: BatchJournal, groups: list[FailureGroup]) -> Iterator[str]:
    """The first jobs that were given up because they kept taking their workers with them, a card each."""
    crashes = [group for group in groups if group.state is JobState.QUARANTINED and is_death(group)]
    for group in crashes[:_CARDS_MAX]:
        job = f"{journal.folder.name}:{group.example}"
        rerun = command_in(journal.folder.parent.parent, "rerun", job)
        yield from card_lines(journal, group, rerun, lines_max=_CARD_LINES_MAX)


def reason_lines(journal: BatchJournal, state: str) -> Iterator[str]:
    """Why the batch ended before its last job, when there is more to say than that it was interrupted."""
    reason = journal.facts.cancelled or journal.facts.stopped
    if state in {BatchState.STOPPED.value, BatchState.CANCELLED.value} and reason:
        first, *rest = reason.splitlines()
        yield f"{state}: {first}"
        yield from (f"  {line}" for line in rest)


def next_steps(journal: BatchJournal, state: str) -> list[str]:
    """What to do next, the likeliest first; commands as they can be pasted."""
    facts = journal.facts
    failed = facts.count(JobState.FAILED) + facts.count(JobState.QUARANTINED)
    if state == BatchState.CANCELLED.value:
        return [command(journal, "retry", "--cancelled")]
    if state == BatchState.STOPPED.value and LOST not in facts.stopped:
        is_limit = "--max-failures" in facts.stopped
        return [
            *([command(journal, "failures")] if failed else []),
            (
                "fix what it runs, then run the same command to go on"
                if command_words(journal.spec)
                else "fix the task, then run the same command with --accept-code to go on"
            )
            + (f" and {command(journal, 'retry', '--failed')}" if facts.count(JobState.FAILED) else ""),
            "or run it with --new to start from the beginning, or with "
            + ("a higher --max-failures" if is_limit else "--keep-going")
            + " to go on as it is",
        ]
    is_left = facts.done.size < facts.size
    if state != BatchState.FINISHED.value and (is_left or not is_queue(journal.spec)):
        if journal.spec.get("input", {}).get("kind") == "stdin" and not journal.spec.get("is_named"):
            return [f"{command(journal, 'results')} (input from a pipe is continued only when the run has a --name)"]
        if not journal.spec["task"][0]:  # Made from Python, whose program may take more than this to be run again.
            again = f"run the program again: {journal.spec.get('command', '')}"
            return [command(journal, "retry"), f"or {again}"] if is_left else [again]
        without = ", without --new," if "--new" in shlex.split(journal.spec.get("command", "")) else ""
        return [f"run the same command again{without} to continue"]
    if not facts.size:
        return [command_in(journal.folder.parent.parent, "ls")]
    return [command(journal, "failures" if failed else "results")]


def command(journal: BatchJournal, verb: str, *options: str) -> str:
    """`batchd VERB BATCH` for this batch, with what it takes to mean this very batch of this very journal."""
    batch = LAST if is_newest(journal.folder) else journal.folder.name
    known = limits(journal.spec) if verb == "retry" else ()
    return command_in(journal.folder.parent.parent, verb, batch, *options, *known)


def limits(spec: Mapping[str, Any]) -> list[str]:
    """The options that end jobs which take too much, as the command that made the batch has them.

    >>> limits({"command": "batchd run m:f --range 0:3 --timeout 2s --memory-per-job=1G -j 2"})
    ['--timeout', '2s', '--memory-per-job=1G']
    """
    words = shlex.split(spec.get("command", ""))
    found: list[str] = []
    for at, word in enumerate(words if words[:1] == ["batchd"] else ()):
        option, equals, _ = word.partition("=")
        if option in _LIMITS:
            found += [word] if equals else words[at : at + 2]
    return found


def command_in(folder: Path, *words: str) -> str:
    """`batchd WORDS` for the journal in `folder`."""
    return shlex.join(["batchd", *words, *(() if is_default(folder) else ("--journal", typed(folder)))])


def typed(path: Path) -> str:
    """The path as it can be typed here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) and path != here else str(path)


def _name(journal: BatchJournal) -> str:
    return str(journal.spec.get("name") or journal.folder.name)


def _label(group: FailureGroup) -> str:
    """What tells a cause best in a word or two: of a crash, how the worker died."""
    return group.message if group.type == "JobCrashed" and len(group.message) <= 40 else visible_line(group.type)


def _cores_busy(usage: Mapping[str, float], elapsed_s: float) -> float | None:
    busy_s, cpu_s = usage.get("busy_s", 0.0), usage.get("cpu_s", 0.0)
    if not busy_s or elapsed_s <= 0:
        return None
    is_other_news = cpu_s >= _CPU_KNOWN_S and abs(cpu_s - busy_s) > _CPU_CLOSE * busy_s
    return (cpu_s if is_other_news else busy_s) / elapsed_s


def _read_causes(journal: BatchJournal) -> tuple[list[FailureGroup], str]:
    """The causes, or none and why: the end of a run is told in any case."""
    try:
        return group_failures(journal, Outcomes(journal)), ""
    except BatchdError as error:
        return [], str(error)
