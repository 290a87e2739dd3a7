"""Value files: written whole or not at all, durable before they are named, and never believed unseen."""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from batchd.errors import FormatError
from batchd.formats.reference import Reference
from batchd.settings import VALUE_BYTES_MAX, VALUE_FILE_BYTES_MIN
from batchd.worker import valuefiles
from batchd.worker.valuefiles import VALUES_NAME, ValueFiles, is_value, read_value, writer_of

HEAD, WRITABLE, FIXED = b"head", bytearray(b"w" * VALUE_FILE_BYTES_MIN), b"f" * 1_000


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    (tmp_path / VALUES_NAME).mkdir(0o700)
    return tmp_path


def kept(batch: Path, **given: bool) -> tuple[Reference, Path]:
    made = ValueFiles(batch, **{"is_synced": False, **given}).keep([HEAD, memoryview(WRITABLE), FIXED])
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


def test_no_name_is_given_twice(batch: Path) -> None:
    files, others = ValueFiles(batch, is_synced=False), ValueFiles(batch, is_synced=False)
    names = {made.name for each in (files, others) for _ in range(3) if (made := each.keep([WRITABLE]))}
    assert len(names) == 6
    assert all(is_value(name) and writer_of(name) for name in names)


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
        assert ValueFiles(batch, is_synced=True).keep([HEAD, WRITABLE]) is None
    assert files_of(batch) == []


def test_a_batch_without_the_folder_keeps_values_in_its_records(tmp_path: Path) -> None:
    for is_locked in (True, False):
        assert ValueFiles(tmp_path, is_synced=True, is_locked=is_locked).keep([WRITABLE]) is None


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
    files = ValueFiles(batch, is_synced=False, is_locked=True)
    reference = files.keep([WRITABLE])
    assert reference is not None
    assert files_of(batch) == [writer_of(reference.name), reference.name]
    files.close()
    files.close()
    assert files_of(batch) == [reference.name]
