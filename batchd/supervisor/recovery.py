"""What every start does before anything else: there is one recovery path, and it is this.

Take the lock, see every process of the earlier supervisor dead, remove batches it was only making, record what its
workers' transcripts say and charge what their slots show as begun and not recorded, and only then raise the epoch and
make a new recorder. Each batch is tried by a child first: damage may kill whoever opens it, and is to cost no other.
"""

from collections import defaultdict, deque
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lmdb

from batchd.core.job import DEFAULT_ALLOWANCES
from batchd.core.lease import reach
from batchd.core.ranges import RangeSet
from batchd.core.replay import LeaseTrace, interrupted
from batchd.core.stored import copy
from batchd.edge import reserve
from batchd.edge.drafts import remove_drafts
from batchd.edge.folder import BATCHES_NAME, is_full, journal_id, raise_epoch, recorder_path
from batchd.edge.isolation import Isolated
from batchd.edge.journal import BatchJournal
from batchd.edge.lock import SupervisorLock, boot_id
from batchd.edge.log import say
from batchd.edge.orphans import become_subreaper, sweep
from batchd.edge.reports import acknowledged, files_of
from batchd.errors import BatchdError, JournalDamaged, JournalFull
from batchd.formats.report import Failure, fingerprint
from batchd.settings import INTERRUPTIONS_MAX, SLOTS
from batchd.worker.recorder import Recorder
from batchd.worker.valuefiles import VALUES_NAME


class Ground(NamedTuple):
    """What a supervisor stands on after recovery."""

    folder: Path
    lock: SupervisorLock
    journal_id: str
    epoch: int
    recorder: Recorder
    recorder_path: Path


def recover(folder: Path) -> Ground:
    """Make the journal in `folder` ready for a new supervisor. Raises SupervisorError, JournalError, TimeoutError."""
    lock = SupervisorLock(folder)
    become_subreaper()
    name = journal_id(folder)
    sweep(name)
    remove_drafts(folder / BATCHES_NAME)
    path = recorder_path(folder, name)
    try:
        epoch = _settle(folder, path, name)
    except (JournalFull, lmdb.Error, OSError) as error:
        if not (isinstance(error, JournalFull) or is_full(error, folder)) or not reserve.lend(folder):
            raise
        epoch = _settle(folder, path, name)  # It may be started to cancel.
    recorder = Recorder.create(path, boot_id=boot_id(), journal_id=name, epoch=epoch, slots=SLOTS)
    return Ground(folder, lock, name, epoch, recorder, path)


def _settle(folder: Path, path: Path, name: str) -> int:
    """Write what became of jobs, then raise the epoch and return it. What was done is not done again."""
    _charge_begun(folder, path, name)
    path.unlink(missing_ok=True)
    return raise_epoch(folder)


def _charge_begun(folder: Path, path: Path, name: str) -> None:
    recorder = _earlier(path, name)
    if recorder is None:
        return
    for (batch, stint), traces in _traces(recorder).items():
        charge = partial(_charge, folder / BATCHES_NAME / batch, stint, traces, recorder)
        with Isolated(lambda _, charge=charge: charge()) as trial:  # type: ignore[misc]
            deque(trial.told(), maxlen=0)
        if trial.is_deadly:
            say(f"batch {batch} stays as it is: whoever looks what had begun of it dies, {trial.death}")
            continue
        charge()  # What the trial has done is not done again; what it met is told here.
    recorder.close()


def _charge(place: Path, stint: int, traces: list[tuple[int, LeaseTrace]], recorder: Recorder) -> None:
    """Write what became of the jobs of a batch, once."""
    try:
        journal = BatchJournal(place, is_writer=True)
    except JournalDamaged as error:
        say(f"batch {place.name} stays as it is: {error}")
        return
    except BatchdError:
        return  # Deleted, or whoever opens it is told.
    try:
        if stint == journal.facts.stint:  # Else of an earlier time, or of another batch that had the id.
            _write(journal, [_with_reports(trace, slot, recorder, journal) for slot, trace in traces])
    except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.BadTxnError) as error:
        say(f"batch {place.name} stays as it is: it can be read and not be written: {error}")
    finally:
        journal.close()


def _write(journal: BatchJournal, traces: list[LeaseTrace]) -> None:
    text = f"was running at {INTERRUPTIONS_MAX} deaths of the supervisor in a row"
    failure = Failure("JobInterrupted", text, fingerprint("JobInterrupted")).encode()
    made = interrupted(copy(journal.facts), traces, DEFAULT_ALLOWANCES, failure)
    if not made:
        return
    try:
        journal.commit(made)
    except (lmdb.Error, OSError) as error:
        if not is_full(error, journal.folder) or not any(trace.reports for trace in traces):
            raise
        _write(journal, [trace._replace(reports=()) for trace in traces])  # Those run again.


def _with_reports(trace: LeaseTrace, slot: int, recorder: Recorder, journal: BatchJournal) -> LeaseTrace:
    """Add what the worker in a slot said of jobs that are not recorded: little of what is in its transcript."""
    facts = journal.facts
    begun, _ = reach(trace.number, trace.first, trace.stop, trace.position)
    left = RangeSet(facts.done.gaps(trace.first, min(begun, facts.size)))
    transcript = recorder.transcript(slot) if left and facts.is_attached else None
    if transcript is None:
        return trace
    said = tuple(acknowledged(slot, transcript, {trace.number}, left))
    return _without_lost(journal.folder, trace._replace(reports=said))


def _without_lost(place: Path, trace: LeaseTrace) -> LeaseTrace:
    """Leave out what names a value file that is gone: it was nobody's by then, and the job is to run again."""
    folder = place / VALUES_NAME
    there = [said for said in trace.reports if all((folder / each.name).exists() for each in files_of(said))]
    return trace._replace(reports=tuple(there))


def _earlier(path: Path, name: str) -> Recorder | None:
    """Return the recorder of the supervisor before, if there is one of this boot."""
    try:
        recorder = Recorder.open(path)
    except (OSError, ValueError):
        return None
    if recorder.boot_id == boot_id() and recorder.journal_id == name:
        return recorder
    recorder.close()
    return None


def _traces(recorder: Recorder) -> dict[tuple[str, int], list[tuple[int, LeaseTrace]]]:
    """Return each lease a recorder describes, with its slot, by batch and stint."""
    traces: dict[tuple[str, int], list[tuple[int, LeaseTrace]]] = defaultdict(list)
    for number in range(recorder.slots):
        slot = recorder.slot(number)
        position = slot.position()
        for lane in slot.lanes():
            trace = LeaseTrace(lane.batch, lane.stint, lane.lease, lane.first, lane.reach, position)
            traces[lane.batch, lane.stint].append((number, trace))
    return traces
