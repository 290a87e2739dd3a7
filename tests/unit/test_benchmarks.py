"""The benchmarks' own law: the arithmetic is right, wrong results never get a time, the page says what was missed."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import compiled, machine, n1_noop, n2_submit, n3_round_trip, n8_arrays, page, table
from benchmarks.contest import Absent, Contender, Contest, Goal, Sample, Setting
from benchmarks.figures import Ran, efficiency, fastest, gap_share, greedy_bound_s, outside_share, ratios
from benchmarks.jobs import TAIL_MS, noop, spin, tail_ms
from benchmarks.machine import name_of
from benchmarks.pools import run_bare, run_executor
from benchmarks.rounds import measure, stored

MACHINE = {
    "cpu": "Some CPU",
    "cores": 2,
    "memory_gib": 4.0,
    "kernel": "Linux 6.1",
    "file_system": "ext4",
    "python": "3.11.7",
    "versions": {"batchd": "0.1.0", "lmdb": "3.0.0"},
    "date": "2026-01-02T03:04:05+00:00",
}
MADE = {
    "command": "scripts/bench",
    "date": "2026-01-02T03:04+00:00",
    "rounds": 2,
    "workers": 2,
    "load_before": [1.5, 1.0, 0.5],
}


def silent(_: str) -> None:
    pass


def contest(*contenders: Contender, goals: tuple[Goal, ...] = ()) -> Contest:
    return Contest(
        number="N1",
        title="things",
        jobs=10,
        expected_checksum=45,
        contenders=contenders,
        goals=goals,
        counted="everything",
    )


def contender(name: str, *samples: Sample) -> Contender:
    left = iter(samples)
    return Contender(name, "none", lambda: next(left))


def absent() -> Sample:
    raise Absent("not run: too slow")


def good(seconds: float, **figures: float) -> Sample:
    return Sample(seconds, 10, 45, figures)


# --- The arithmetic --------------------------------------------------------------------------------------------


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios([1.0, 4.0], [2.0, 2.0]) == [2.0, 0.5]
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


def test_the_fastest_is_the_one_with_the_lowest_median() -> None:
    seconds = {"a": [1.0, 9.0, 9.0], "b": [2.0, 2.0, 2.0]}
    assert fastest(seconds, ["a", "b", "absent"]) == "b"
    assert fastest(seconds, ["absent"]) is None


@pytest.mark.parametrize(("cpu_s", "bound_s"), [([1.0, 1.0, 1.0, 1.0], 2.0), ([3.0, 0.5], 3.0), ([], 0.0)])
def test_no_schedule_beats_the_greedy_bound(cpu_s: list[float], bound_s: float) -> None:
    assert greedy_bound_s(cpu_s, 2) == bound_s


def test_efficiency_is_the_bound_over_the_wall() -> None:
    assert efficiency([1.0, 1.0], 2, 1.25) == 0.8


def test_gaps_are_those_between_jobs_of_one_worker() -> None:
    ran = [Ran(1, 0.0, 5.0, 10.0, 1), Ran(1, 0.0, 0.0, 4.0, 1), Ran(1, 0.0, 0.0, 10.0, 2)]
    assert gap_share(ran) == pytest.approx(1.0 / 20.0)
    assert gap_share([]) == 0.0


def test_what_is_not_in_jobs_is_outside() -> None:
    assert outside_share(4.0, 3.96) == pytest.approx(0.01)


def test_the_tail_is_the_same_every_time_and_holds_its_longest_job() -> None:
    lengths = tail_ms(200, seed=1)
    assert lengths == tail_ms(200, seed=1) != tail_ms(200, seed=2)
    assert min(lengths) >= TAIL_MS[0]
    assert max(lengths) == TAIL_MS[1]


# --- The rounds ------------------------------------------------------------------------------------------------


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def run(name: str) -> Sample:
        order.append(name)
        return good(1.0)

    measure(contest(*(Contender(name, "none", partial(run, name)) for name in "abc")), 2, silent)
    assert order == list("abcabc")


@pytest.mark.parametrize("wrong", [Sample(0.1, 9, 45), Sample(0.1, 10, 44)])
def test_a_contender_with_wrong_results_has_no_time(wrong: Sample) -> None:
    quick = contender("quick", good(0.1), wrong, good(0.1))
    slow = contender("slow", *[good(1.0)] * 3)
    outcome = measure(contest(quick, slow, goals=(Goal("slow", 1.0, ("quick",)),)), 3, silent)
    assert outcome.seconds == {"slow": [1.0, 1.0, 1.0]}
    assert "instead of" in outcome.refused["quick"]
    assert outcome.verdicts()[0].reached is None
    assert not outcome.verdicts()[0].is_met


def test_goals_are_held_against_the_faster_reference_and_against_figures() -> None:
    goals = (
        Goal("batchd", 2.0, ("x", "y")),
        Goal("batchd", 0.95, figure="efficiency"),
        Goal("batchd", 0.01, figure="gaps", is_maximum=True),
    )
    made = measure(
        contest(
            contender("batchd", good(1.0, efficiency=0.96, gaps=0.02), good(2.0, efficiency=0.98, gaps=0.04)),
            contender("x", good(3.0), good(3.0)),
            contender("y", good(4.0), good(4.0)),
            goals=goals,
        ),
        2,
        silent,
    )
    ratio, reached, gaps = made.verdicts()
    assert (ratio.reference, ratio.rounds, ratio.is_met) == ("x", [3.0, 1.5], True)
    assert (reached.reached, reached.is_met) == (0.97, True)
    assert (gaps.reached, gaps.is_met) == (0.03, False)


# --- The page --------------------------------------------------------------------------------------------------


def run_of(*, seconds: float) -> dict[str, Any]:
    made = measure(
        contest(
            contender("batchd", good(1.0, efficiency=0.5), good(1.0, efficiency=0.5)),
            contender("pool", good(seconds), good(seconds)),
            contender("liar", Sample(0.1, 1, 45)),
            Contender("snail", "disk", absent),
            goals=(Goal("batchd", 2.0, ("pool",)), Goal("batchd", 0.95, figure="efficiency")),
        ),
        2,
        silent,
    )
    return {"machine": MACHINE, "contests": [stored(made) | {"made": MADE}]}


def test_the_page_says_what_was_reached_and_what_was_missed(tmp_path: Path) -> None:
    kept, written = page.write(run_of(seconds=2.0), tmp_path)
    assert kept == tmp_path / "results/2026-01-02-some-cpu-2.json"
    assert json.loads(kept.read_text())["contests"][0]["contenders"][0]["seconds"] == [1.0, 1.0]
    text = written.read_text()
    assert "| pool | none | 2.000 (2.000 to 2.000) | 5 | 2.00x |" in text
    assert "| liar | none | refused: WrongResults: 1 results instead of 10 |" in text
    assert "| snail | disk | not run: too slow | - | - |" in text
    assert "| 2 (pool) | 2, 2 | met |" in text
    assert "| N1 | 10 things | batchd: efficiency >= 0.95 | 0.5 | **missed** |" in text
    assert "| N12 | - | - | - | **not measured** |" in text
    assert "| batchd: efficiency >= 0.95 | 0.5 | 0.5, 0.5 | **missed** |" in text
    assert "the machine was not idle" in text
    assert "lmdb 3.0.0" in text


def test_the_page_has_a_table_of_peers(tmp_path: Path) -> None:
    def lost() -> Sample:
        raise Absent("lost 3 of 10 results: 3 errors, 1.0 s")

    ways = [replace(contender(f"map, {size}", good(size), good(size)), peer="executor") for size in (3.0, 2.0)]
    made = measure(
        contest(
            contender("batchd", good(0.1), good(0.1)),
            *ways,
            replace(contender("celery", good(0.25)), peer="celery", rounds_max=1),
            Contender("rq", "process", lost, peer="rq"),
        ),
        2,
        silent,
    )
    here = MACHINE | {"versions": {"celery": "5.5", "redis-server": "7.0"}}
    _, written = page.write({"machine": here, "contests": [stored(made) | {"made": MADE}]}, tmp_path)
    text = written.read_text()
    assert "| peer | version | survives | N1: things |" in text
    assert "| executor | Python 3.11.7 | none | 20x |" in text, "its fastest way"
    assert "| celery | celery 5.5, redis-server 7.0 | process | 2.5x |" in text
    assert "| rq | - | process | lost 3 of 10 results |" in text
    assert "| celery (1 round) | none | 0.250" in text


def test_the_page_keeps_what_this_run_did_not_measure(tmp_path: Path) -> None:
    page.write(run_of(seconds=2.0), tmp_path)
    other = run_of(seconds=3.0)
    other["contests"][0] |= {"number": "N4", "title": "other things"}
    _, written = page.write(other, tmp_path)
    assert written.read_text().index("## N1: 10 things") < written.read_text().index("## N4: 10 other things")


def test_an_older_run_is_still_read(tmp_path: Path) -> None:
    older = run_of(seconds=2.0)
    older["machine"] = MACHINE | {"versions": {"ray": "2.0"}}
    for each in older["contests"][0]["contenders"]:
        del each["absent"]  # As it was before there were any.
    page.write(older, tmp_path)
    newer = run_of(seconds=3.0)
    newer["contests"][0] |= {"number": "N4"}
    _, written = page.write(newer, tmp_path)
    assert "ray 2.0, batchd 0.1.0" in written.read_text()


def test_a_machine_has_a_file_name() -> None:
    assert name_of({"cpu": "Intel(R) Core(TM) i7", "cores": 8}) == "intel-r-core-tm-i7-8"
    assert set(machine.moment()) == {"date", "load_before"}


def test_the_terminal_gets_plain_columns_without_rich() -> None:
    assert table.plain("", [["a", "b"], ["cc", "d"]]) == ["a   b", "cc  d"]


# --- The real thing, very small --------------------------------------------------------------------------------


def lying(results: Iterable[int]) -> tuple[int, int]:
    values = list(results)
    return len(values), sum(values) + 1


def test_n1_checks_real_results(tmp_path: Path) -> None:
    integers = n1_noop.contests(Setting(workers=2, is_quick=True, scratch=tmp_path, scale=0.01))[0]
    liar = partial(run_executor, noop, range(2_000), lying, workers=2, warm=range(2), chunksize=100)
    competing = replace(integers, contenders=(*integers.contenders[:3], Contender("liar", "none", liar)))
    outcome = measure(competing, 1, silent)
    assert set(outcome.refused) == {"liar"}
    assert [len(times) for times in outcome.seconds.values()] == [1, 1, 1]
    assert outcome.figures["batchd"][0]["commits"] >= 1


@pytest.mark.parametrize(
    ("number", "names"),
    [
        (n2_submit, ("batchd", "batchd, throw-away")),
        (n3_round_trip, ("batchd", "floor: 2 durable commits and a pipe there and back")),
        pytest.param(n8_arrays, ("batchd", "this disk: one file, then fdatasync"), marks=pytest.mark.slow),
    ],
)
def test_numbers_of_an_executor_check_real_results(
    number: ModuleType, names: tuple[str, ...], tmp_path: Path
) -> None:
    if number is n8_arrays:
        pytest.importorskip("numpy")
    for whole in number.contests(Setting(workers=2, is_quick=True, scratch=tmp_path, scale=0.001)):
        chosen = tuple(each for each in whole.contenders if each.name in names)
        outcome = measure(replace(whole, contenders=chosen), 1, silent)
        assert outcome.refused == {}
        assert set(outcome.seconds) == set(names)


def test_the_compiled_loop_runs_the_jobs(tmp_path: Path) -> None:
    seconds = compiled.loop_s(tmp_path, noop, range(100))
    assert (seconds is None) == (shutil.which("cc") is None)


def test_jobs_of_bare_processes_measure_themselves() -> None:
    kept: list[Ran] = []

    def fold(results: Iterable[Any]) -> tuple[int, int]:
        kept.extend(Ran(*result) for result in results)
        return len(kept), sum(job.loops for job in kept)

    sample = run_bare(spin, [100, 200, 300], fold, workers=2)
    assert (sample.results, sample.checksum, len({job.process for job in kept})) == (3, 600, 2)
    assert all(job.stopped_s >= job.started_s for job in kept)
