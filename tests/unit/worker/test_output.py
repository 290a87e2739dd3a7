"""What jobs print: whose it is, how much of it is kept, and that none of it can stop a worker."""

import os
from collections.abc import Iterator
from fcntl import F_ADD_SEALS, F_GETFL, F_SEAL_WRITE, F_SETFL, fcntl

import pytest

from batchd.settings import OUTPUT_FILE_BYTES_MAX, OUTPUT_TAIL_BYTES
from batchd.worker import output


@pytest.fixture
def capture() -> Iterator[int]:
    fd = os.memfd_create("capture", os.MFD_CLOEXEC)
    os.lseek(fd, 0, os.SEEK_END)
    yield fd
    os.close(fd)


class Worker:
    """A worker as far as its output knows it: the job it is at."""

    def __init__(self, fd: int) -> None:
        self.index = 0
        self.stream = output.text_stream(fd, lambda: self.index)


def test_a_job_sees_its_own_lines_and_what_nobody_stamped(capture: int) -> None:
    worker = Worker(capture)
    print("of job 0", file=worker.stream)
    worker.index = 1
    os.write(capture, b"from C\n")
    print("of job 1", file=worker.stream)
    worker.stream.flush()
    assert output.tail(capture, 0) == "of job 0\nfrom C\n"
    assert output.tail(capture, 1) == "from C\nof job 1\n"
    assert output.tail(capture, 2) == "from C\n"
    worker.stream.close()


def test_a_line_without_an_end_belongs_to_the_job_that_began_it(capture: int) -> None:
    worker = Worker(capture)
    worker.stream.write("no end of line")
    worker.index = 1
    print("of job 1", file=worker.stream)
    worker.stream.flush()
    assert output.tail(capture, 0) == "no end of line"
    assert output.tail(capture, 1) == "of job 1\n"
    worker.stream.close()


def test_a_line_printed_in_pieces_is_one_write(capture: int) -> None:
    worker = Worker(capture)
    print("a", "b", 1, 2, file=worker.stream)
    worker.stream.flush()
    assert os.pread(capture, 100, 0) == b"\x1e0\x1fa b 1 2\n\x1e\x1f"
    worker.stream.close()


def test_any_text_at_all_can_be_printed(capture: int) -> None:
    worker = Worker(capture)
    print("\u20ac", "\ud800", file=worker.stream)
    worker.stream.flush()
    assert output.tail(capture, 0) == "\u20ac \\ud800\n"
    assert worker.stream.encoding == "utf-8"
    assert worker.stream.fileno() == capture
    assert worker.stream.writable()
    worker.stream.close()


def test_bytes_can_be_printed_through_the_buffer(capture: int) -> None:
    worker = Worker(capture)
    worker.stream.buffer.write(b"\xff\xfe\n")
    worker.stream.flush()
    assert output.tail(capture, 0) == "\ufffd\ufffd\n"
    worker.stream.close()


def test_only_the_tail_is_kept(capture: int) -> None:
    worker = Worker(capture)
    for number in range(40_000):
        print(f"line {number}", file=worker.stream)
    worker.stream.flush()
    kept = output.tail(capture, 0)
    assert kept.endswith("line 39999\n")
    assert len(kept) == OUTPUT_TAIL_BYTES
    worker.stream.close()


def test_what_came_before_is_not_shown(capture: int) -> None:
    os.write(capture, b"of an earlier lease\n")
    since = output.cut_back(capture)
    assert output.tail(capture, 0, since) == ""
    os.write(capture, b"of this one\n")
    assert output.tail(capture, 0, since) == "of this one\n"


def test_a_full_capture_file_is_emptied_between_leases() -> None:
    fd = os.memfd_create("capture", os.MFD_CLOEXEC)
    os.ftruncate(fd, OUTPUT_FILE_BYTES_MAX)
    assert output.cut_back(fd) == OUTPUT_FILE_BYTES_MAX
    os.ftruncate(fd, OUTPUT_FILE_BYTES_MAX + 1)
    assert output.cut_back(fd) == 0
    assert os.fstat(fd).st_size == 0
    os.close(fd)


@pytest.mark.parametrize("appends", [True, False])
def test_a_capture_file_that_is_too_large_keeps_its_tail_while_it_grows(capture: int, *, appends: bool) -> None:
    if appends:
        fcntl(capture, F_SETFL, fcntl(capture, F_GETFL) | os.O_APPEND)
    lines = b"".join(b"%08d\n" % number for number in range(OUTPUT_FILE_BYTES_MAX // 9 + 1))
    os.write(capture, lines)
    output.free_head(capture)
    assert blocks_bytes(capture) <= 32 * OUTPUT_TAIL_BYTES
    assert os.fstat(capture).st_size == len(lines)
    os.write(capture, b"the last line\n")
    assert output.tail(capture, 0) == (lines + b"the last line\n")[-OUTPUT_TAIL_BYTES:].decode()


def test_a_capture_file_within_its_limit_keeps_all(capture: int) -> None:
    text = b"x" * (OUTPUT_FILE_BYTES_MAX // 2)
    os.write(capture, text)
    output.free_head(capture)
    assert blocks_bytes(capture) >= len(text)
    assert os.pread(capture, 2 * len(text), 0) == text


def test_where_there_are_no_holes_the_memory_is_given_back_all_the_same() -> None:
    """A sealed file cannot be written, which refuses the hole; it can be cut off."""
    fd = os.memfd_create("capture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, bytes(OUTPUT_FILE_BYTES_MAX + 1))
    fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)
    output.free_head(fd)
    assert blocks_bytes(fd) == os.fstat(fd).st_size == 0
    os.close(fd)


def blocks_bytes(fd: int) -> int:
    """Return how much memory the file takes."""
    return os.fstat(fd).st_blocks * 512


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (b"\x1e5\x1fcut off", "cut off"),
        (b"\x1e6\x1fcut off", ""),
        (b"\x1e5\x1fa\x1eb\x1fc\n\x1e\x1f", "a\x1eb\x1fc\n"),
        (b"\x1e5\x1f\x1e\x1f", ""),
        (b"\x1e\x1f", "\x1e\x1f"),
        (b"", ""),
    ],
)
def test_torn_and_odd_stamps(data: bytes, kept: str) -> None:
    assert output.select(data, 5) == kept
