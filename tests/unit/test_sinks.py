"""Sinks: how each value looks as JSON, and when a results file has its name."""

import collections
import datetime as dt
import decimal
import enum
import io
import json
import os
import types
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from batchd.errors import BatchdError, ResultError, UsageError
from batchd.sinks import JsonlFile, encode_line, to_json


class Colour(enum.Enum):
    RED = {"code": (1, 2)}  # noqa: RUF012  (a value that needs converting itself)


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: float
    tags: frozenset[str]


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024


class Ndarray:
    """Looks like numpy's from outside: the module's name and tolist()."""

    def __init__(self, plain: Any, dtype: str = "float64") -> None:
        self.plain, self.dtype = plain, dtype

    def tolist(self) -> Any:
        return self if self.plain is None else self.plain

    def astype(self, dtype: str) -> "Ndarray":
        return Ndarray([dt.timedelta(microseconds=7)], dtype)


Ndarray.__module__ = "numpy.core"


def decoded(value: Any) -> Any:
    return json.loads(encode_line(0, "succeeded", value))["result"]


# --- values ------------------------------------------------------------------------------------------------------


def test_a_job_is_one_line() -> None:
    assert encode_line(7, "succeeded", None) == '{"index": 7, "state": "succeeded", "result": null}'
    assert (
        encode_line(8, "quarantined", {"type": "Crash", "message": "9\n", "tries": (1, 2)})
        == '{"index": 8, "state": "quarantined", "error": {"type": "Crash", "message": "9\\n", "tries": [1, 2]}}'
    )


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "é\n", [1, [2]], {"a": {"b": []}}, 10**100])
def test_json_types_go_through_unchanged(value: Any) -> None:
    assert decoded(value) == value == to_json(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        ([1.5, float("inf"), -float("inf")], [1.5, None, None]),
        ((1, Pair(2, 3), range(2)), [1, [2, 3], [0, 1]]),
        (collections.deque([1]), [1]),
        ({"c", "a", "b"}, ["a", "b", "c"]),
        (frozenset({1, "a"}), ["a", 1]),
        ({(2, 1), (1, 2)}, [[1, 2], [2, 1]]),
        (Colour.RED, {"code": [1, 2]}),
        ([Level.HIGH], [3]),
        (Point(1.5, frozenset({"z", "y"})), {"x": 1.5, "tags": ["y", "z"]}),
        (PurePosixPath("/a/b"), "/a/b"),
        (dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC), "2024-02-29T12:30:00+00:00"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (dt.time(12, 30), "12:30:00"),
        (dt.timedelta(minutes=1, milliseconds=500), 60.5),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (decimal.Decimal("1.10"), "1.10"),
        ("é".encode(), "é"),
        (bytearray(b"\xff\xfe"), "//4="),
        (memoryview(b"ab"), "ab"),
        (types.MappingProxyType({"a": {1}}), {"a": [1]}),
        (Ndarray([[1.0, float("nan")]]), [[1.0, None]]),
        (Ndarray(2.5), 2.5),
        (Ndarray(7_000, "timedelta64[ns]"), [7e-06]),
    ],
)
def test_other_values_are_converted_by_fixed_rules(value: Any, expected: Any) -> None:
    assert decoded(value) == expected == to_json(value)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (1, "1"),
        (1.5, "1.5"),
        (True, "true"),
        (None, "null"),
        (float("nan"), "nan"),
        ((1, 2), "(1, 2)"),
        (b"a", "a"),
        (dt.date(2024, 2, 29), "2024-02-29"),
        (Level.HIGH, "3"),
        (Ndarray(3), "3"),
        (int, "<class 'int'>"),
    ],
)
def test_keys_become_strings(key: Any, expected: str) -> None:
    assert list(decoded({key: 1})) == [expected]
    # The converting way must write what the plain way writes.
    assert list(decoded({key: {1}})) == [expected]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [0, 1, 2, object()]}, r"result\['a'\]\[3\] is of type object,"),
        (Point(1, frozenset({int})), r"result\.tags\{<class 'int'>\} is of type type,"),  # type: ignore[arg-type]
        (1j, "result is of type complex,"),
        (Ndarray(None), r"result is of type numpy\.core\.Ndarray,"),
        (types.SimpleNamespace, "result is of type type,"),
    ],
)
def test_what_json_cannot_hold_is_named_by_job_place_and_type(value: Any, place: str) -> None:
    with pytest.raises(ResultError, match=rf"^Job 12: {place} which JSON cannot hold\. .*from Python"):
        encode_line(12, "succeeded", value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ResultError, match="Job 0: result of type list contains itself"):
        encode_line(0, "succeeded", value)


def test_a_number_with_too_many_digits_is_refused() -> None:
    with pytest.raises(ResultError, match="Job 0: result of type int cannot be written as JSON"):
        encode_line(0, "succeeded", 10**5000)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# --- the file ----------------------------------------------------------------------------------------------------


def test_the_name_appears_with_the_last_line(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    file = JsonlFile(target)
    file.write(["1", "2"])
    file.write([])
    file.write(iter(["3"]))
    assert names_in(tmp_path) == ["out.jsonl.partial"]
    file.finish()
    assert names_in(tmp_path) == ["out.jsonl"]
    assert target.read_text() == "1\n2\n3\n"


def test_a_file_that_is_left_in_the_middle_of_a_line_ends_with_the_last_whole_one(tmp_path: Path) -> None:
    class Interrupted(io.BufferedWriter):
        def write(self, data: Any) -> int:
            super().write(data[:3])
            raise KeyboardInterrupt

    file = JsonlFile(tmp_path / "out.jsonl")
    file.write(["one", "two"])
    assert isinstance(file._file, io.BufferedWriter)
    file._file = Interrupted(file._file.detach())
    with pytest.raises(KeyboardInterrupt):
        file.write(["three"])
    assert Path(file.abandon()).read_text() == "one\ntwo\n"


def test_an_abandoned_file_is_kept_and_begun_anew_next_time(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("old\n")
    file = JsonlFile(target)
    file.write(["a long line"])
    assert file.abandon() == f"{target}.partial"
    assert (tmp_path / "out.jsonl.partial").read_text() == "a long line\n"
    assert target.read_text() == "old\n"
    file = JsonlFile(target)
    file.write(["new"])
    file.finish()
    assert target.read_text() == "new\n"


def test_text_is_utf8_and_lone_surrogates_are_escaped(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    file = JsonlFile(target)
    file.write([encode_line(0, "succeeded", "é\udcff")])
    file.finish()
    assert b"\xc3\xa9\\udcff" in target.read_bytes()
    assert json.loads(target.read_bytes())["result"] == "é\udcff"


def test_a_link_to_the_results_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    link = tmp_path / "out.jsonl"
    link.symlink_to(tmp_path / "deep/real.jsonl")
    file = JsonlFile(link)
    file.write(["1"])
    file.finish()
    assert link.is_symlink()
    assert (tmp_path / "deep/real.jsonl").read_text() == "1\n"


def test_two_runs_do_not_write_into_each_other(tmp_path: Path) -> None:
    first = JsonlFile(tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match=r"out\.jsonl is being written by another run"):
        JsonlFile(tmp_path / "out.jsonl")
    first.write(["1"])
    first.finish()
    assert (tmp_path / "out.jsonl").read_text() == "1\n"
    JsonlFile(tmp_path / "out.jsonl").abandon()


def test_a_run_that_finishes_meanwhile_keeps_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    first = JsonlFile(tmp_path / "out.jsonl")
    first.write(["1"])

    def finish_first(_descriptor: int, _how: int) -> None:
        first.finish()

    monkeypatch.setattr(fcntl, "flock", finish_first)
    with pytest.raises(UsageError, match="another run"):
        JsonlFile(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "1\n"


def test_where_nothing_can_be_written_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=rf"The folder {tmp_path}/no for .* does not exist\. .*mkdir -p"):
        JsonlFile(tmp_path / "no/out.jsonl")
    with pytest.raises(UsageError, match=r"is a folder\. Name a file in it"):
        JsonlFile(tmp_path)

    def refuse(*_: Any) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match=rf"the folder {tmp_path} is closed to this user"):
        JsonlFile(tmp_path / "out.jsonl")


def test_a_full_disk_is_reported_and_what_was_written_stays() -> None:
    file = JsonlFile("/dev/full")
    with pytest.raises(BatchdError, match=r"/dev/full could not be written: No space left.*journal"):
        file.write(["1"])
    assert file.abandon() == "/dev/full"


def test_what_is_no_plain_file_is_written_directly(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    file = JsonlFile(pipe)
    file.write(["1"])
    file.finish()
    assert os.read(reader, 100) == b"1\n"
    assert names_in(tmp_path) == ["pipe"]
    os.close(reader)


@pytest.mark.parametrize("place", ["/dev/fd", "/proc/self/fd"])
def test_a_pipe_that_has_only_a_number_is_written_directly(place: str) -> None:
    reader, writer = os.pipe()
    file = JsonlFile(f"{place}/{writer}")
    file.write(["1"])
    file.finish()
    assert os.read(reader, 100) == b"1\n"
    os.close(reader)
    os.close(writer)


def test_standard_output_shows_each_line_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    file = JsonlFile("-")
    file.write(["1"])
    assert capfd.readouterr().out == "1\n"
    file.finish()
    os.write(1, b"still open\n")
    assert capfd.readouterr().out == "still open\n"


@contextmanager
def broken_stdout() -> Iterator[None]:
    kept = os.dup(1)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(reader)
    os.close(writer)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def test_a_broken_pipe_is_the_callers() -> None:
    with broken_stdout():
        file = JsonlFile("-")
        with pytest.raises(BrokenPipeError):
            file.write(["1"])
        assert file.abandon() == "-"
