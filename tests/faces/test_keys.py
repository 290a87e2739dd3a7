"""`key=`: jobs are told by what their items are called, so a changed input runs what is new or changed in it."""

import os
from functools import partial
from pathlib import Path
from signal import SIGKILL
from threading import Thread
from typing import Any

import pytest

import batchd
from batchd.errors import InputError, UsageError
from tests.commands import Desk, until
from tests.contract.calls import Door, note, notes
from tests.faces.jobs import Row, Thing, value_of
from tests.faces.programs import Programs


def rows(*values: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": f"row {number}", "value": value} for number, value in enumerate(values, start)]


class Calls:
    """Calls of one keyed map, and what each of them ran."""

    def __init__(self, desk: Desk) -> None:
        self.path = str(desk.folder / "ran")
        self._go = partial(batchd.map, partial(value_of, self.path), journal=desk.journal, name="n", workers=2)
        self._before = 0

    def call(self, items: Any, **options: Any) -> list[Any]:
        return list(self._go(items, **{"key": "id", **options}))

    def ran(self) -> list[str]:
        """Return what ran since the last question."""
        found = notes(self.path)[self._before :]
        self._before += len(found)
        return sorted(found)


@pytest.fixture
def calls(desk: Desk) -> Calls:
    return Calls(desk)


def test_only_what_is_new_or_changed_runs(calls: Calls) -> None:
    assert calls.call(rows(10, 11, 12)) == [10, 11, 12]
    assert calls.ran() == ["row 0", "row 1", "row 2"]
    assert calls.call(iter(rows(10, 11, 12))) == [10, 11, 12]
    assert calls.ran() == []
    assert calls.call(rows(10, 11, 12, 13, 14)) == [10, 11, 12, 13, 14]
    assert calls.ran() == ["row 3", "row 4"]
    assert calls.call(rows(10, 99, 12, 13, 14)) == [10, 99, 12, 13, 14]
    assert calls.ran() == ["row 1"]


def test_order_and_absence_do_not_matter(calls: Calls) -> None:
    items = rows(*range(20))
    assert calls.call(items) == list(range(20))
    assert len(calls.ran()) == 20
    assert calls.call(items[::-1]) == list(range(20))[::-1]
    assert calls.call(items[5:7] + items[:2]) == [5, 6, 0, 1]
    assert calls.call([]) == []
    assert calls.ran() == []
    mixed = [items[3], {"id": "new", "value": 7}, items[1]]
    assert calls.call(mixed) == [3, 7, 1]
    assert calls.ran() == ["new"]


@pytest.mark.parametrize("ordered", [True, False])
def test_duplicates_run_once_and_are_all_answered(calls: Calls, ordered: bool) -> None:
    items = rows(10, 11) * 3
    found = calls.call(items, ordered=ordered)
    assert (found if ordered else sorted(found)) == ([10, 11] * 3 if ordered else [10] * 3 + [11] * 3)
    assert calls.ran() == ["row 0", "row 1"]


def test_duplicates_leave_the_window_as_it_is(calls: Calls) -> None:
    items = rows(*range(10)) * 5
    assert sorted(calls.call(items, ordered=False, buffersize=7)) == sorted(list(range(10)) * 5)
    assert calls.call(items, buffersize=7) == list(range(10)) * 5
    assert len(calls.ran()) == 10


def test_a_key_whose_item_changes_within_the_input(calls: Calls) -> None:
    items = [*rows(10), *rows(20), *rows(20)]
    assert calls.call(items) == [10, 20, 20]
    assert calls.ran() == ["row 0", "row 0"]


def test_a_key_may_be_a_function_of_the_item(calls: Calls) -> None:
    def first_letter(row: Any) -> str:
        return str(row["id"])

    assert calls.call(rows(1, 2), key=first_letter) == [1, 2]
    assert calls.call(rows(1, 2, 3), key=lambda row: row["id"]) == [1, 2, 3]
    assert calls.ran() == ["row 0", "row 1", "row 2"]


def test_a_key_may_name_an_attribute(desk: Desk) -> None:
    things = [Thing("a", 1), Thing("b", 2)]
    for _ in range(2):
        found = batchd.map(lambda thing: thing.value, things, journal=desk.journal, name="n", key="name", workers=1)
        assert list(found) == [1, 2]
    tuples = [Row("a", 1), Row("b", 2)]
    assert list(batchd.map(lambda row: row.value, tuples, journal=desk.journal, name="t", key="id")) == [1, 2]


def test_keys_of_every_kind(desk: Desk) -> None:
    keys = [3, None, "text", b"bytes", 2.5, (1, "a"), frozenset({"a", "b"}), Path("a"), {"a": [1]}, True]
    found = batchd.map(repr, range(len(keys)), journal=desk.journal, name="n", key=lambda item: keys[item], workers=1)
    assert list(found) == list(map(repr, range(len(keys))))
    again = batchd.map(repr, range(len(keys)), journal=desk.journal, name="n", key=lambda item: keys[item], workers=1)
    assert list(again) == list(map(repr, range(len(keys))))
    with batchd.Client(desk.journal) as client:
        assert [batch.size for batch in client.batches()] == [len(keys)]


def test_sets_are_the_same_in_every_process(programs: Programs) -> None:
    """The order of a set differs from process to process."""
    text = """
items = [{"id": n, "tags": {f"tag {n}", "a", "b", "c"}, "fixed": frozenset("xyz")} for n in range(5)]
print(list(batchd.map(lambda item: note("ran", item["id"]), items, name="n", key="id", workers=1)))
"""
    assert [programs.told(text) for _ in range(2)] == ["[None, None, None, None, None]\n"] * 2
    assert sorted(notes(programs.ran)) == list("01234")


def test_a_missing_field_is_an_error_that_names_the_item(calls: Calls) -> None:
    with pytest.raises(
        InputError, match=r"Item 0 of the input, .*, has no key: it has no 'no such', which key='no such'"
    ):
        calls.call(rows(1), key="no such")


def test_what_stands_before_an_item_without_a_key_is_given(desk: Desk) -> None:
    with batchd.Client(desk.journal, workers=1) as client:
        batch = client.submit_batch(str, [], key=lambda row: row["id"], seal=False)
        with pytest.raises(KeyError, match="id") as raised:
            batch.add([{"id": 1}, {"id": 2}, {"name": 3}, {"id": 4}])
        assert raised.value.__notes__ == ["while key= looked at item 2 of the input, {'name': 3}"]
        assert batch.progress().size == 2
        assert batch.add([{"id": 1}, {"id": 4}]) == 1


def test_what_failed_runs_again(desk: Desk, tmp_path: Path) -> None:
    def fragile(row: Any) -> int:
        note(tmp_path / "ran", row["id"])
        if row["value"] == 11 and not (tmp_path / "mended").exists():
            raise ValueError("not yet")
        return int(row["value"])

    go = partial(batchd.map, fragile, journal=desk.journal, name="n", key="id", workers=1)
    assert list(go(rows(10, 11, 12), on_error="skip")) == [10, 12]
    (tmp_path / "mended").touch()
    assert list(go(rows(10, 11, 12, 13))) == [10, 11, 12, 13]
    assert sorted(notes(tmp_path / "ran")) == ["row 0", "row 1", "row 1", "row 2", "row 3"]


def test_what_was_corrected_replaces_what_failed(
    calls: Calls, desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    def standing() -> tuple[int, int, int]:
        with batchd.Client(desk.journal) as client:
            return client.batch("n").progress()[2:5]

    def bad(row: Any) -> dict[str, Any]:
        return {"id": row["id"]}

    good = rows(10, 11, 12, 13)
    asked = [good[0], bad(good[1]), good[2], bad(good[3])]
    assert calls.call(asked, on_error="skip") == [10, 12]
    assert calls.ran() == ["row 0", "row 1", "row 2", "row 3"]
    assert standing() == (2, 2, 0)
    asked[1] = good[1]
    assert calls.call(asked, on_error="skip", progress=lambda _: None) == [10, 11, 12]
    assert calls.ran() == ["row 1", "row 3"]  # Once each: the corrected one, and what is still to be.
    assert "1 jobs had not succeeded and were replaced" in capsys.readouterr().err
    assert standing() == (3, 1, 1)
    assert calls.call(good) == [10, 11, 12, 13]
    assert calls.ran() == ["row 3"]
    assert standing() == (4, 0, 2)
    assert calls.call(good) == [10, 11, 12, 13]
    assert calls.ran() == []


def test_what_failed_and_is_not_given_again_does_not_run(calls: Calls) -> None:
    bad = [{"id": "bad"}]
    assert calls.call([*rows(10), *bad], on_error="skip") == [10]
    assert calls.ran() == ["bad", "row 0"]
    assert calls.call(rows(10)) == [10]
    assert calls.ran() == []
    for window in (1, 3, None):
        found = calls.call([*bad, *rows(*range(10)), *bad], on_error="return", buffersize=window)
        assert [type(found[0]), found[1:-1], type(found[-1])] == [batchd.JobFailed, list(range(10)), batchd.JobFailed]
        assert calls.ran().count("bad") == 1


def test_a_cancelled_batch_goes_on_with_what_is_given(calls: Calls, desk: Desk) -> None:
    assert calls.call([*rows(10), {"id": "bad"}], on_error="skip") == [10]
    with batchd.Client(desk.journal) as client:
        client.batch("n").add(rows(11, start=1), key="id")
        client.batch("n").cancel()
    calls.ran()
    assert calls.call(rows(10, 11, 12)) == [10, 11, 12]
    assert "bad" not in calls.ran()


@pytest.mark.fault
def test_what_failed_runs_again_though_the_supervisor_dies(desk: Desk, tmp_path: Path) -> None:
    door = Door(tmp_path)

    def fragile(row: Any) -> Any:
        if not (tmp_path / "mended").exists():
            raise ValueError("not yet")
        return door.enter(row["id"])

    go = partial(batchd.map, fragile, rows(1, 2, 3), journal=desk.journal, name="n", key="id", workers=1)
    assert list(go(on_error="skip")) == []
    (tmp_path / "mended").touch()
    found = go()

    def kill() -> None:
        until(door.came, "one runs")
        os.kill(desk.supervisor(), SIGKILL)
        door.open()

    killer = Thread(target=kill)
    killer.start()
    assert list(found) == ["row 0", "row 1", "row 2"]
    killer.join()


def test_how_many_did_not_run_is_told(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.call(rows(1, 2, 3), progress=lambda _: None)
    calls.call(rows(1, 2, 3, 4), progress=lambda _: None)
    assert "3 items have not changed since an earlier call, and did not run" in capsys.readouterr().err


def test_a_batch_with_keys(desk: Desk) -> None:
    with batchd.Client(desk.journal) as client:
        go = partial(client.submit_batch, partial(value_of, str(desk.folder / "ran")), name="n", key="id")
        assert list(go(rows(1, 2)).results()) == [1, 2]
        batch = go(rows(1, 5, 3), seal=False)
        assert (batch.added, batch.skipped) == (2, 1)
        assert batch.add(rows(3, 4, start=2)) == 1
        assert (batch.added, batch.skipped) == (3, 2)
        batch.seal()
        assert batch.wait().succeeded == 5
    assert len(notes(desk.folder / "ran")) == 5


def test_a_batch_with_keys_replaces_what_failed(desk: Desk) -> None:
    with batchd.Client(desk.journal) as client:
        go = partial(client.submit_batch, partial(value_of, str(desk.folder / "ran")), name="n", key="id")
        assert go([{"id": "row 0"}, *rows(2, start=1)], keep_going=True).wait()[2:5] == (1, 1, 0)
        batch = go(rows(1, 2), keep_going=True)
        assert (batch.added, batch.replaced, batch.skipped) == (1, 1, 1)
        assert batch.wait()[2:5] == (2, 0, 1)
        assert batch.retry() == 0  # The old one is no more a failure.
        assert list(batch.results(on_error="skip")) == [2, 1]
    assert sorted(notes(desk.folder / "ran")) == ["row 0", "row 0", "row 1"]


def test_a_batch_with_keys_found_again(desk: Desk) -> None:
    with batchd.Client(desk.journal) as client:
        client.submit_batch(partial(value_of, str(desk.folder / "ran")), rows(1, 2), name="n", key="id").wait()
    with batchd.Client(desk.journal) as client:
        batch = client.batch("n")
        with pytest.raises(UsageError, match="give key="):
            batch.add(rows(1))
        assert batch.add(rows(1, 2, 3), key="id") == 1
        assert batch.skipped == 2
        assert batch.wait().succeeded == 3
    assert sorted(notes(desk.folder / "ran")) == ["row 0", "row 1", "row 2"]  # Two workers may take turns.
