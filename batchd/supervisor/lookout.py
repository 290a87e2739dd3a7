"""The lookout: what others do to the files of open batches, which LMDB never tells whoever writes them.

The one idea: it is rare and harmless for a while, so it is looked for now and then, beside the samples, by two stats
a batch and its table of readers. No commit waits for it or does anything for it. Where the table was full, the dead
are taken out of it, for nobody else can who is not in yet.
"""

import os
from pathlib import Path

from batchd.core import events as ev
from batchd.edge.environment import DATA_NAME, LOST
from batchd.edge.journal import BatchJournal
from batchd.edge.log import say
from batchd.settings import LOOK_S
from batchd.supervisor.clients import Host
from batchd.units import visible


class Lookout:
    """Looks at the batches that a supervisor has open."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._due = 0.0
        self._late: set[tuple[str, int, int]] = set()
        """(batch, pid, transaction) of the readers that were late at the last look."""
        self._warnings: dict[tuple[str, int, int], str] = {}

    @property
    def warnings(self) -> list[str]:
        """What somebody should see to, in words."""
        return list(self._warnings.values())

    def look(self, now: float) -> None:
        """Look, if it is time."""
        if now < self._due:
            return
        self._due = now + LOOK_S
        late: dict[tuple[str, int, int], str] = {}
        for name, journal in self._host.journals.items():
            self._stop_if_lost(name, journal)
            if journal.was_crowded:
                self._host.aside.do(journal.clear_places)
            for (pid, transaction), commits in journal.late_readers().items():
                if warning := _warning(pid, name, commits):
                    late[name, pid, transaction] = warning
        # A reader that is late once may only have had no CPU for a moment.
        found = {reader: warning for reader, warning in late.items() if reader in self._late}
        for reader in found.keys() - self._warnings.keys():
            say(found[reader])
        self._late, self._warnings = set(late), found

    def _stop_if_lost(self, name: str, journal: BatchJournal) -> None:
        batch = self._host.scheduler.batches.get(name)
        if batch is None or not batch.may_stop or not (lost := journal.opened.lost()):
            return
        path = journal.folder / lost
        if lost == DATA_NAME:
            what = "what was recorded since is lost with it. Put the batch's own file back, or one of a backup"
        else:
            what = "its readers would no longer be seen. Nothing that was recorded is lost"
        reason = f"{path} {LOST}: {what}; run it again to go on"
        say(f"batch {name} is stopped: {reason}")
        self._host.emit(ev.JournalLost(name, reason))


def _warning(pid: int, name: str, commits: int) -> str:
    """Say who holds the space of a batch and what ends that; '' of a process that is no more, or is this one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    if pid == os.getpid():
        return ""
    command, _, rest = stat.partition("(")[2].rpartition(")")
    text = f"process {pid} ({visible(command)}) has been reading batch {name} for {commits:,} commits"
    text += f": until it ends the batch's file only grows; `kill {pid}` ends it"
    return text + f", `kill -CONT {pid}` lets it go on, for it was stopped" * (rest.split()[0] in {"T", "t"})
