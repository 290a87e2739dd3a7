"""Cards in the terminal: all that is known of one job that died, said where its batch is being told of anyway.

What a card says is decided in joberrors.py; here it is made for a group of failures, whose first job it shows. The
one idea: a death that was seen has details, and only such a one is worth a card.
"""

from typing import Any, Final

from batchd.edge.failures import FailureGroup
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.formats.report import Failure
from batchd.units import format_duration, format_size

_DEATHS: Final = frozenset({"JobCrashed", "JobTimeout", "JobOverMemory"})


def is_death(group: FailureGroup) -> bool:
    """Whether these jobs took their workers with them, or were ended with them, and somebody saw how.

    >>> from batchd.core.job import JobState
    >>> is_death(FailureGroup("", "JobCrashed", "killed by SIGSEGV", JobState.QUARANTINED, details={"pid": 7}))
    True
    """
    return group.type in _DEATHS and "pid" in group.details


def card_lines(journal: BatchJournal, group: FailureGroup, rerun: str, *, lines_max: int | None = None) -> list[str]:
    """Return the card of the group's first job. `rerun` is the command that runs it again in the foreground."""
    from batchd.client.reading import input_at  # noqa: PLC0415  (20 ms, for a run that met a crash)
    from batchd.joberrors import card, error_of  # noqa: PLC0415

    failure = Failure(group.type, group.message, b"", group.output, group.details)
    given = input_at(journal, Outcomes(journal), group.example)
    error = error_of(journal.folder.name, group.example, group.state, failure, "", given, rerun=rerun)
    return card(error, lines_max=lines_max)


def details_text(details: dict[str, Any]) -> str:
    """Return what is known of a failure beyond how it went, in words."""
    known = {
        "attempt": lambda value: f"attempt {value}",
        "cpu_s": lambda value: f"{format_duration(value)} of CPU",
        "memory_peak_bytes": lambda value: f"peak {format_size(value)}",
        "rss_peak_bytes": lambda value: f"peak {format_size(value)} with what is shared",
    }
    unsaid = {"pid", "signal", "exit_code"}  # The message says how it died; the process is gone.
    return ", ".join(
        known[name](value) if name in known else f"{name} {value}"
        for name, value in details.items()
        if name not in unsaid and not (name == "attempt" and value == 1)
    )
