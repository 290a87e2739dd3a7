"""Two requests that the loop takes in at once: each is answered, and the answers and the journal tell the same story.

The one idea: what comes of two that met is what comes of them one after the other, in one order or the other. Who was
refused is left out of that story, for it was told that nothing is done.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, permutations, product
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, NamedTuple

import pytest

from batchd.core import commands as c
from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.job import JobState
from batchd.core.scheduler import Scheduler
from batchd.edge.folder import open_folder
from batchd.edge.journal import BatchJournal
from batchd.formats.report import Failure
from batchd.formats.segment import input_blocks
from batchd.supervisor.aside import Aside, Made
from tests.author import submission
from tests.bench import WAIT_S
from tests.host import Caller, Host

# --- The loop --------------------------------------------------------------------------------------------------


class Counted(Aside):
    """Knows whether something is under way in a thread of its own."""

    under_way = 0

    def do_alone(self, work: Callable[[], Made], then: Callable[[Made | Exception], None]) -> None:
        def over(made: Made | Exception) -> None:
            self.under_way -= 1
            then(made)

        self.under_way += 1
        super().do_alone(work, over)


class Deciding(Host):
    """A loop that steps, answers and commits as the supervisor's does, without a worker: the test says when."""

    aside: Counted

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Scheduler(lambda: 0.0), Counted)
        self._turn = self._durable = 0
        self._waiting: list[tuple[int, Callable[[], None]]] = []

    def after_commit(self, call: Callable[[], None]) -> None:
        self._waiting.append((self._turn + 1, call))

    def turn(self) -> None:
        """Take in what is there, without waiting."""
        for key, _ in self.selector.select(0):
            key.data()

    def gather(self) -> None:
        """Take in all that is there, with what comes of it aside."""
        deadline = monotonic() + WAIT_S
        self.turn()
        while self.aside.under_way:
            assert monotonic() < deadline, "what is done aside is never over"
            self.turn()

    def commit(self) -> None:
        """Decide about what was taken in, and make it durable."""
        events, self.events = self.events, []
        made = self.scheduler.step(events, monotonic())
        self.scheduler.check()
        self._turn = made.number
        if not made.entries:
            self._durable = made.number
        waiting, self._waiting = self._waiting, []
        self._waiting = [(due, call) for due, call in waiting if due > self._durable]
        for call in [call for due, call in waiting if due <= self._durable]:
            call()
        for command in made.commands:
            if isinstance(command, c.PutDown):
                self.put_down(command.batch)
        for name in {entry.batch for entry in made.entries}:
            self.progress[name] = self.journals[name].commit([each for each in made.entries if each.batch == name])
        if made.entries:
            self._durable = made.number
            self.emit(ev.Committed(made.number))

    def settle(self) -> None:
        """Make turns until nothing more comes of what it was asked."""
        deadline = monotonic() + WAIT_S
        self.gather()
        while self.events or self._waiting or self.aside.under_way:
            assert monotonic() < deadline, "it never settles"
            self.commit()
            self.gather()


# --- What is asked ---------------------------------------------------------------------------------------------

Request = Callable[[Caller], int]


def _submit(caller: Caller) -> int:
    """Add a job, in a client's name of its own."""
    body = b"".join(block for _, block in input_blocks([7]))
    return caller.send("submit", body, batch="b", client=str(id(caller)), sequence=1, checkpoint="")


def _asking(do: str, **fields: Any) -> Request:
    return lambda caller: caller.send(do, **{"batch": "b", **fields})


def _retrying(*states: JobState, **fields: Any) -> Request:
    return _asking("reopen", states=[int(state) for state in states], **fields)


_BAD = (JobState.FAILED, JobState.QUARANTINED)
REQUESTS: dict[str, Request] = {
    "open": lambda caller: caller.open(),
    "open a queue": lambda caller: caller.open(is_shared=True),
    "open by other rules": lambda caller: caller.open(is_shared=True, timeout_s=7.5),
    "submit": _submit,
    "seal": _asking("seal"),
    "unseal": _asking("unseal"),
    "withdraw": _asking("withdraw", ranges=[[0, 1]]),
    "detach": _asking("detach"),
    "cancel": _asking("cancel", reason="enough"),
    "cancel if idle": _asking("cancel", reason="enough", if_idle=True),
    "retry failed": _retrying(JobState.FAILED),
    "retry quarantined": _retrying(JobState.QUARANTINED),
    "retry all": _retrying(*_BAD, JobState.CANCELLED),
    "replace": _retrying(*_BAD, ranges=[[1, 4]], is_replaced=True),
    "accept code": _asking("accept_code", digest="new"),
    "prune": _asking("prune"),
    "one more worker": _asking("scale", workers=None, change=1),
}
OF_THE_BOUND = {"submit", "seal", "unseal", "withdraw", "one more worker"}
"""They are about a batch that is open, and left to whoever opened it."""
Asked = tuple[int, str]
"""Which client asks, and what."""


# --- What came of it -------------------------------------------------------------------------------------------


class Story(NamedTuple):
    """What came of requests."""

    answers: dict[Asked, Any]
    """What each was promised, but for what may have changed since; None when it was refused."""
    journal: tuple[Any, ...]
    """What is durable when everybody has left; nothing when the batch was removed."""
    scaled: int | None


_numbers = count()


def played(place: Path, openers: int, groups: Sequence[Sequence[Asked]], *, turns_between: int = 0) -> Story:
    """Have two clients, of whom so many have the batch open, ask what each group names at once, or nearly so."""
    folder = open_folder(place / str(next(_numbers)))
    _make_batch(folder)
    host = Deciding(folder)
    callers = [Caller(host), Caller(host)]
    for caller in callers[:openers]:
        caller.open(is_shared=openers == 2)
        host.settle()
    answers: dict[Asked, Any] = {}
    for group in groups:
        numbers: dict[Asked, int] = {}
        for who, what in group:
            for _ in range(turns_between if numbers else 0):
                host.commit()
                host.turn()
            numbers[who, what] = REQUESTS[what](callers[who])
        host.settle()
        for asked, number in numbers.items():
            callers[asked[0]].take_in()
            assert number in callers[asked[0]].replies, f"nobody answers {asked[1]!r}"
            answers[asked] = _promised(callers[asked[0]].replies[number])
    for caller in callers:
        caller.close()
    host.settle()
    assert not host.journals, "it is never put down"
    host.close()
    return Story(answers, _durable(folder), host.scheduler.scaled)


def _make_batch(folder: Path) -> None:
    """Make a batch of five jobs: the second failed, the fourth is quarantined, the others have not begun."""
    journal = BatchJournal.create(folder / "batches" / "b", {"durability": "process", "digest": "old"})
    journal.commit([submission(journal.facts, list(range(5)))])
    failure = Failure("Oops", "it failed", bytes(8)).encode()
    bad = zip((1, 3), _BAD, strict=True)
    journal.commit([e.Recorded("b", index, 1, state, failure=failure) for index, state in bad])
    journal.close()


def _promised(reply: dict[str, Any]) -> Any:
    if "error" in reply or "refused" in reply:
        return None
    if "before" in reply:
        return reply["before"], reply["workers"]
    return reply.get("first", "done")


def _durable(folder: Path) -> tuple[Any, ...]:
    if not (folder / "batches" / "b").exists():
        return ()
    journal = BatchJournal(folder / "batches" / "b")
    journal.close()
    facts = journal.facts
    counts = {state: number for state, number in facts.counts.items() if number}
    return list(facts.done), facts.size, counts, facts.is_sealed, facts.cancelled, journal.spec.get("digest")


class Place:
    """Where requests are played, each plan of those one after the other once."""

    def __init__(self, folder: Path, openers: int) -> None:
        self.folder = folder
        self.openers = openers
        self._one_by_one: dict[tuple[Asked, ...], Story] = {}

    def check(self, *pair: Asked, turns_between: int = 0) -> None:
        """Assert that two requests that meet are as good as one after the other."""
        met = played(self.folder, self.openers, [pair], turns_between=turns_between)
        granted = {asked: answer for asked, answer in met.answers.items() if answer is not None}
        stories = [self._story(order) for order in permutations(granted)]
        assert met._replace(answers=granted) in stories, f"{pair}: {met}, and one by one {stories}"

    def _story(self, order: tuple[Asked, ...]) -> Story:
        if order not in self._one_by_one:
            self._one_by_one[order] = played(self.folder, self.openers, [[asked] for asked in order])
        return self._one_by_one[order]


_PAIRS = [
    (0, "open", "open"),
    (0, "open a queue", "open by other rules"),
    (0, "open", "cancel"),
    (0, "open", "prune"),
    (0, "open", "accept code"),
    (0, "cancel", "retry all"),
    (0, "cancel", "prune"),
    (0, "retry failed", "retry quarantined"),
    (1, "retry failed", "retry quarantined"),
    (1, "detach", "open"),
    (2, "cancel", "retry all"),
    (2, "detach", "detach"),
    (2, "seal", "submit"),
    (2, "unseal", "seal"),
    (2, "withdraw", "retry all"),
    (2, "one more worker", "one more worker"),
]


@pytest.mark.parametrize(("openers", "first", "second"), _PAIRS)
def test_two_requests_that_meet_are_as_good_as_one_after_the_other(
    tmp_path: Path, openers: int, first: str, second: str
) -> None:
    place = Place(tmp_path, openers)
    place.check((0, first), (1, second))
    if openers != 1:
        place.check((0, second), (1, first))


def _all_pairs(openers: int) -> Iterator[tuple[Asked, Asked]]:
    for first, second in product(REQUESTS, REQUESTS):
        for pair in {((0, first), (1, second)), ((1, first), (0, second)), ((0, first), (0, second))}:
            is_open_to_all = all(who < openers or what not in OF_THE_BOUND for who, what in pair)
            if is_open_to_all and pair[0] != pair[1]:
                yield pair


@pytest.mark.slow
@pytest.mark.parametrize("turns_between", [0, 1, 2])
@pytest.mark.parametrize("openers", [0, 1, 2])
def test_any_two_requests_that_meet_are_as_good_as_one_after_the_other(
    tmp_path: Path, openers: int, turns_between: int
) -> None:
    place = Place(tmp_path, openers)
    for pair in _all_pairs(openers):
        place.check(*pair, turns_between=turns_between)


class Gate:
    """Stands in for a lock: whoever comes first is seen, and waits until it is opened."""

    def __init__(self) -> None:
        self.is_reached, self.is_open = Event(), Event()

    def __enter__(self) -> None:
        self.is_reached.set()
        assert self.is_open.wait(WAIT_S)

    def __exit__(self, *_: object) -> None: ...


def test_a_retry_is_read_again_when_a_cancel_came_and_was_durable_while_it_was_read(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "journal")
    _make_batch(folder)
    host = Deciding(folder)
    retrying, cancelling = Caller(host), Caller(host)
    retrying.open()
    host.settle()
    gate = host.journals["b"]._map_lock = Gate()  # type: ignore[assignment]
    number = REQUESTS["retry all"](retrying)
    assert gate.is_reached.wait(WAIT_S)
    REQUESTS["cancel"](cancelling)
    while host.events or host._waiting:
        host.commit()
        host.turn()
    assert host.journals["b"].facts.cancelled == "enough"
    gate.is_open.set()
    host.settle()
    retrying.take_in()
    assert _promised(retrying.replies[number]) == "done"
    for caller in (retrying, cancelling):
        caller.close()
    host.settle()
    host.close()
    assert _durable(folder) == ([], 5, {}, True, "", "old")
