"""N5: one batch of up to a hundred million jobs: what the supervisor holds of it, and what lies on the disk."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.batch import Job, run_batch
from benchmarks.contest import Contender, Contest, Goal, Sample, Setting, Work
from benchmarks.figures import growing

FULL_JOBS: Final = 100_000_000
QUICK_JOBS: Final = 1_000_000
MEMORY: Final = "supervisor's memory at its peak, MiB"
DISK: Final = "journal, bytes a job"
SHARE: Final = "journal on disk / encoded values"
_MEMORY_MIB_MAX: Final = 200
_SHARE_MAX: Final = 1.3
_SAMPLE_S: Final = 0.02
_WARM: Final = range(10)


def contests(setting: Setting) -> list[Contest]:
    """One table: a batch of each size, ten times as large as the one before."""
    sizes = growing(setting.jobs(FULL_JOBS, QUICK_JOBS))
    names = [f"{size:,} jobs" for size in sizes]
    return [
        Contest(
            number="N5",
            title="no-op jobs in one batch",
            jobs=sizes[-1],
            expected_checksum=sum(range(sizes[-1])),
            contenders=tuple(
                Contender(name, "disk", partial(_run, setting, size), Work(size, sum(range(size))))
                for name, size in zip(names, sizes, strict=True)
            ),
            goals=(
                Goal(names[-1], _MEMORY_MIB_MAX, figure=MEMORY, is_maximum=True),
                Goal(names[-1], _SHARE_MAX, figure=SHARE, is_maximum=True),
            ),
            counted=(
                "hand over a range of integers, which is kept as ranges, run, read every result back, add them up; "
                "from a warm start. Memory is "
                f"RssAnon of /proc/PID/status, read every {_SAMPLE_S * 1000:.0f} ms; the journal is what its files "
                "occupy, against the bytes of all input blocks and outcome blocks in it"
            ),
            rounds_max=1,
        )
    ]


def _run(setting: Setting, size: int) -> Sample:
    peaks: list[int] = []
    made = run_batch(
        setting.scratch,
        Job("benchmarks.jobs", "noop", "disk"),
        range(size),
        workers=setting.workers,
        warm=_WARM,
        reduce=lambda total, part: total + sum(part),
        watch=partial(_peak, peaks),
    )
    figures = {
        MEMORY: max(peaks) / 2**20,
        SHARE: made.disk_bytes / made.encoded_bytes,
        DISK: made.disk_bytes / size,
        "supervisor CPU, ns a job": made.supervisor_cpu_s / size * 1e9,
        "workers CPU, ns a job": made.workers_cpu_s / size * 1e9,
        "client CPU, ns a job": made.client_cpu_s / size * 1e9,
        "commits": made.commits,
    }
    return Sample(made.seconds, made.results, made.reduced, figures)


@contextmanager
def _peak(found: list[int], pid: int) -> Iterator[None]:
    """Put the largest private memory that the process had meanwhile into `found`."""
    found.append(private_bytes(pid))
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_SAMPLE_S):
            found[0] = max(found[0], private_bytes(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        found[0] = max(found[0], private_bytes(pid))
        is_over.set()
        thread.join()


def private_bytes(pid: int) -> int:
    """What the kernel counts as a process's own memory: neither files nor what is shared."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"/proc/{pid}/status has no RssAnon: this needs Linux 4.5 or newer")
