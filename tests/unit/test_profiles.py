"""Profiles: notes of real processes come together, and what is told of them is arithmetic."""

from pathlib import Path

import pytest

from benchmarks import outside, page, trip
from benchmarks.contest import Setting
from benchmarks.notes import Note
from tests.unit.test_benchmarks import MACHINE, MADE


def notes(*made: tuple[str, int]) -> list[Note]:
    return [Note("client.1", what, at_us * 1000, 0) for what, at_us in made]


TRIP = (("submit is called", 0), ("the job is sent", 10), ("the client is told", 30), ("it is read back", 45))


def test_notes_between_two_submissions_are_a_trip() -> None:
    twice = notes(*TRIP, *((what, at + 100) for what, at in TRIP), ("submit is called", 200))
    assert [len(each) for each in trip.apart(twice)] == [4, 4]


def test_what_a_client_reads_before_it_was_told_is_no_hop() -> None:
    polled = [TRIP[0], ("it is read back", 5), ("its thread is awake", 6), *TRIP[1:]]
    (kept,) = trip.usual([notes(*polled)])
    assert [note.what for note in kept] == [
        *("submit is called", "its thread is awake", "the job is sent", "the client is told", "it is read back")
    ]


def test_trips_of_another_kind_are_left_out_and_hops_add_up() -> None:
    odd = notes(*TRIP, ("the client is told", 50))
    alike = trip.usual([notes(*TRIP), odd, notes(*TRIP)])
    assert len(alike) == 2
    assert trip.hops(alike) == [
        ["submit is called", "the job is sent", "10", "10"],
        ["the job is sent", "the client is told", "20", "30"],
        ["the client is told", "it is read back", "15", "45"],
    ]


def test_only_notes_of_the_time_that_is_measured_count() -> None:
    assert outside.within(notes(("a", 1), ("b", 2_000_000), ("c", 4_000_000)), 1.0, 3.0) == notes(("b", 2_000_000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "told"),
    [
        (trip, ("submit is called", "a commit begins", "its lease is sent", "it has the input", "the caller has it")),
        (
            outside,
            ("commits (LMDB, the kernel's writes)", "encoding and sending outcomes", "everything outside jobs"),
        ),
    ],
    ids=["trip", "outside"],
)
def test_a_profile_of_real_processes_knows_every_part(tmp_path: Path, profile: object, told: tuple[str, ...]) -> None:
    found = profile.dissect(Setting(2, True, tmp_path, 0.2))  # type: ignore[attr-defined]
    words = {cell for row in found["rows"] for cell in row}
    assert words >= set(told)
    assert all(len(row) == len(found["columns"]) for row in found["rows"])
    run = {"machine": MACHINE, "contests": [], "profiles": [{**found, "made": MADE}]}
    text = page.markdown(run)
    assert f"## {found['title']}" in text
    assert all(f"| {name} |" in text or f"| {name} " in text for name in told)
    assert page.merged(run, {"machine": MACHINE, "contests": []})["profiles"] == run["profiles"]
