"""The benchmarks of scale: contenders that do different amounts, batches that are killed, simulated time, plots."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import n5_scale, n6_restart, n9_workers, page, plots
from benchmarks.contest import Contender, Contest, Goal, Sample, Setting, Work
from benchmarks.costs import Costs
from benchmarks.model import Model
from benchmarks.rounds import Outcome, measure, stored

MACHINE = {
    "cpu": "Some CPU",
    "cores": 2,
    "memory_gib": 4.0,
    "kernel": "Linux 6.1",
    "file_system": "ext4",
    "python": "3.11.7",
    "versions": {"batchd": "0.1.0"},
    "date": "2026-01-02T03:04:05+00:00",
}
MADE = {"command": "scripts/bench", "date": "2026-01-02", "rounds": 1, "workers": 2, "load_before": [0.0, 0.0, 0.0]}
COSTS = Costs(*[1e-6] * len(Costs._fields))


def silent(_: str) -> None:
    pass


def measured(contests: list[Contest]) -> list[Outcome]:
    outcomes = [measure(contest, 3, silent) for contest in contests]
    assert [outcome.refused for outcome in outcomes] == [{}] * len(outcomes)
    return outcomes


def growth() -> Contest:
    """Two contenders, of which the smaller does a tenth."""
    return Contest(
        number="N5",
        title="things",
        jobs=100,
        expected_checksum=7,
        contenders=(
            Contender(
                "10 jobs", "disk", lambda: Sample(2.0, 10, 3, {n5_scale.MEMORY: 5, n5_scale.DISK: 9}), Work(10, 3)
            ),
            Contender("100 jobs", "disk", lambda: Sample(2.0, 100, 7, {n5_scale.MEMORY: 6, n5_scale.DISK: 8})),
            Contender("liar", "disk", lambda: Sample(2.0, 100, 7), Work(10, 3)),
        ),
        goals=(Goal("100 jobs", 10, figure=n5_scale.MEMORY, is_maximum=True),),
        counted="everything",
        rounds_max=2,
    )


def test_contenders_that_do_less_are_held_against_what_they_do() -> None:
    outcome = measure(growth(), 5, silent)

    assert [outcome.rate("10 jobs"), outcome.rate("100 jobs")] == [5.0, 50.0]
    assert outcome.refused == {"liar": "WrongResults: 100 results instead of 10"}
    assert outcome.seconds["100 jobs"] == [2.0, 2.0], "as many rounds as it may have"
    assert outcome.verdicts()[0].is_met


@pytest.mark.slow
def test_n5_counts_memory_and_bytes_of_real_batches(tmp_path: Path) -> None:
    (outcome,) = measured(n5_scale.contests(Setting(2, is_quick=True, scratch=tmp_path, scale=0.003)))

    assert list(outcome.seconds) == ["1,000 jobs", "3,000 jobs"]
    assert outcome.figure("3,000 jobs", n5_scale.MEMORY)
    assert (outcome.figure("3,000 jobs", n5_scale.SHARE) or 0) > 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_n6_restarts_real_supervisors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(n6_restart, "_NAPPERS", 3)
    naps, grown = measured(n6_restart.contests(Setting(2, is_quick=True, scratch=tmp_path, scale=0.002)))

    for outcome, name in ((naps, "batchd"), (grown, "2,000 jobs")):
        phases = [outcome.figure(name, figure) for figure in (n6_restart.READY, n6_restart.TO_FIRST_JOB)]
        assert None not in phases
        assert phases == sorted(filter(None, phases)), "first it answers, then it has jobs run"
    assert (naps.figure("batchd", "jobs done before") or 0) >= 100


@pytest.mark.parametrize("job_s", [0.001, 0.02, 1.0])
def test_in_simulated_time_no_job_is_lost_and_nobody_is_busier_than_all_the_time(job_s: float) -> None:
    model = Model(5, job_s, COSTS, played=2_000, given=2_000)
    played = model.play()

    model._scheduler.check()
    assert 0 < played.busy <= 1
    assert 0 < played.whole <= 1
    assert len(model._ends) == 2_000, "each job ran once"


@pytest.mark.slow
def test_n9_measures_costs_and_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(n9_workers, "_REAL_WORKERS", (2,))
    (contest,) = n9_workers.contests(Setting(2, is_quick=True, scratch=tmp_path, scale=0.01))
    few = replace(contest, contenders=contest.contenders[:1])
    (outcome,) = measured([few])

    assert all(cost > 0 for name, cost in contest.notes.items() if name != "disk, us")
    assert [goal.subject for goal in contest.goals] == ["256 workers", "1,000 workers"]
    assert outcome.figure("2 workers", n9_workers.busy_figure(1.0))


# --- Plots -----------------------------------------------------------------------------------------------------


def test_the_page_shows_the_plots_that_were_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install 'batchd[bench]'")
    run = {"machine": MACHINE, "contests": [stored(measure(growth(), 1, silent)) | {"made": MADE}]}
    _, written = page.write(run, tmp_path)
    picture = (tmp_path / "results/n5.svg").read_text("utf-8")

    assert "![N5: things](results/n5.svg)" in written.read_text("utf-8")
    assert "prefers-color-scheme: dark" in picture
    assert "jobs in the batch" in picture
    page.write(run, tmp_path)
    assert (tmp_path / "results/n5.svg").read_text("utf-8") == picture, "the same run, the same bytes"


def test_without_matplotlib_there_is_a_page_without_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda _: None)
    run = {"machine": MACHINE, "contests": [stored(measure(growth(), 1, silent)) | {"made": MADE}]}
    _, written = page.write(run, tmp_path)

    assert "![" not in written.read_text("utf-8")
    assert "batchd[bench]" in capsys.readouterr().out
