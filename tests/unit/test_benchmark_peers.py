"""Peers are run alike, in processes of their own, and who has no time says why."""

import multiprocessing
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any, TypeVar

import psutil
import pytest

from benchmarks import n7_death, n10_start, n11_kills, n12_restart, page
from benchmarks.contest import Absent, Contender, Contest, Sample, Setting, Work
from benchmarks.figures import restart_figures, runs_in
from benchmarks.jobs import added, logged, mortal, noop
from benchmarks.peers import asking, roster, ways
from benchmarks.peers.peer import Peer, Request, Restartable, Task
from benchmarks.peers.place import FOLDER
from benchmarks.rounds import measure, stored

Thing = TypeVar("Thing")


def setting_in(folder: Path, *peers: str, scale: float = 0.05) -> Setting:
    return Setting(workers=2, is_quick=True, scratch=folder, scale=scale, peers=peers)


def asked(way: str, folder: Path, *, task: Task = noop, items: Sequence[Any] = range(100), home: str = "") -> Request:
    return Request(home, way, task, items, added, workers=1, folder=folder, cap_s=30.0, budget_s=1.0, gathers=True)


def only(things: Iterable[Thing]) -> Thing:
    (found,) = things
    return found


# --- Who competes ----------------------------------------------------------------------------------------------


def test_an_unknown_peer_is_named() -> None:
    with pytest.raises(roster.UnknownPeer, match="no peer nobody; known are all, none, executor, pool"):
        roster.chosen("pool,nobody")


def test_a_peer_that_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {
        "gone": roster.Entry("x:Y", "disk", "gone-package", "no_such_module_at_all"),
        "away": roster.Entry("x:Y", "process", program="no-such-command-at-all"),
    }
    monkeypatch.setattr(roster, "ROSTER", missing)
    gone, away = roster.contenders(setting_in(tmp_path, "gone", "away"), "bulk", noop, lambda: range(9), added)
    with pytest.raises(Absent, match=r"pip install 'batchd\[peers\]' brings gone-package"):
        gone.run()
    with pytest.raises(Absent, match="apt-get install no-such-command-at-all"):
        away.run()
    assert (gone.durability, away.durability) == ("disk", "process")
    assert roster.modules(missing) == []


def test_every_peer_of_the_roster_is_a_class_with_what_is_needed() -> None:
    for name in ("executor", "pool", "loky", "joblib", "parallel"):  # Those that load without being installed.
        module, _, kind = roster.ROSTER[name].home.partition(":")
        found = getattr(__import__(module, fromlist=[kind]), kind)
        assert issubclass(found, Peer)
        assert found.map is not Peer.map


# --- The ways --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", roster.STANDARD)
@pytest.mark.parametrize("way", ["bulk", "singles", "window", "trips"])
def test_every_way_gives_all_results_from_another_process(name: str, way: str, tmp_path: Path) -> None:
    contender = only(
        roster.contenders(setting_in(tmp_path, name), way, noop, lambda: range(100), added, gathers=True)
    )
    sample = contender.run()
    assert (sample.results, sample.checksum) == (100, sum(range(100)))
    assert sample.seconds > 0.0
    assert list(tmp_path.iterdir()) == []


def mattering(item: Any) -> Any:
    return item


class Scripted(Peer):
    """Does jobs on the spot; of those that matter 13 fails, and 14 never ends."""

    has_handles = True

    def open(self) -> None: ...

    def submit(self, task: Task, item: Any) -> Any:
        return task, item

    def take(self, handle: Any, timeout_s: float | None = None) -> Any:
        del timeout_s
        task, item = handle
        if task is mattering and item == 13:
            raise ValueError(item)
        if task is mattering and item == 14:
            raise TimeoutError
        return task(item)


class Bulky(Scripted):
    has_handles = False

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        del grain
        return (self.take((task, item)) for item in items)


class Stubborn(Peer):
    """Never comes up, and has started something."""

    def open(self) -> None:
        multiprocessing.Process(target=Event().wait).start()
        Event().wait()


class Remembering(Restartable, Scripted):
    """Does a quarter of what it is given, and the rest when it is begun again."""

    left: list[Any]
    forgets = 0

    def open(self) -> None:
        self.left = []

    def submit(self, task: Task, item: Any) -> Any:
        if item[0] < 5:
            return task(item)
        self.left.append((task, item))
        return None

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        del grain
        return [task(item) for item in items]

    def kill(self) -> None: ...

    def begin(self) -> None:
        for task, item in self.left[self.forgets :]:
            task(item)


def test_lost_jobs_are_told_apart(tmp_path: Path) -> None:
    request = asked("deaths", tmp_path, task=mattering, items=range(20))
    told = "lost 2 of 20 results: 1 errors, ValueError, 1 without an answer"
    with Scripted(1, tmp_path) as peer, pytest.raises(Absent, match=told):
        ways.deaths(peer, request)


def test_without_handles_whatever_follows_the_first_error_is_lost(tmp_path: Path) -> None:
    with Bulky(1, tmp_path) as peer:
        with pytest.raises(Absent, match="no handles"):
            ways.refuse("singles", peer)
        request = asked("deaths", tmp_path, task=mattering, items=range(20))
        with pytest.raises(Absent, match="lost 7 of 20 results: 7 errors, ValueError, 0 without"):
            ways.deaths(peer, request)


def test_who_is_too_slow_is_not_waited_for(tmp_path: Path) -> None:
    request = asked("bulk", tmp_path, task=mattering, items=range(12))._replace(cap_s=1e-9)
    with Bulky(1, tmp_path) as peer, pytest.raises(Absent, match=r"not within 0 s: would take .* s at .* jobs/s"):
        ways.bulk(peer, request)


class Slow(Bulky):
    """Takes a millisecond for a job, by a clock of its own."""

    now_s = 0.0

    def map(self, task: Task, items: Sequence[Any], grain: int) -> Iterable[Any]:
        self.now_s += 0.001 * len(items)
        return super().map(task, items, grain)


def test_a_slow_peer_gets_as_many_jobs_as_the_budget_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asked("bulk", tmp_path, items=range(100_000))._replace(budget_s=0.25, gathers=False)
    with Slow(1, tmp_path) as peer:
        monkeypatch.setattr("benchmarks.peers.ways.time.perf_counter", lambda: peer.now_s)
        sample = ways.bulk(peer, request)
    assert sample.work is not None
    assert sample.results == sample.work.jobs == pytest.approx(250, abs=1)
    assert sample.checksum == sum(range(sample.results))
    assert sample.seconds == pytest.approx(0.001 * sample.results)


def test_jobs_that_travel_together_are_shared_out_evenly() -> None:
    assert [ways._even(jobs, 100) for jobs in (7, 100, 101, 399)] == [7, 100, 100, 300]


def test_in_its_next_round_a_peer_gets_as_many_jobs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[Request] = []

    def answer(request: Request, _: object) -> Sample:
        asked_for.append(request)
        jobs = min(7, len(request.items))
        return Sample(2.0, jobs, 21, work=Work(jobs, None))

    monkeypatch.setattr(roster, "ask", answer)
    contender = only(roster.contenders(setting_in(tmp_path, "pool"), "bulk", noop, lambda: range(100), added))
    subject = Contender("batchd", "disk", lambda: Sample(1.0, 100, sum(range(100))))
    outcome = measure(
        Contest("N1", "things", 100, sum(range(100)), (subject, contender), (), "all"), 5, lambda _: None
    )

    assert [len(request.items) for request in asked_for] == [100, 7], "in the first rounds only"
    assert asked_for[1].budget_s == inf
    assert outcome.refused == {}
    assert (outcome.rate("batchd"), outcome.rate("pool")) == (100.0, 3.5)
    kept = stored(outcome)
    assert page.ahead(kept, kept["contenders"][1]) == pytest.approx([100 / 3.5] * 2)
    assert page.times(kept)[2][0] == "pool (7 jobs, 2 rounds)"


def test_a_peer_that_does_a_part_wrong_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "ask", lambda *_: Sample(2.0, 7, 20, work=Work(7, 20)))
    contender = only(roster.contenders(setting_in(tmp_path, "pool"), "bulk", noop, lambda: range(100), added))
    outcome = measure(Contest("N1", "things", 100, 0, (contender,), (), "all"), 1, lambda _: None)
    assert outcome.refused == {"pool": "WrongResults: the results add up to 20 instead of 21"}


@pytest.mark.slow
def test_a_peer_that_hangs_is_ended_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_START_S", 3.0)
    request = asked("bulk", tmp_path, home=f"{__name__}:Stubborn")._replace(cap_s=0.0)
    with pytest.raises(Absent, match="no answer within 3 s, ended"):
        asking.ask(request, lambda sample: sample)
    children = psutil.Process().children(recursive=True)
    assert [each for each in children if str(tmp_path) in each.environ().get(FOLDER, "")] == []


def test_what_breaks_in_the_other_process_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        asking.ask(asked("bulk", tmp_path, home="no_such_module:Peer"), lambda sample: sample)


# --- Restarts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forgets", [0, 2])
def test_a_restart_is_told_from_what_the_jobs_wrote(
    forgets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "_DOWN_S", 0.0)
    monkeypatch.setattr(Remembering, "forgets", forgets)
    items = [(number, 0.0, str(tmp_path / "log")) for number in range(20)]
    request = asked("restart", tmp_path, task=logged, items=items)._replace(cap_s=0.5)
    with Remembering(1, tmp_path) as peer:
        if forgets:
            with pytest.raises(Absent, match=r"2 of 20 jobs not done 0 s after the kill: none ended"):
                ways.restart(peer, request)
        else:
            sample = ways.restart(peer, request)
            assert (sample.results, sample.checksum) == (20, sum(range(20)))
            assert sample.figures["finished, and ran again"] == 0
    with pytest.raises(Absent, match="no queue that outlives"):
        ways.refuse("restart", Scripted(1, tmp_path))


def test_what_ran_again_is_counted_by_what_it_was() -> None:
    log = "".join(
        f"{line}\n"
        for line in (
            *("begun 1 1.0", "ended 1 2.0", "begun 2 2.0", "ended 2 3.0", "begun 3 3.0"),  # 2 was not recorded.
            *("begun 2 6.0", "ended 2 7.0", "begun 3 7.0", "ended 3 8.0"),
        )
    )
    figures = restart_figures(runs_in(log), killed_at_s=4.0, workers=2)
    assert (figures["ran twice"], figures["cut off by the kill"], figures["finished, and ran again"]) == (2, 1, 1)
    assert figures["the first of these before the kill, ms"] == 1_000.0
    assert figures["until a job began, s"] == 2.0
    assert figures["lost, s"] == 2.0 + (1.0 + 1.0) / 2


# --- The numbers, very small -----------------------------------------------------------------------------------


def absent_of(number: ModuleType, folder: Path, *names: str) -> dict[str, str]:
    """Run those of a number's contenders once; what has a time must be right, and reach or miss every goal."""
    whole = only(number.contests(setting_in(folder, "executor")))
    chosen = tuple(each for each in whole.contenders if each.name in names)
    outcome = measure(replace(whole, contenders=chosen), 1, lambda _: None)
    assert outcome.refused == {}
    assert outcome.seconds.keys() | outcome.absent.keys() == set(names)
    assert all(verdict.reached is not None for verdict in outcome.verdicts())
    return outcome.absent


@pytest.mark.slow
def test_n7_finds_out_when_a_job_runs_again(tmp_path: Path) -> None:
    assert absent_of(n7_death, tmp_path, "batchd") == {}


@pytest.mark.slow
def test_n10_starts_processes(tmp_path: Path) -> None:
    bare = "an interpreter that does nothing"
    assert absent_of(n10_start, tmp_path, bare, "import batchd", "batchd --help") == {}


@pytest.mark.slow
def test_n11_gets_every_result(tmp_path: Path) -> None:
    absent = absent_of(n11_kills, tmp_path, "batchd", "batchd, nobody killed", "executor")
    assert absent["executor"].startswith("lost ")
    assert "BrokenProcessPool" in absent["executor"]


@pytest.mark.slow
def test_n12_gets_every_result(tmp_path: Path) -> None:
    assert "outlives" in absent_of(n12_restart, tmp_path, "batchd", "executor")["executor"]


def test_a_job_that_died_tells_how_long_ago(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    doomed = multiprocessing.Process(target=mortal, args=((7, 0.0, str(mark)),))
    doomed.start()
    doomed.join()
    assert doomed.exitcode == -9
    number, died_before_s = mortal((7, 0.0, str(mark)))
    assert number == 7
    assert died_before_s > 0.0
    assert mortal((8, 0.0, "")) == (8, 0.0)
