"""A full disk: what runs comes to its end, and nothing more begins until a commit fits."""

from batchd.core import commands as c
from batchd.core import events as ev
from batchd.core.job import JobState
from tests.unit.core.test_scheduler import leased


def test_while_the_disk_is_full_nothing_more_begins() -> None:
    desk = leased()
    desk.tell(ev.DiskFilled())

    turn = desk.tell(ev.JobsAcked(1, 1, 0, 1, JobState.SUCCEEDED, b"block", 0.1), ev.LeaseEnded(1, 1, 1))
    assert turn.commands == []
    assert desk.tell(ev.DiskFilled()).commands == []
    assert {type(command) for command in desk.commit().commands} == {c.GrantLease}
