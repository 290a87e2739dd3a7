"""Functions and classes that the standard library's workers could not find run in batchd's."""

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchd
from tests.contract.calls import WAIT_S

ROOT = Path(__file__).parents[2]
SCRIPT = """
import dataclasses
import batchd

FACTOR = 3


@dataclasses.dataclass
class Row:
    value: int


class Refused(Exception):
    def __init__(self, row):
        super().__init__(row)
        self.row = row


def times(row):
    if row.value < 0:
        raise Refused(row)
    return Row(row.value * FACTOR)


executor = batchd.Executor(2)
print(executor.submit(times, Row(5)).result() == Row(15))
print([row.value for row in executor.map(times, map(Row, range(4)))])
print(executor.submit(lambda: times(Row(FACTOR))).result())
try:
    executor.submit(times, Row(-1)).result()
except Refused as error:
    print(error.row)
"""
TOLD = "True\n[0, 3, 6, 9]\nRow(value=9)\nRow(value=-1)\n"


@pytest.fixture
def executor(make_ours: Any) -> Any:
    return make_ours(2)


def adder(step: int) -> Callable[[int], int]:
    def add(x: int) -> int:
        return x + step

    return add


def test_lambdas_closures_and_local_functions_run(executor: Executor) -> None:
    factor = 7

    def recursive(x: int) -> int:
        return x * recursive(x - 1) if x else 1

    assert executor.submit(lambda x: x * factor, 6).result(WAIT_S) == 42
    assert executor.submit(adder(3), 4).result(WAIT_S) == 7
    assert executor.submit(recursive, 5).result(WAIT_S) == 120
    assert executor.submit(partial(lambda x, y: x - y, 9), 4).result(WAIT_S) == 5
    assert list(executor.map(lambda x: x + factor, range(5))) == [7, 8, 9, 10, 11]


def test_functions_may_be_arguments_and_results(executor: Executor) -> None:
    assert executor.submit(lambda call: call(20), adder(1)).result(WAIT_S) == 21
    assert executor.submit(lambda: lambda x: x * 2).result(WAIT_S)(4) == 8


def test_classes_of_a_function_travel(executor: Executor) -> None:
    @dataclasses.dataclass
    class Point:
        x: int

        def moved(self) -> "Point":
            return Point(self.x + 1)

    found = executor.submit(Point(3).moved).result(WAIT_S)
    assert type(found) is Point
    assert found == Point(4)


def test_an_error_of_a_local_class_comes_back_as_itself(executor: Executor) -> None:
    class Refused(Exception):
        pass

    def refuse() -> None:
        raise Refused("no")

    error = executor.submit(refuse).exception(WAIT_S)
    assert type(error) is Refused
    assert "raise Refused" in str(error.__cause__)


def test_a_closure_that_does_not_pickle_fails_its_job_alone(executor: Executor) -> None:
    import threading

    lock = threading.Lock()
    bad = executor.submit(lambda: lock.acquire(blocking=False))
    assert isinstance(bad.exception(WAIT_S), Exception)
    assert executor.submit(lambda: 3).result(WAIT_S) == 3


def test_an_initializer_may_be_a_closure(make_ours: Any) -> None:
    ready = {"word": "set before the first job"}

    def prepare(key: str) -> None:
        import builtins

        setattr(builtins, key, ready["word"])

    def look() -> Any:
        import builtins

        return vars(builtins)["prepared"]

    executor = make_ours(1, initializer=prepare, initargs=("prepared",))
    assert executor.submit(look).result(WAIT_S) == "set before the first job"


def test_a_lambda_that_kills_is_a_crash(executor: Executor) -> None:
    import os

    error = executor.submit(lambda: os.kill(os.getpid(), signal.SIGKILL)).exception(WAIT_S)
    assert isinstance(error, batchd.JobCrashed)
    assert executor.submit(lambda: 3).result(WAIT_S) == 3


@pytest.mark.parametrize("way", ["file", "-c", "stdin"])
def test_functions_and_classes_of_a_program_run(tmp_path: Path, way: str) -> None:
    (tmp_path / "program.py").write_text(SCRIPT)
    program = {"file": ["program.py"], "-c": ["-c", SCRIPT], "stdin": ["-"]}[way]
    ended = subprocess.run(
        [sys.executable, "-W", "error", *program],
        input=SCRIPT if way == "stdin" else "",
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, TOLD, "")


GLOBALS = """
import batchd

MODEL, FACTOR, CALLS = None, 2, 0


def prepare(model):
    global MODEL
    MODEL = model


def work(number):
    global CALLS
    CALLS += 1
    return MODEL * number * FACTOR, CALLS


with batchd.Executor(1, initializer=prepare, initargs=(7,)) as executor:
    print(list(executor.map(work, [1, 2])))
    FACTOR = 10

    def again(number):
        return MODEL * number * FACTOR, CALLS

    print(executor.submit(again, 1).result(), (MODEL, CALLS))
"""


def test_functions_of_a_program_share_their_globals_in_a_worker(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(GLOBALS)
    ended = subprocess.run(
        [sys.executable, "program.py"],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stdout == "[(14, 1), (28, 2)]\n(70, 2) (None, 0)\n", ended.stderr


def test_functions_that_take_no_weak_reference_travel_by_name(executor: Executor) -> None:
    assert [executor.submit(np.negative, number).result(WAIT_S) for number in range(3)] == [0, -1, -2]
