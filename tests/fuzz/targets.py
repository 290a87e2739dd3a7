"""What is fuzzed: every decoder that takes bytes from another process, from a disk or from a person.

Nothing is mutated here. The one idea: a target does with its value what the product does with it next, so a value
that was decoded but cannot be used is a finding as well. The first byte of most inputs is a dial: it says whether
checksums are made right first, without which nothing behind them would ever be reached, and how a stream is cut.
"""

import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

from batchd.core import entries as e
from batchd.core import events as ev
from batchd.core.facts import BatchFacts, apply
from batchd.core.job import Allowances, JobState
from batchd.core.replay import LeaseTrace, interrupted
from batchd.core.scheduler import Scheduler
from batchd.edge import control
from batchd.edge.gauges import parse_workers
from batchd.edge.reports import event_of
from batchd.edge.template import answer_of
from batchd.errors import FormatError, UsageError
from batchd.formats import frame, joblog, pages, report, segment
from batchd.formats.likeness import likeness
from batchd.formats.segment import Encoding
from batchd.settings import LOG_LINE_BYTES_MAX
from batchd.sources import RangeSource
from batchd.supervisor.openings import key_spec_of, options_of
from batchd.units import parse_duration, parse_share, parse_size
from batchd.worker.recorder import POSITION, SLOT_BYTES, Lane, Slot, phase_word
from tests.fuzz.fuzzer import Target

REFUSED: Final = (UsageError, FormatError, KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What the supervisor answers with "malformed request"."""
_BLOCK_CRC_AT: Final = segment.HEADER_BYTES - 4
_FRAME_CRC_AT: Final = frame.HEADER_BYTES - 4


def mended_blocks(data: bytes) -> bytes:
    """Return a record whose checksums are right, as far as its lengths make sense."""
    made, at = bytearray(data), 0
    while len(made) - at >= segment.HEADER_BYTES:
        length = int.from_bytes(made[at + 16 : at + 20], "little")
        head, body_at = bytes(made[at : at + _BLOCK_CRC_AT]), at + segment.HEADER_BYTES
        crc = zlib.crc32(made[body_at : body_at + length], zlib.crc32(head))
        made[at + _BLOCK_CRC_AT : body_at] = crc.to_bytes(4, "little")
        at = body_at + length
    return bytes(made)


def mended_frames(data: bytes) -> bytes:
    """Return a stream of frames whose checksums are right, as far as their lengths make sense."""
    made, at = bytearray(data), 0
    while len(made) - at >= frame.HEADER_BYTES:
        meta_bytes, body_bytes = (int.from_bytes(made[at + place : at + place + 4], "little") for place in (8, 12))
        head, meta_at = bytes(made[at : at + _FRAME_CRC_AT]), at + frame.HEADER_BYTES
        crc = zlib.crc32(made[meta_at : meta_at + meta_bytes], zlib.crc32(head))
        made[at + _FRAME_CRC_AT : meta_at] = crc.to_bytes(4, "little")
        at = meta_at + meta_bytes + body_bytes
    return bytes(made)


def dialled(data: bytes, mend: Callable[[bytes], bytes]) -> tuple[int, bytes]:
    """Return the dial and the rest, which is mended unless the dial says otherwise."""
    dial, rest = (data[0], data[1:]) if data else (0, b"")
    return dial, rest if dial & 1 else mend(rest)


# --- Bytes -----------------------------------------------------------------------------------------------------


def read_record(data: bytes) -> None:
    """A journal record, as workers and readers of results take it."""
    _, record = dialled(data, mended_blocks)
    for block in segment.unpack(record):
        assert 0 <= block.count < 1 << 32, "a count that no header can hold"
        if block.encoding is Encoding.ITEMS:
            payloads = block.payloads()
            assert len(payloads) == block.count, f"{len(payloads)} payloads of {block.count} jobs"
            assert sum(map(len, payloads)) <= len(block.body)
        elif block.encoding is Encoding.FILED:
            assert "/" not in block.reference().name


def read_vector(data: bytes) -> None:
    """The plain values of a block whose checksum is right and whose body is not: a count, then the body."""
    count, body = (data[0], data[1:]) if data else (0, b"")
    (block,) = segment.unpack(segment.pack(0, count, JobState.SUCCEEDED, Encoding.VECTOR, body))
    assert len(block.plain()) == count


def read_stream(data: bytes) -> None:
    """A stream of frames, cut into pieces as pipes and sockets do."""
    dial, stream = dialled(data, mended_frames)
    reader = frame.FrameReader(body_bytes_max=1 << 16)
    step = (dial >> 1) or len(stream) or 1
    given = 0
    for at in range(0, len(stream), step):
        for found in reader.feed(stream[at : at + step]):
            given += frame.HEADER_BYTES + len(found.meta) + len(found.body)
    assert given <= len(stream)


def read_message(data: bytes) -> None:
    """The structured part of a request, a reply or news."""
    for message in control.decode(iter([frame.Frame(control.REQUEST, data, b"")])):
        assert isinstance(message.fields, dict)


def read_likeness(data: bytes) -> None:
    """A pickle, as it is shown to people without running what it names."""
    repr(likeness(data))


def read_failure(data: bytes) -> None:
    """A failure, as it is shown to people and written as JSON."""
    found = report.Failure.decode(data)
    assert all(isinstance(text, str) for text in (found.type, found.message, found.output))
    assert isinstance(found.details, dict)
    assert isinstance(found.exception, bytes)


def read_log_line(data: bytes) -> None:
    """A line of what jobs said: it is written again as it is shown."""
    line = joblog.decode(data)
    if line is not None:
        assert line.encode().endswith(b"\n")
        assert len(line.encode()) <= LOG_LINE_BYTES_MAX


def read_report(data: bytes) -> None:
    """A worker's report: the kind, the length of the structured part, that part, the body."""
    kind, length = (data[0] % 9, data[1]) if len(data) > 1 else (0, 0)
    _, body = dialled(data[2 + length :], mended_blocks)
    event = event_of(1, "key", frame.Frame(kind, data[2 : 2 + length], body))
    if isinstance(event, ev.JobsAcked):
        assert event.count > 0, "a report of no jobs"
        assert event.state in {JobState.SUCCEEDED, JobState.FAILED}, f"a worker says {event.state.name}"


def read_answer(data: bytes) -> None:
    """What a template says on its socket: whom it tells of has a process to watch, or words why there is none."""
    answer = answer_of(data)
    assert ("started" in answer) == ("pid" in answer)
    assert ("unstarted" in answer) == ("why" in answer)
    for told in answer.values():
        assert type(told) is str or 0 < told < 1 << 31, "no number of a process, a worker or threads"


def read_slot(data: bytes) -> None:
    """A worker's slot of the flight recorder, which any job may scribble over: who is charged by it at a restart."""
    slot = Slot(memoryview(bytearray(data[:SLOT_BYTES].ljust(SLOT_BYTES, b"\0"))).cast("Q"))
    position = slot.position()
    traces = [LeaseTrace("b", 1, lane.lease, lane.first, lane.reach, position) for lane in slot.lanes()]
    facts = BatchFacts("b", size=40)
    apply(facts, e.Attached("b", 1))
    made = interrupted(facts, traces, Allowances())
    assert made[-1] == e.Detached("b")
    assert all(entry.first + entry.count <= 40 for entry in made if isinstance(entry, e.Charged))


def read_page(data: bytes) -> None:
    """A page of LMDB's, which is looked at only when it is damaged."""
    dial, page = (data[0], data[1 : 1 + _PAGE_BYTES].ljust(_PAGE_BYTES, b"\0")) if data else (0, bytes(_PAGE_BYTES))
    if dial & 1:
        header = pages.header_of(page)
        assert header.page_bytes > 0
    elif dial & 2:
        assert all(number >= 0 for number in pages.free_pages_of(data[1:]))
    else:
        nodes, _ = pages.nodes_of(page, is_branch=bool(dial & 4), is_numbered=bool(dial & 8))
        for node in nodes:
            assert len(node.key) <= pages.KEY_BYTES_MAX
            assert node.page != pages.NO_PAGE or node.offset + node.length <= len(page), "a value behind its page"


# --- Requests --------------------------------------------------------------------------------------------------


class Unusable(AssertionError):
    """Something was accepted that breaks whoever uses it."""


def read_options(data: bytes) -> None:
    """Options of a batch, and what the scheduler then does with them."""
    options = options_of(json.loads(data))
    scheduler = Scheduler(lambda: 0.5)
    try:
        for events in _life_of_a_batch(options):
            scheduler.step(events, 1.0)
            scheduler.check()
    except Exception as error:
        raise Unusable(f"{type(error).__name__}") from error


def _life_of_a_batch(options: ev.Options) -> list[list[ev.Event]]:
    mark = b"12345678"
    block = segment.pack_items(0, JobState.FAILED, [report.Failure("E", "m", mark).encode()])
    position = ev.Position(1, 1, ev.Phase.RUNNING)
    return [
        [ev.BatchAttached(BatchFacts("b"), options, "k", 1)],
        [_segments(3)],
        [ev.Committed(2)],
        [ev.WorkerReady(1), ev.SealRequested("b")],
        [ev.JobsAcked(1, 1, 0, 1, JobState.FAILED, block, 0.001, mark)],
        [ev.WorkerObserved(1, position, 5.0, 1 << 20)],
        [ev.Committed(7), ev.WorkerGone(1, position, "killed by SIGKILL", b"")],
        [ev.ScaleRequested(None), ev.Committed(8)],
    ]


def _segments(count: int) -> ev.SegmentsReceived:
    ((_, segment_bytes),) = segment.input_blocks(list(range(count)))
    return ev.SegmentsReceived(
        batch="b", count=count, segments=(segment_bytes,), client="c", sequence=1, checkpoint=""
    )


def read_key_spec(data: bytes) -> None:
    """How workers are to be started, and whether a process could be started so."""
    spec = key_spec_of(json.loads(data), b"")
    try:
        for text in (*spec.task, *spec.sys_path, spec.cwd, spec.executable, *spec.environ.values()):
            os.fsencode(text)
    except (ValueError, TypeError) as error:
        raise Unusable(f"{type(error).__name__}") from error
    if any("=" in name for name in spec.world()):
        raise Unusable("a name that no environment can have")


# --- Text ------------------------------------------------------------------------------------------------------


def read_units(data: bytes) -> None:
    """Sizes, durations, shares, worker counts and ranges as people write them."""
    dial, text = (data[0] % 5, data[1:].decode("utf-8", "surrogateescape")) if data else (0, "")
    match dial:
        case 0:
            assert 0 <= parse_size(text) < 1 << 100
        case 1:
            assert 0.0 <= parse_duration(text) < float("inf")
        case 2:
            count, ratio = parse_share(text)
            assert (count is None) != (ratio is None)
            assert ratio is None or 0.0 <= ratio <= 1.0
        case 3:
            assert parse_workers(text, cpus=3.5) >= 1
        case _:
            source = RangeSource.parse(text)
            assert source.count() >= 0
            next(source.blocks(), None)


# --- The table -------------------------------------------------------------------------------------------------

_PAGE_BYTES: Final = 512


def _page() -> bytes:
    """A leaf page of two entries and, behind it, nothing."""
    nodes = [struct.pack("=HHHH", 4, 0, 0, 2) + key + b"some" for key in (b"aa", b"bb")]
    body = b"".join(nodes)
    upper = _PAGE_BYTES - len(body)
    pointers = struct.pack("=HH", upper, upper + len(nodes[0]))
    head = struct.pack("=QHHHH", 7, 0, pages.LEAF, pages.PAGE_HEAD_BYTES + len(pointers), upper)
    return (head + pointers).ljust(upper, b"\0") + body


def _header_page() -> bytes:
    tree = struct.pack("=IHHQQQQQ", 4096, 0, 1, 0, 1, 0, 2, 3)
    head = struct.pack("=QHHHH", 0, 0, pages.HEADER, 0, 0)
    return head + struct.pack("=II8xQ", 0xBEEFC0DE, 1, 1 << 30) + tree + tree + struct.pack("=QQ", 9, 4)


_RECORD: Final = b"\0" + b"".join(
    (
        segment.pack_vector(0, 0, [1, "a", b"b", None, 2.5, (1, (2,))]),
        segment.pack_items(6, 3, [b"one", b"", b"three"]),
        segment.pack_vector(9, 3, [None] * 5),
        segment.pack_vector(0, 0, range(3, 30, 4)),
    )
)
_FAILURE: Final = report.Failure("ValueError", "no é", b"12345678", "out\n", {"signal": 9, "cpu_s": 0.5}, b"pickle")
_OPTIONS: Final[dict[str, Any]] = {
    "workers": 4,
    "allowances": Allowances()._asdict(),
    "timeout_s": 1.5,
    "memory_bytes_max": 1 << 30,
    "failures_max": 3,
    "failures_share_max": 0.5,
    "keep_going": False,
}
_NONE: Final = dict.fromkeys(("timeout_s", "memory_bytes_max", "failures_max", "failures_share_max"))
_KEY_SPEC: Final = {
    "task": ["module", "name"],
    "sys_path": ["/tmp", "/usr/lib"],
    "cwd": "/tmp",
    "environ": {"HOME": "/root", "A": "b"},
    "executable": "/usr/bin/python3",
    "is_fresh": False,
}


def _slot() -> bytes:
    """A worker in the middle of the first of two leases."""
    words = memoryview(bytearray(SLOT_BYTES)).cast("Q")
    slot = Slot(words)
    slot.write_lane(0, Lane(7, 0, 10, 1, False, "b", 10))
    slot.write_lane(1, Lane(8, 10, 30, 1, False, "b", 30))
    words[POSITION] = phase_word(ev.Phase.RUNNING, 0) | 4
    return words.tobytes()


def _report(kind: int, meta: bytes, body: bytes = b"") -> bytes:
    return bytes([kind, len(meta)]) + meta + b"\0" + body


def _json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


TARGETS: Final = (
    Target("segment", read_record, [_RECORD, b"\0" + segment.pack_items(0, 3, []), b"\1"], words=[b"bd"]),
    Target(
        "vector",
        read_vector,
        [b"\6" + pickle.dumps([1, "a", b"b", None, 2.5, (1, (2,))], 5), b"\2" + pickle.dumps([2**70, "x" * 300], 5)],
        is_bounded=False,  # A pickle may ask for any amount of memory: only its checksum speaks for it.
    ),
    Target(
        "frame",
        read_stream,
        [b"\0" + frame.encode(1, b"meta", 4) + b"body" + frame.encode(2, b""), b"\x0a" + frame.encode(3, b"m" * 40)],
        words=[b"bdF1", frame.encode(1, b"")],
    ),
    Target("slot", read_slot, [_slot()], allowed=()),
    Target(
        "page",
        read_page,
        [b"\0" + _page(), b"\x04" + _page(), b"\1" + _header_page(), b"\2" + struct.pack("=QQQ", 2, 8, 7)],
    ),
    Target(
        "likeness",
        read_likeness,
        [
            pickle.dumps(value, 5)
            for value in ({"a": [1, 2.5, None]}, RangeSource, segment.Encoding.ITEMS, [{3}, b"x"])
        ],
        words=[b"c", b"R", b"b", b"\x94", b"h\0"],
        is_bounded=False,  # As above.
    ),
    Target("message", read_message, _json({"do": "hello", "number": 1}, {"batch": "b", "told": 2}, [], 1)),
    Target(
        "answer",
        read_answer,
        _json({"started": 7, "pid": 4_000}, {"ready": 1}, {"failed": "no"}, {"unstarted": 7, "why": "no"}, [], 5),
        words=[b"[" * 50, b'"pid":', b'"why":', b"1e9", b"null", b"true"],
    ),
    Target("log", read_log_line, [joblog.Line("2026-01-02T03:04:05.678Z", 17, 1, "half way").encode()], allowed=()),
    Target("failure", read_failure, [_FAILURE.encode(), report.Failure("E", "", b"12345678").encode()]),
    Target(
        "report",
        read_report,
        [
            _report(report.Report.READY, b""),
            _report(report.Report.ENDED, report.ENDED.pack(1, 20)),
            _report(report.Report.EXPLAINED, report.ACK.pack(1, 5, b"12345678"), b"Traceback"),
            _report(report.Report.ACK, report.ACK.pack(1, 5, bytes(8)), segment.pack_vector(3, 3, [1, 2])),
            _report(report.Report.ACK, report.ACK.pack(1, 5, b"12345678"), segment.pack_items(3, 4, [b"failure"])),
        ],
        words=[b"bd"],
    ),
    Target("options", read_options, _json(_OPTIONS, {**_OPTIONS, **_NONE}), allowed=REFUSED),
    Target("key_spec", read_key_spec, _json(_KEY_SPEC), allowed=REFUSED),
    Target(
        "units",
        read_units,
        [
            b"\x002G",
            b"\x00 1.5 KiB",
            b"\x00300",
            b"\x011h30m",
            b"\x01200ms",
            b"\x011.5",
            b"\x025",
            b"\x025%",
            b"\x0375%",
            b"\x03auto",
            b"\x041:9:2",
        ],
        allowed=(UsageError,),
        words=[b"1", b"0.", b"K", b"ms", b"h", b"d", b"%", "\N{ARABIC-INDIC DIGIT THREE}".encode(), b"\xff", b" "],
    ),
)
