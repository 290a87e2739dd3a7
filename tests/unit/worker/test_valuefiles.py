"""Value files: written whole or not at all, durable before they are named, and never believed unseen."""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from batchd.errors import FormatError
from batchd.formats.reference import NUMBERS, OF_WORKER, Reference
from batchd.settings import DISK_RESERVE_BYTES, VALUE_BYTES_MAX, VALUE_FILE_BYTES_MIN
from batchd.worker import valuefiles
from batchd.worker.valuefiles import VALUES_NAME, ValueFiles, is_value, named, read_value

HEAD, WRITABLE, FIXED = b"head", bytearray(b"w" * VALUE_FILE_BYTES_MIN), b"f" * 1_000


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    (tmp_path / VALUES_NAME).mkdir(0o700)
    return tmp_path


WORKER = OF_WORKER | 5


def kept(batch: Path, **given: Any) -> tuple[Reference, Path]:
    made = ValueFiles(batch, **{"is_synced": False, "worker": WORKER, **given}).keep(
        [HEAD, memoryview(WRITABLE), FIXED]
    )
    assert made is not None
    return made, batch / VALUES_NAME / made.name


def files_of(batch: Path) -> list[str]:
    return sorted(file.name for file in (batch / VALUES_NAME).iterdir())


def test_a_value_comes_back_as_it_went(batch: Path) -> None:
    reference, path = kept(batch)
    assert read_value(batch, reference) == [HEAD, WRITABLE, FIXED]
    assert [type(part) for part in read_value(batch, reference)] == [bytes, bytearray, bytes]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == HEAD + WRITABLE + FIXED


def test_what_is_small_or_too_large_is_not_written(batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ValueFiles(batch, is_synced=False)
    assert files.keep([bytes(VALUE_FILE_BYTES_MIN - 1)]) is None
    monkeypatch.setattr(valuefiles, "VALUE_BYTES_MAX", VALUE_FILE_BYTES_MIN)
    assert files.keep([bytes(VALUE_FILE_BYTES_MIN), b"x"]) is None
    assert VALUE_BYTES_MAX > VALUE_FILE_BYTES_MIN
    assert files_of(batch) == []


@pytest.mark.covers("D1")
def test_a_value_leaves_room_for_what_is_small(batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = os.statvfs(batch)
    needed = DISK_RESERVE_BYTES + VALUE_FILE_BYTES_MIN
    for free, is_kept in ((needed - 1, False), (needed, True)):
        told = [*disk]
        told[1], told[4] = 1, free  # f_frsize, f_bavail
        monkeypatch.setattr(os, "statvfs", lambda _, told=told: os.statvfs_result(told))
        assert (ValueFiles(batch, is_synced=False, worker=WORKER).keep([WRITABLE]) is not None) is is_kept
    assert len(files_of(batch)) == 1


def test_no_name_is_given_twice(batch: Path) -> None:
    files, others = ValueFiles(batch, is_synced=False), ValueFiles(batch, is_synced=False)
    made = [each.keep([WRITABLE]) for each in (files, others) for _ in range(3)]
    references = [reference for reference in made if reference]
    assert len({reference.name for reference in references}) == 6
    for reference in references:
        assert not reference.writer & OF_WORKER
        assert is_value(reference.name)
        assert named(reference.name) == (reference.writer, reference.number)


def test_a_worker_numbers_its_files_by_the_job(batch: Path) -> None:
    files = ValueFiles(batch, is_synced=False, worker=WORKER)
    made = [files.keep([WRITABLE], job) for job in (0, 7, NUMBERS + 8)]
    assert [named(each.name) for each in made if each] == [(WORKER, 0), (WORKER, 7), (WORKER, 8)]
    assert files.keep([WRITABLE], 7) is None  # What lies there may be named by a record.
    assert len(files_of(batch)) == 3


def test_what_lies_at_a_name_is_left_alone(batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    first = ValueFiles(batch, is_synced=False).keep([WRITABLE])
    assert first is not None
    assert ValueFiles(batch, is_synced=False).keep([bytes(len(WRITABLE))]) is None
    assert read_value(batch, first) == [WRITABLE]


@pytest.mark.parametrize("is_synced", [True, False])
def test_a_value_is_on_the_disk_before_it_is_named(
    batch: Path, monkeypatch: pytest.MonkeyPatch, *, is_synced: bool
) -> None:
    calls: list[str] = []

    def told(name: str) -> None:
        real = getattr(os, name)

        def call(fd: int, *given: Any) -> Any:
            calls.append(f"{name} {Path(f'/proc/self/fd/{fd}').readlink().name}")
            return real(fd, *given)

        monkeypatch.setattr(os, name, call)

    for name in ("write", "fdatasync", "fsync"):
        told(name)
    reference, path = kept(batch, is_synced=is_synced)
    written = [f"write {path.name}"] * 3
    assert calls == ([*written, f"fdatasync {path.name}", f"fsync {VALUES_NAME}"] if is_synced else written)
    assert reference.nbytes == path.stat().st_size


@pytest.mark.parametrize("failing", ["write", "fdatasync", "fsync", "open"])
def test_a_file_that_cannot_be_written_leaves_nothing_behind(
    batch: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        assert ValueFiles(batch, is_synced=True, worker=WORKER).keep([HEAD, WRITABLE]) is None
    assert files_of(batch) == []


def test_a_batch_without_the_folder_keeps_values_in_its_records(tmp_path: Path) -> None:
    for worker in (0, WORKER):
        assert ValueFiles(tmp_path, is_synced=True, worker=worker).keep([WRITABLE]) is None


def test_a_torn_write_is_gone_on(batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, memoryview(data)[:300_000]))
    reference, _ = kept(batch)
    assert read_value(batch, reference) == [HEAD, WRITABLE, FIXED]


@pytest.mark.covers("J8")
def test_a_file_that_is_not_as_it_was_is_told_of(batch: Path) -> None:
    reference, path = kept(batch)
    data = path.read_bytes()
    for changed in (data[:-1], data + b"x", b""):
        path.write_bytes(changed)
        with pytest.raises(FormatError, match=f"not as it was: .*{path.name}: {len(changed):,} bytes are there"):
            read_value(batch, reference)
    for at in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(FormatError, match="its checksum does not match"):
            read_value(batch, reference)
    path.unlink()
    with pytest.raises(FormatError, match=f"is missing: .*{path.name}"):
        read_value(batch, reference)
    (batch / "elsewhere").write_bytes(data)
    path.symlink_to(batch / "elsewhere")
    with pytest.raises(FormatError, match="cannot be opened"):
        read_value(batch, reference)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FormatError, match="not as it was"):
        read_value(batch, reference)


def test_the_file_of_a_throw_away_journal_has_no_checksum_and_its_length_is_looked_at(batch: Path) -> None:
    reference, path = kept(batch, is_checked=False)
    data = path.read_bytes()
    assert reference.crc is None
    assert read_value(batch, reference) == [HEAD, WRITABLE, FIXED]
    path.write_bytes(bytes([data[0] ^ 4]) + data[1:])
    assert read_value(batch, reference) != [HEAD, WRITABLE, FIXED]
    path.write_bytes(data[:-1])
    with pytest.raises(FormatError, match="not as it was"):
        read_value(batch, reference)


def test_a_lock_that_was_swept_before_it_was_held_is_taken_again(
    batch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    swept: list[Path] = []

    def flock(fd: int, how: int) -> None:
        if not swept:
            swept.append(Path(f"/proc/self/fd/{fd}").readlink())
            swept[0].unlink()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    files = ValueFiles(batch, is_synced=False)
    reference = files.keep([WRITABLE])
    assert reference is not None
    assert files_of(batch) == [reference.name.partition("-")[0], reference.name]
    files.close()
    files.close()
    assert len(files_of(batch)) == 2  # Whether all was sent, who sweeps looks.
