"""The grace before a kill, step by step: who gets it, and what ends it."""

from collections.abc import Callable

import pytest

from batchd.core.events import Phase
from batchd.edge import grace
from batchd.settings import CANCEL_GRACE_S
from batchd.worker.recorder import POSITION, SLOT_BYTES, Lane, Slot, phase_word


class Scene:
    """A slot whose worker runs job 12 of lease 7 and looks for its end, a clock, and whether the kill came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slot = Slot(memoryview(bytearray(SLOT_BYTES)).cast("Q"))
        self.slot.write_lane(0, Lane(7, 10, 20, 1, is_timed=False, batch="b", reach=20))
        self.slot.write_lane(1, Lane(8, 40, 50, 1, is_timed=False, batch="other", reach=50))
        self.now = 100.0
        self.kills = 0
        self._looks: list[Callable[[], None]] = []
        monkeypatch.setattr(grace, "monotonic", lambda: self.now)
        self.go_to(Phase.RUNNING, 12)
        self.slot.watch(7, 12)

    def go_to(self, phase: Phase, index: int, lane: int = 0) -> None:
        first = 10 if lane == 0 else 40
        self.slot.words[POSITION] = phase_word(phase, lane) | (index - first)

    def begin(self) -> None:
        grace.when_ended(self.slot, lambda _, call: self._looks.append(call), self._kill)

    def look(self, after_s: float = 0.01) -> int:
        """Let time pass to the next look; return how often the worker was killed."""
        self.now += after_s
        looks, self._looks = self._looks, []
        for call in looks:
            call()
        return self.kills

    def _kill(self) -> None:
        self.kills += 1


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_a_job_that_ends_has_its_outcome_sent_before_the_kill(scene: Scene) -> None:
    scene.begin()
    assert scene.look() == 0
    scene.go_to(Phase.REPORTING, 12)
    assert scene.look() == 0
    scene.go_to(Phase.RUNNING, 13)  # It only looks at the limit, with the outcome of job 12 in its hands.
    assert scene.look() == 0
    scene.go_to(Phase.REPORTING, 12)
    assert scene.look() == 0
    scene.go_to(Phase.IDLE, 13)
    assert scene.look() == 1
    assert scene.look() == 1


def test_a_job_that_goes_on_is_killed_when_its_time_is_over(scene: Scene) -> None:
    scene.begin()
    assert scene.look(CANCEL_GRACE_S - 0.001) == 0
    assert scene.look(0.002) == 1


def test_another_batchs_job_behind_it_is_not_waited_for(scene: Scene) -> None:
    scene.begin()
    scene.go_to(Phase.RUNNING, 40, lane=1)
    assert scene.look() == 1


def test_a_slot_that_a_new_worker_has_is_not_waited_for(scene: Scene) -> None:
    scene.begin()
    scene.slot.clear()
    assert scene.look() == 1


@pytest.mark.parametrize(
    "prepare",
    [
        lambda scene: scene.slot.clear(),
        lambda scene: scene.go_to(Phase.IDLE, 13),
        lambda scene: scene.go_to(Phase.RUNNING, 13),
        lambda scene: scene.slot.watch(6, 12),
    ],
    ids=["before its first lease", "at rest", "of the next job", "when an earlier lease's job looked"],
)
def test_there_is_no_grace(scene: Scene, prepare: Callable[[Scene], None]) -> None:
    prepare(scene)
    scene.begin()
    assert scene.kills == 1
