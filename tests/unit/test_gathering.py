"""Entries that wait for the next commit: all of them in order, but of a job's checkpoints the last."""

from batchd.core import entries as e
from batchd.core.job import History, JobState
from batchd.supervisor.unsaved import Unsaved


def gathered(*entries: e.Entry) -> Unsaved:
    unsaved = Unsaved()
    for entry in entries:
        unsaved.add(entry)
    return unsaved


def recorded(block: bytes) -> e.Recorded:
    return e.Recorded("b", 0, 1, JobState.SUCCEEDED, block)


def test_of_a_jobs_checkpoints_the_last_is_saved_however_many_came() -> None:
    charged, sealed = e.Charged("b", 3, 1, History(1)), e.Sealed("b")
    notes = [e.Noted("b", 7, bytes([number])) for number in range(100)]
    other, elsewhere = e.Noted("b", 8, b"other"), e.Noted("c", 7, b"elsewhere")
    found = gathered(charged, notes[0], other, *notes[1:50], sealed, elsewhere, *notes[50:]).take()
    assert found == {"b": [charged, notes[-1], other, sealed], "c": [elsewhere]}


def test_nothing_else_is_taken_for_the_same() -> None:
    entries = [e.Sealed("b"), e.Unsealed("b"), e.Sealed("b"), e.Sealed("b")]
    assert gathered(*entries).take() == {"b": entries}


def test_what_is_taken_is_counted_no_more() -> None:
    unsaved = gathered(recorded(b"1234"), recorded(b"56"), e.Sealed("b"))
    assert (unsaved.nbytes, unsaved.is_urgent, bool(unsaved)) == (6, True, True)
    unsaved.take()
    assert (unsaved.nbytes, unsaved.is_urgent, bool(unsaved)) == (0, False, False)


def test_all_that_workers_may_send_is_counted_as_long_as_it_is_kept() -> None:
    """A job may leave 64 MiB as often as it likes, and one in every batch may."""
    failed = e.Recorded("b", 1, 1, JobState.FAILED, failure=b"123")
    unsaved = gathered(failed, e.Explained("b", b"print", b"1234"), e.Noted("b", 7, bytes(10)))
    assert unsaved.nbytes == 17
    unsaved.add(e.Noted("b", 7, bytes(2)))
    assert unsaved.nbytes == 9
    unsaved.add(e.Noted("c", 7, bytes(5)))
    assert unsaved.nbytes == 14
    unsaved.take_trims()
    assert unsaved.nbytes == 14


def test_what_only_makes_room_is_taken_from_between_the_others() -> None:
    note, again = e.Noted("b", 7, b"1"), e.Noted("b", 7, b"2")
    trims = [e.Trimmed("b", ((0, 1),)), e.Trimmed("c", ((0, 9),))]
    unsaved = gathered(trims[0], recorded(b"12"), note, trims[1])
    assert unsaved.take_trims() == trims
    unsaved.add(again)
    assert unsaved.nbytes == 3
    assert unsaved.is_urgent, "somebody may wait for what was taken"
    assert unsaved.take() == {"b": [recorded(b"12"), again]}
