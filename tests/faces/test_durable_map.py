"""A map with a name or a journal: run again, in whatever way it ended, it does what is missing and nothing else."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchd
from batchd.client import batch_id, world
from batchd.client.codedigest import code_digest
from batchd.edge.journal import BatchJournal
from batchd.edge.lock import holder_of
from batchd.edge.outcomes import Outcomes
from batchd.errors import CodeChanged, InputChanged, SupervisorError, UsageError
from batchd.formats.segment import Encoding
from tests.bench import await_death
from tests.commands import Desk, until
from tests.contract.calls import Door, note, notes, square
from tests.faces.jobs import fail_until, identity, note_and_square, slow_square
from tests.faces.programs import Programs


def spec_of(desk: Desk, name: str) -> dict[str, Any]:
    journal = BatchJournal(desk.journal / "batches" / batch_id(["name", name]))
    journal.close()
    return dict(journal.spec)


def supervisor_of(desk: Desk) -> int:
    return int(holder_of(desk.journal)["pid"])


# --- Once more ---------------------------------------------------------------------------------------------------


def test_what_is_done_does_not_run_again(desk: Desk, ran: str) -> None:
    for _ in range(3):
        results = batchd.map(partial(note_and_square, ran), range(100), journal=desk.journal, name="n", workers=2)
        assert list(results) == [x * x for x in range(100)]
    assert sorted(map(int, notes(ran))) == list(range(100))


def test_a_folder_alone_is_enough(desk: Desk, ran: str) -> None:
    for _ in range(2):
        results = batchd.map(partial(note_and_square, ran), range(10), journal=str(desk.journal), workers=1)
        assert list(results) == [x * x for x in range(10)]
    assert len(notes(ran)) == 10


def test_a_name_alone_means_the_usual_journal(desk: Desk, ran: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHD_JOURNAL", str(desk.journal))
    assert list(batchd.map(partial(note_and_square, ran), range(3), name="n", workers=1)) == [0, 1, 4]
    assert (desk.journal / "batches" / batch_id(["name", "n"])).is_dir()


def test_unordered_results_come_again(desk: Desk, ran: str) -> None:
    function = partial(note_and_square, ran)
    for _ in range(2):
        results = batchd.map(function, range(50), journal=desk.journal, name="n", workers=2, ordered=False)
        assert sorted(results) == [x * x for x in range(50)]
    assert len(notes(ran)) == 50


def test_a_starmap_is_durable_as_well(desk: Desk, ran: str) -> None:
    def noted(x: int, y: int) -> int:
        note(ran, x)
        return x + y

    for _ in range(2):
        assert list(batchd.starmap(noted, [(1, 2), (3, 4)], journal=desk.journal, name="n", workers=1)) == [3, 7]
    assert len(notes(ran)) == 2


def test_whoever_left_early_goes_on(desk: Desk, ran: str) -> None:
    function = partial(note_and_square, ran)
    for x in batchd.map(function, range(100), journal=desk.journal, name="n", workers=1, buffersize=10):
        if x == 25:
            break
    assert list(batchd.map(function, range(100), journal=desk.journal, name="n", workers=1)) == [
        x * x for x in range(100)
    ]
    again = [x for x, times in Counter(notes(ran)).items() if times > 1]
    assert len(again) <= 1  # That which was running when the first call was left.


# --- Other input -------------------------------------------------------------------------------------------------

ITEMS: dict[str, list[Any]] = {
    "numbers": list(range(50)),
    "texts": [f"line {x}" for x in range(50)],
    "mixed": [x if x % 3 else {"x": x} for x in range(50)],
    "objects": [{"x": x, "tags": {f"tag {x}", "b", "c", "d"}} for x in range(50)],
    "nothing": [None] * 50,
}


def test_input_that_grew_at_its_end(desk: Desk, ran: str) -> None:
    for kind, items in ITEMS.items():
        go = partial(batchd.map, partial(identity, ran), journal=desk.journal, name=kind, workers=1)
        assert list(go(items[:30])) == items[:30]
        assert list(go(iter(items))) == items
    assert len(notes(ran)) == 50 * len(ITEMS)


@pytest.mark.parametrize("kind", ["numbers", "texts", "mixed", "objects"])
def test_input_that_changed_is_refused(desk: Desk, ran: str, kind: str) -> None:
    go = partial(batchd.map, partial(identity, ran), journal=desk.journal, name="n", workers=1)
    assert list(go(ITEMS[kind][:30])) == ITEMS[kind][:30]
    for place in (0, 7, 29):
        items = list(ITEMS[kind])
        items[place] = items[place + 1]
        with pytest.raises(InputChanged, match=f"item {place} "):
            list(go(items))
    assert len(notes(ran)) == 30


def test_equal_numbers_of_another_type_are_other_input(desk: Desk) -> None:
    assert list(batchd.map(repr, [1, 0], journal=desk.journal, name="n", workers=1)) == ["1", "0"]
    with pytest.raises(InputChanged):
        list(batchd.map(repr, [1.0, 0], journal=desk.journal, name="n", workers=1))
    with pytest.raises(InputChanged):
        list(batchd.map(repr, [1, False], journal=desk.journal, name="n", workers=1))


def test_results_of_changed_items_are_not_given(desk: Desk) -> None:
    assert len(list(batchd.map(square, range(3_000), journal=desk.journal, name="n", workers=1))) == 3_000
    given: list[Any] = []
    with pytest.raises(InputChanged, match=r"item 5 .*"):
        given.extend(batchd.map(square, [0, 1, 2, 3, 4, *range(6, 3_000)], journal=desk.journal, name="n", workers=1))
    assert given == [0, 1, 4, 9, 16][: len(given)]


def test_a_range_is_kept_as_one_and_is_its_numbers(desk: Desk) -> None:
    go = partial(batchd.map, square, journal=desk.journal, name="n", workers=1)
    assert list(go(range(2, 9, 3))) == [4, 25, 64]
    journal = BatchJournal(desk.journal / "batches" / batch_id(["name", "n"]))
    assert Outcomes(journal).input_block(0)[1].encoding is Encoding.RANGE
    journal.close()
    assert list(go([2, 5, 8])) == list(go(n for n in (2, 5, 8))) == [4, 25, 64]
    with pytest.raises(InputChanged):
        list(go(range(2, 10, 4)))


def test_shorter_input_is_refused(desk: Desk) -> None:
    assert len(list(batchd.map(square, range(30), journal=desk.journal, name="n", workers=1))) == 30
    with pytest.raises(InputChanged, match="ends after 20 items, and the batch was given 30"):
        list(batchd.map(square, range(20), journal=desk.journal, name="n", workers=1))
    with pytest.raises(InputChanged, match="ends after 0 items"):
        list(batchd.map(square, [], journal=desk.journal, name="n", workers=1))


def test_an_item_that_does_not_pickle_is_the_same_again(desk: Desk) -> None:
    for _ in range(2):
        items = [1, (x for x in "no generator pickles"), 3]
        found: list[Any] = list(batchd.map(str, items, journal=desk.journal, name="n", workers=1, on_error="return"))
        assert (found[0], type(found[1]), found[2]) == ("1", batchd.JobFailed, "3")


# --- Failures ----------------------------------------------------------------------------------------------------


def test_failed_jobs_run_again_at_the_next_call(desk: Desk, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    go = partial(batchd.map, partial(fail_until, str(mended)), range(6), journal=desk.journal, name="n", workers=2)
    assert list(go(on_error="skip")) == [0, 20, 40]
    returned: list[Any] = list(go(on_error="return"))
    assert [type(x) for x in returned][1::2] == [batchd.JobFailed] * 3
    mended.touch()
    assert list(go()) == list(range(0, 60, 10))
    assert Counter(map(int, notes(tmp_path / "mended.ran"))) == {0: 1, 1: 3, 2: 1, 3: 3, 4: 1, 5: 3}


def test_a_batch_that_was_cancelled_goes_on(desk: Desk, ran: str) -> None:
    go = partial(batchd.map, partial(note_and_square, ran), journal=desk.journal, name="n", workers=1)
    results = go(range(40), buffersize=40)
    next(results)
    results.close()
    assert desk.run("cancel", "n").returncode == 0
    assert list(go(range(40))) == [x * x for x in range(40)]


# --- Other code --------------------------------------------------------------------------------------------------


def test_changed_code_is_refused_or_accepted(desk: Desk, ran: str) -> None:
    go = partial(batchd.map, journal=desk.journal, name="n", workers=1)

    def first(x: int) -> int:
        note(ran, "first")
        return x + 1

    def second(x: int) -> int:
        note(ran, "second")
        return x + 2

    assert list(go(first, range(5))) == [1, 2, 3, 4, 5]
    with pytest.raises(CodeChanged, match="accept_code=True"):
        list(go(second, range(6)))
    assert list(go(second, range(6), accept_code=True)) == [1, 2, 3, 4, 5, 7]
    assert list(go(second, range(7))) == [1, 2, 3, 4, 5, 7, 8]
    assert notes(ran) == ["first"] * 5 + ["second"] * 2


def test_changed_code_of_a_starmap_is_refused(desk: Desk) -> None:
    assert list(batchd.starmap(lambda x, y: x + y, [(1, 2)], journal=desk.journal, name="n", workers=1)) == [3]
    with pytest.raises(CodeChanged):
        list(batchd.starmap(lambda x, y: x - y, [(1, 2)], journal=desk.journal, name="n", workers=1))


class Adds:
    def __init__(self, more: int) -> None:
        self.more = more

    def __call__(self, x: int) -> int:
        return x + self.more


class Subtracts:
    def __call__(self, x: int) -> int:
        return x - 1


def test_what_makes_code_another() -> None:
    def default_one(x: int, y: int = 1) -> int:
        return x + y

    def default_two(x: int, y: int = 2) -> int:
        return x + y

    def named_one(x: int, *, y: int = 1) -> int:
        return x + y

    def named_two(x: int, *, y: int = 2) -> int:
        return x + y

    def adding(held: Any) -> Callable[[int], Any]:
        return lambda x: (x, held)

    words = ["a", "b", "c", "d"]
    same: list[tuple[Any, Any]] = [
        (adding({*words}), adding({*words[::-1]})),
        (adding({"a": [1, {2}], "b": Adds(3)}), adding({"b": Adds(3), "a": [1, {2}]})),
        (adding(np.arange(3)), adding(np.arange(3))),
        (adding(Path("a")), adding(Path("a"))),
        (Adds(1).__call__, Adds(1).__call__),
        (adding(threading.Lock()), adding(threading.Lock())),
        (adding(adding(1)), adding(adding(1))),
    ]
    assert str(adding(Path("a"))(1))  # A path that was shown remembers its text.
    same += [(square, square), (partial(pow, 2), partial(pow, 2)), (Adds(1), Adds(1)), (len, len)]
    other: list[tuple[Any, Any]] = [
        (partial(pow, 2), partial(pow, 3)),
        (Adds(1), Subtracts()),
        (Adds(1), Adds(2)),
        (Adds(1).__call__, Adds(2).__call__),
        (named_one, named_two),
        (adding(1), adding(2)),
        (adding(1), adding(1.0)),
        (adding({1: 2}), adding({1: 3})),
        (adding({1, 2}), adding([1, 2])),
        (adding(np.arange(3)), adding(np.arange(3) + 1)),
        (adding(Path("a")), adding(Path("b"))),
        (adding(adding(1)), adding(adding(2))),
        (default_one, default_two),
        (len, abs),
        (lambda x: x in {"a", "b"}, lambda x: x in {"a", "c"}),
    ]
    assert [code_digest(a) == code_digest(b) for a, b in same] == [True] * len(same)
    assert [code_digest(a) == code_digest(b) for a, b in other] == [False] * len(other)


def test_a_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from batchd.client.codedigest import code_digest\n"
        "class Thing:\n"
        "    def __init__(self): self.kept = {'b', 'a', 'c'}, {Path('x'): object}, self\n"
        "    def method(self, x): return x in {'b', 'a', 'c'}\n"
        "print(code_digest(partial(Thing().method, k={'x': Thing()})))\n"
    )
    told = {
        subprocess.run(
            [sys.executable, program],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(told) == 1


def test_other_captured_values_are_another_function(desk: Desk) -> None:
    def times(factor: int) -> list[int]:
        return list(batchd.map(lambda x: x * factor, range(4), journal=desk.journal, workers=1))

    assert times(2) == [0, 2, 4, 6]
    with pytest.raises(CodeChanged):
        times(3)


def test_objects_of_a_scripts_own_classes_are_known_again(programs: Programs) -> None:
    program = """
import dataclasses

@dataclasses.dataclass
class Row:
    x: int
    tags: set

class Plain:
    def __init__(self, x):
        self.x = x

def job(row):
    note("ran", row.x)
    return row.x

for kind, last in ((lambda x: Row(x, {"a", "b", "c"}), sys.argv[1]), (Plain, sys.argv[1])):
    rows = [kind(x) for x in (1, 2, 3, int(last))]
    print(sum(batchd.map(job, rows, name=rows[0].__class__.__name__, key="x", workers=1)))
    if last == "4":
        print(sum(batchd.map(job, rows, name=rows[0].__class__.__name__ + " in order", workers=1)))
"""
    assert programs.told(program, 4).split() == ["10"] * 4
    assert len(notes(programs.ran)) == 16
    assert programs.told(program, 4).split() == ["10"] * 4
    assert len(notes(programs.ran)) == 16
    assert programs.told(program, 5).split() == ["11"] * 2
    assert len(notes(programs.ran)) == 18


def test_another_kind_of_batch_of_that_name_is_refused(desk: Desk) -> None:
    assert list(batchd.map(square, range(3), journal=desk.journal, name="n", workers=1)) == [0, 1, 4]
    with pytest.raises(UsageError, match="another name"):
        list(batchd.starmap(pow, [(1, 2)], journal=desk.journal, name="n", workers=1))
    with pytest.raises(UsageError, match="another name"):
        list(batchd.map(square, range(3), journal=desk.journal, name="n", key=str, workers=1))


def test_another_python_is_refused_before_any_job_runs(desk: Desk, ran: str, monkeypatch: pytest.MonkeyPatch) -> None:
    go = partial(batchd.map, partial(note_and_square, ran), journal=desk.journal, name="n", workers=1)
    assert list(go(range(3))) == [0, 1, 4]
    monkeypatch.setattr(world, "PYTHON", "3.99")
    with pytest.raises(UsageError, match=rf"written by Python {spec_of(desk, 'n')['python']}, this is 3.99"):
        list(go(range(5)))
    assert len(notes(ran)) == 3


# --- Deaths ------------------------------------------------------------------------------------------------------

SCRIPT = """
def job(x):
    note("ran", x)
    nap(0.005)
    return x * x

print(sum(batchd.map(job, range(400), name="n", workers=2)))
"""


def has_noted(path: Path, wanted: int) -> bool:
    return len(notes(path)) >= wanted


@pytest.mark.fault
def test_a_script_that_was_killed_goes_on(programs: Programs) -> None:
    for wanted in (60, 150):
        process = programs.start(SCRIPT)
        until(partial(has_noted, programs.ran, wanted), f"{wanted} jobs ran", process)
        process.kill()
        process.communicate()
    assert programs.told(SCRIPT) == f"{sum(x * x for x in range(400))}\n"
    times = Counter(map(int, notes(programs.ran)))
    assert set(times) == set(range(400))
    assert sum(times.values()) <= 400 + 2 * 2  # Two kills, two workers.


@pytest.mark.fault
def test_a_killed_supervisor_is_outlived(desk: Desk, ran: str) -> None:
    killed = 0
    found = []
    for result in batchd.map(partial(slow_square, ran), range(300), journal=desk.journal, name="n", workers=2):
        found.append(result)
        if len(found) in {50, 150}:
            os.kill(supervisor_of(desk), signal.SIGKILL)
            killed += 1
    assert found == [x * x for x in range(300)]
    assert killed == 2
    times = Counter(notes(ran))
    assert len(times) == 300
    assert max(times.values()) <= 3  # What was reported and not yet durable has run once more.


@pytest.mark.fault
def test_a_killed_supervisor_of_a_throw_away_map_is_outlived() -> None:
    from batchd.client.throwaway import throwaway_folder

    found = []
    for result in batchd.map(square, range(20_000), workers=2, buffersize=500):
        found.append(result)
        if len(found) == 5_000:
            pid = int(holder_of(throwaway_folder())["pid"])
            os.kill(pid, signal.SIGKILL)
            await_death(pid)
    assert found == [x * x for x in range(20_000)]
    assert list(batchd.map(square, range(10), workers=1)) == [x * x for x in range(10)]


def test_a_second_process_is_refused_and_harms_nobody(programs: Programs, tmp_path: Path) -> None:
    door = Door(tmp_path)
    results = batchd.map(
        door.enter_or_fail, range(4), journal=programs.journal, name="n", workers=1, on_error="return"
    )
    assert isinstance(next(results), batchd.JobFailed)
    ended = programs.run(
        """
from tests.contract.calls import Door
list(batchd.map(Door(Path.cwd()).enter_or_fail, range(4), name="n", workers=1, on_error="return"))
"""
    )
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("batchd.errors.BatchBusy: batch ")  # A SupervisorError.
    assert f"being run by process {os.getpid()}" in last
    door.open()
    assert list(results) == [1, 2, 3]
    assert json.loads(desk_json(programs))["failed"] == 1


def desk_json(programs: Programs) -> str:
    journal = BatchJournal(programs.journal / "batches" / batch_id(["name", "n"]))
    journal.close()
    counts = {state.name.lower(): count for state, count in journal.facts.counts.items()}
    assert journal.facts.generation == 0  # Nobody reopened what was being run.
    return json.dumps(counts)


def test_a_second_map_in_the_same_process_is_refused(desk: Desk) -> None:
    one = batchd.map(square, range(50), journal=desk.journal, name="n", workers=1, buffersize=5)
    assert next(one) == 0
    with pytest.raises(SupervisorError, match="being run by process"):
        next(batchd.map(square, range(50), journal=desk.journal, name="n", workers=1))
    assert list(one) == [x * x for x in range(1, 50)]
