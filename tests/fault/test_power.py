"""Power loss: what was written and not yet synced may be there, or not, in any order. What was told to be durable is.

strace writes down every write, cut and sync that a process makes to the data file of a batch, and every line in which
it says what is durable. From that each state that the disk may be in after a power loss can be made: what was synced,
and any of the pages written since. LMDB syncs its pages before it writes the header that points to them.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import pytest

from batchd.edge.damage import check_batch
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from tests.bench import ROOT
from tests.fault.ledger import Tally
from tests.fault.tracing import STRACE, needs_strace

pytestmark = [pytest.mark.fault, needs_strace]
SECTOR: Final = 512
WRITER = """
import os, sys
from pathlib import Path
from batchd.core import entries as e
from batchd.edge.journal import BatchJournal
from tests.author import submission, success

journal = BatchJournal.create(Path(sys.argv[1]), {"durability": sys.argv[3]})
os.write(1, b"durable 0\\n")
turns = int(sys.argv[2])
for turn in range(turns):
    facts = journal.facts
    first = facts.size
    journal.commit([submission(facts, [{"n": turn}] * 20, "c", turn + 1)])
    journal.commit([success("b", first, [turn] * 20)])
    os.write(1, b"durable %d\\n" % (first + 20))
journal.close()
"""


class Write(NamedTuple):
    """Bytes at a place in the file."""

    offset: int
    data: bytes


class Sync(NamedTuple):
    """All writes before it are on the disk."""


class Cut(NamedTuple):
    """The file got another length."""

    length: int


class Durable(NamedTuple):
    """The process has told that so many jobs are recorded."""

    jobs: int


Step = Write | Sync | Cut | Durable

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (\d+)(?:<[^>]*>)?$")
_PWRITE = re.compile(r'^(\d+)<([^>]*)>, "((?:\\x[0-9a-f]{2})*)", \d+, (\d+)$')
_VECTOR = re.compile(r'iov_base="((?:\\x[0-9a-f]{2})*)"')


def recorded(place: Path, turns: int, durability: str = "disk") -> list[Step]:
    """Write a batch under strace; return what its data file and its reader were told, in order."""
    log = place.parent / "strace.log"
    calls = "pwrite64,pwritev,writev,write,fdatasync,fsync,msync,ftruncate,lseek,openat"
    command = [STRACE, "-f", "-qq", "-y", "-xx", "-s", str(1 << 22), "-e", f"trace={calls}", "-o", str(log)]
    subprocess.run([*command, sys.executable, "-c", WRITER, str(place), str(turns), durability], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return list(steps_in(log.read_text()))


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def steps_in(log: str) -> Iterator[Step]:
    """Read strace's lines: those about the data file, and what was told through descriptor 1."""
    at = 0  # Where writev goes on: LMDB seeks first.
    synced: set[str] = set()
    """Descriptors whose every write is on the disk when it returns."""
    for line in log.splitlines():
        call = _CALL.match(line)
        if call is None:
            continue
        name, given, result = call[1], call[2], int(call[3])
        if name == "write" and given.startswith("1<"):
            told = unhex(given.split('"')[1])
            if told.startswith(b"durable "):
                yield Durable(int(told.split()[1]))
        if name == "openat":
            (synced.add if "O_DSYNC" in given else synced.discard)(call[3])
        fd_path = re.match(r"\d+<([^>]*)>", given)
        if fd_path is None or not bytes_path(fd_path[1]).endswith(b"data.mdb"):
            continue
        match name:
            case "pwrite64":
                found = _PWRITE.match(given)
                assert found is not None, line[:200]
                yield Write(int(found[4]), unhex(found[3])[:result])
                if found[1] in synced:  # As the header is.
                    yield Sync()
            case "lseek":
                at = result
            case "writev":
                data = b"".join(map(unhex, _VECTOR.findall(given)))
                yield Write(at, data[:result])
                at += result
            case "pwritev":
                data = b"".join(map(unhex, _VECTOR.findall(given)))
                yield Write(int(given.rpartition(", ")[2]), data[:result])
            case "ftruncate":
                yield Cut(int(given.rpartition(", ")[2], 0))
            case "fdatasync" | "fsync" | "msync":
                yield Sync()


def bytes_path(shown: str) -> bytes:
    return unhex(shown) if shown.startswith("\\x") else shown.encode()


def apply(image: bytearray, step: Write | Cut) -> None:
    if isinstance(step, Cut):
        image[:] = image[: step.length].ljust(step.length, b"\0")
        return
    end = step.offset + len(step.data)
    if len(image) < end:
        image.extend(bytes(end - len(image)))
    image[step.offset : end] = step.data


def torn(step: Write, dice: Random) -> list[Write]:
    """Return some of the sectors of a write, in any order."""
    cuts = range(0, len(step.data), SECTOR)
    parts = [Write(step.offset + cut, step.data[cut : cut + SECTOR]) for cut in cuts]
    return dice.sample(parts, dice.randrange(len(parts) + 1))


def states(steps: list[Step], dice: Random, per_step: int) -> Iterator[tuple[bytes, int]]:
    """Give (what may be on the disk, how many jobs were told to be durable; -1: not even the batch)."""
    synced, told = bytearray(), -1
    pending: list[Write | Cut] = []
    for step in steps:
        match step:
            case Sync():
                for each in pending:
                    apply(synced, each)
                pending = []
            case Durable(jobs=jobs):
                told = jobs
            case _:
                pending.append(step)
        for turn in range(per_step if pending else 1):
            image = bytearray(synced)
            kept = [each for each in pending if dice.random() < (0.0, 1.0, 0.5)[min(turn, 2)]]
            if turn > 2:
                dice.shuffle(kept)
            for each in kept:
                for part in torn(each, dice) if turn > 3 and isinstance(each, Write) else [each]:
                    apply(image, part)
            yield bytes(image), told


@pytest.mark.covers("D4")
@pytest.mark.parametrize(("turns", "per_step"), [(3, 2), pytest.param(25, 8, marks=pytest.mark.slow)])
def test_what_was_told_to_be_durable_is_there_after_a_power_loss(
    tmp_path: Path, turns: int, per_step: int, tally: Tally
) -> None:
    steps = recorded(tmp_path / "b", turns)
    assert sum(isinstance(step, Durable) for step in steps) == turns + 1
    whole = bytearray()
    for step in steps:
        if isinstance(step, Write | Cut):
            apply(whole, step)
    on_disk = (tmp_path / "b" / "data.mdb").read_bytes()
    assert bytes(whole).ljust(len(on_disk), b"\0") == on_disk, "the record of the writes is not whole"
    dice, seen = Random(1), 0
    place = tmp_path / "after" / "b"
    place.mkdir(parents=True)
    for image, told in states(steps, dice, per_step):
        if told < 0:
            continue  # It is a draft of another name until it is whole.
        (place / "data.mdb").write_bytes(image)
        (place / "lock.mdb").unlink(missing_ok=True)
        check_whole(place, told)
        seen += 1
    tally.injected(seen)
    tally.count("states after a power loss", seen)
    assert seen > 10 * turns


def check_whole(place: Path, told: int) -> None:
    """The batch is well, and holds at least what was told, with the right values."""
    assert check_batch(place).is_well
    journal = BatchJournal(place)
    try:
        done = {
            span.start + at: value
            for span in Outcomes(journal).spans(journal.facts.done, journal.facts.generation)
            for at, value in enumerate(span.values())
        }
        assert set(range(told)) <= done.keys(), "what was told to be durable is lost"
        assert all(value == index // 20 for index, value in done.items())
        assert journal.facts.size >= told
    finally:
        journal.close()


def test_without_syncs_something_would_be_lost(tmp_path: Path) -> None:
    """Which shows that the states are hostile enough, and why `process` is not the default of a journal."""
    steps = recorded(tmp_path / "b", 3, "process")
    place = tmp_path / "after" / "b"
    place.mkdir(parents=True)
    lost = 0
    for image, told in states(steps, Random(1), 3):
        if told > 0:
            (place / "data.mdb").write_bytes(image)
            (place / "lock.mdb").unlink(missing_ok=True)
            diagnosis = check_batch(place)
            lost += not diagnosis.is_well or diagnosis.done < told
    assert lost
