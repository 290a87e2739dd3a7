"""The decoders under the fuzzer, for a fixed seed and count; and the fuzzer under planted bugs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from batchd.errors import FormatError
from tests.bench import ROOT
from tests.fault.ledger import Tally
from tests.fuzz.fuzzer import Fuzzer, Outcome, Target
from tests.fuzz.targets import TARGETS, mended_blocks, mended_frames

ON_A_WORKERS_PIPE = [target for target in TARGETS if target.name in {"frame", "report", "failure"}]
HERE = str(Path(__file__).parent)


@pytest.mark.covers("X10", "P12")
@pytest.mark.parametrize(("count", "seed"), [(800, 1), pytest.param(20_000, 2, marks=pytest.mark.slow)])
def test_any_bytes_are_a_value_or_a_typed_error(count: int, seed: int, tally: Tally) -> None:
    """In a process of its own: its memory is bounded, so a decoder that asks for too much is found out."""
    command = [sys.executable, "-m", "tests.fuzz", "--count", str(count), "--seed", str(seed)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == len(TARGETS)
    assert all(f"{count:,} executions" in line for line in lines)
    tally.injected(count * len(TARGETS), "X10")
    tally.injected(count * len(ON_A_WORKERS_PIPE), "P12")
    tally.count("fuzz inputs", count * len(TARGETS))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_seeds_get_through(target: Target) -> None:
    """Otherwise nothing behind the first check would ever be fuzzed."""
    for data in target.seeds[:1]:
        target.run(data)
    assert Fuzzer(target, 0).run(count=len(target.seeds)).edges > 5


def test_what_is_whole_is_not_mended() -> None:
    record, stream = (next(it.seeds[0] for it in TARGETS if it.name == name)[1:] for name in ("segment", "frame"))
    assert mended_blocks(record) == record
    assert mended_frames(stream) == stream
    assert mended_blocks(record[:5] + b"x" + record[6:])[5:6] == b"x"


# --- Planted bugs ----------------------------------------------------------------------------------------------


def decode(data: bytes) -> int:
    """A decoder whose bug lies behind three bytes that must be right, one after the other."""
    if not data.startswith(b"m"):
        raise FormatError("no magic")
    if len(data) < 3 or data[1] != 0xA7:
        raise FormatError("no version")
    if data[2] == 0x3C:
        return 1 // (len(data) - len(data))
    return len(data)


def grow(data: bytes) -> int:
    return len(bytes(64 << 20)) if data[:1] == b"g" else 0


def spin(data: bytes) -> None:
    while data[:1] == b"s":
        pass


def fuzzed(run: Callable[[bytes], object], seeds: list[bytes], count: int = 20_000) -> Outcome:
    return Fuzzer(Target("planted", run, seeds), seed=7, root=HERE).run(count=count)


def test_a_bug_behind_three_checks_is_found_and_its_input_is_as_short_as_can_be() -> None:
    outcome = fuzzed(decode, [b"mxxxxxxxxxxxxxxx"])
    (finding,) = outcome.findings
    assert (finding.target, finding.error) == ("planted", "ZeroDivisionError")
    assert finding.data == b"m\xa7\x3c"
    assert "bytes.fromhex('6da73c')" in str(finding)


def test_the_same_seed_does_the_same() -> None:
    first, second = (fuzzed(decode, [b"mxxx"], 3000) for _ in range(2))
    assert (first.findings, first.edges, first.corpus) == (second.findings, second.edges, second.corpus)


@pytest.mark.parametrize(("run", "seed", "error"), [(grow, b"g", "TooMuchMemory"), (spin, b"s", "Endless")])
def test_what_takes_too_much_is_found(run: Callable[[bytes], object], seed: bytes, error: str) -> None:
    assert [finding.error for finding in fuzzed(run, [seed], 1).findings] == [error]


def test_an_error_that_is_told_on_purpose_is_no_finding() -> None:
    assert fuzzed(decode, [b""], 500).findings == []
