"""Where each microsecond of an N3 round trip goes: every hop from the caller to its result, by the clock.

One trip is under way at a time, so all notes between two submissions are one trip's. Trips that made other notes than
most did (a worker's second lease, progress that was told) are left out.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from typing import Any, Final

from benchmarks.batch import await_gone
from benchmarks.contest import Setting
from benchmarks.notes import Note, Places, noting, read

_PLACES: Final[Places] = {
    "client": (
        ("batchd.engine:Engine.submit", "submit is called", ""),
        ("batchd.engine:Engine._send", "its thread is awake", ""),
        ("batchd.client.connection:Connection.tell", "", "the job is sent"),
        ("batchd.client.connection:Connection.messages", "", "it is read back"),
        ("batchd.engine:JobFuture.set_result", "its result is decoded", ""),
        ("batchd.engine:JobFuture.result", "", "the caller has it"),
    ),
    "supervisor": (
        ("batchd.edge.control:Line.read", "the supervisor is awake", ""),
        ("batchd.edge.journal:BatchJournal.commit", "a commit begins", "it is durable"),
        ("batchd.edge.pool:Pool._grant", "", "its lease is sent"),
        ("batchd.edge.pool:Pool._on_reports", "the supervisor is awake again", ""),
        ("batchd.edge.control:Line.send", "", "the client is told"),
    ),
    "worker": (
        ("batchd.worker.main:Worker._run_lease", "a worker is awake", ""),
        ("batchd.worker.main:Worker._run", "it has the input", "the job is done"),
        ("batchd.worker.outcome:Outcomes.end", "", "it is reported"),
    ),
}
_CLIENT: Final = """
import sys
import batchd, batchd.client
from benchmarks.jobs import noop

with batchd.Executor(int(sys.argv[3]), journal=sys.argv[1]) as executor:
    for number in range(int(sys.argv[2])):
        assert executor.submit(noop, number).result() == number
"""


def dissect(setting: Setting) -> dict[str, Any]:
    """Make trips and return where their time went, in JSON's types."""
    trips = setting.jobs(1_000, 300)
    folder = Path(mkdtemp(dir=setting.scratch)) / "journal"
    with noting(setting.scratch, _PLACES) as notes:
        command = [sys.executable, "-c", _CLIENT, str(folder), str(trips), str(setting.workers)]
        subprocess.run(command, check=True)
        await_gone(folder)
    alike = usual(apart(read(notes))[trips // 5 :])  # The first ones warm everything up.
    return {
        "title": f"Where the time goes: N3, {len(alike):,} of {trips:,} round trips",
        "explained": [
            "Medians by the clock; every note takes about a microsecond itself. A step to another process or thread",
            "is a wake-up: what it takes beyond the system call is the kernel's. The others are Python, or the disk.",
        ],
        "columns": ["from", "to", "us", "since the call, us"],
        "rows": hops(alike),
    }


def apart(notes: Sequence[Note]) -> list[list[Note]]:
    """The notes of each whole trip."""
    begins = [at for at, note in enumerate(notes) if note.what == "submit is called"]
    return [list(notes[begin:end]) for begin, end in pairwise(begins)]


def usual(trips: Sequence[list[Note]]) -> list[list[Note]]:
    """The trips that made the notes that most of them made; polls that found nothing are no notes."""
    cleaned = [_without_polls(trip) for trip in trips]
    (most, _), *_ = Counter(tuple(note.what for note in trip) for trip in cleaned).most_common(1)
    return [trip for trip in cleaned if tuple(note.what for note in trip) == most]


def _without_polls(trip: list[Note]) -> list[Note]:
    """A client reads whenever it wakes up: only after it was told does it read the outcome."""
    told = next((at for at, note in enumerate(trip) if note.what == "the client is told"), 0)
    sent = next((at for at, note in enumerate(trip) if note.what == "the job is sent"), 0)
    client = {"it is read back", "its thread is awake"}
    return [
        note
        for at, note in enumerate(trip)
        if note.what not in client or (at > told if note.what == "it is read back" else at < sent)
    ]


def hops(trips: Sequence[Sequence[Note]]) -> list[list[str]]:
    """From, to, and how long that took, of trips that made the same notes."""
    rows, total_us = [], 0.0
    for at, (here, there) in enumerate(pairwise(trips[0])):
        took_us = median((trip[at + 1].at_ns - trip[at].at_ns) / 1000 for trip in trips)
        total_us += took_us
        rows.append([here.what, there.what, f"{took_us:.0f}", f"{total_us:.0f}"])
    return rows
