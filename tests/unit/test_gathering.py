"""Entries that wait for the next commit: all of them in order, but of a job's checkpoints the last."""

from collections import defaultdict

from batchd.core import entries as e
from batchd.core.job import History
from batchd.supervisor.loop import Supervisor


def gathered(*entries: e.Entry) -> dict[str, list[e.Entry]]:
    loop = Supervisor.__new__(Supervisor)
    loop._unsaved, loop._unsaved_notes = defaultdict(list), {}
    for entry in entries:
        loop._save_later(entry)
    return loop._unsaved


def test_of_a_jobs_checkpoints_the_last_is_saved_however_many_came() -> None:
    charged, sealed = e.Charged("b", 3, 1, History(1)), e.Sealed("b")
    notes = [e.Noted("b", 7, bytes([number])) for number in range(100)]
    other, elsewhere = e.Noted("b", 8, b"other"), e.Noted("c", 7, b"elsewhere")
    found = gathered(charged, notes[0], other, *notes[1:50], sealed, elsewhere, *notes[50:])
    assert found == {"b": [charged, notes[-1], other, sealed], "c": [elsewhere]}


def test_nothing_else_is_taken_for_the_same() -> None:
    entries = [e.Sealed("b"), e.Unsealed("b"), e.Sealed("b"), e.Sealed("b")]
    assert gathered(*entries) == {"b": entries}
