"""What N4's even jobs cost besides themselves: CPU time outside the calls, by process and by what it was for.

Each process notes the CPU time of a few of its functions, none of which calls another, while real jobs run. What is
left of a process's CPU time is sleeping, waking up, and the loop around.
"""

from collections.abc import Sequence
from typing import Any, Final

from benchmarks.batch import Job, concat, run_batch
from benchmarks.contest import Setting
from benchmarks.figures import Ran
from benchmarks.jobs import loops_per_ms
from benchmarks.notes import Note, Places, noting, read

_MS: Final = 10.0
_WARM_JOBS: Final = 10
_REST: Final = "sleeping, waking up, the loop around"
_PLACES: Final[Places] = {
    "supervisor": (
        ("batchd.edge.pool:Pool._read_reports", "", "reading reports"),
        ("batchd.core.scheduler:Scheduler.step", "", "turns of the scheduler"),
        ("batchd.edge.journal:BatchJournal.commit", "", "commits (LMDB, the kernel's writes)"),
        ("batchd.edge.pool:Pool.perform", "", "orders to workers"),
        ("batchd.supervisor.clients:Clients._tell", "", "news to the client"),
        ("batchd.supervisor.loop:Supervisor._sample", "", "reading gauges"),
    ),
    "worker": (
        ("batchd.worker.outcome:Outcomes.flush", "", "encoding and sending outcomes"),
        ("batchd.worker.outcome:Outcomes.end", "", "ends of leases"),
        ("batchd.worker.main:Worker._jobs_from", "", "inputs"),
    ),
}


def dissect(setting: Setting) -> dict[str, Any]:
    """Run jobs of 10 ms and return what went elsewhere, in JSON's types."""
    loops = int(_MS * loops_per_ms())
    jobs = setting.jobs(400, 100)
    with noting(setting.scratch, _PLACES) as folder:
        made = run_batch(
            setting.scratch,
            Job("benchmarks.jobs", "spin", "disk"),
            [loops] * jobs,
            workers=setting.workers,
            warm=[loops] * _WARM_JOBS,
        )
    ran = [Ran(*value) for value in concat(made.values)]
    jobs_s = sum(job.cpu_s for job in ran)
    notes = within(read(folder), min(job.started_s for job in ran), max(job.stopped_s for job in ran))
    used = {
        "supervisor": made.supervisor_cpu_s,
        "worker": made.workers_cpu_s - jobs_s,
        "client": made.client_cpu_s,
    }
    whole_s = made.supervisor_cpu_s + made.workers_cpu_s
    outside_s = whole_s - jobs_s
    return {
        "title": f"Where the time goes: N4, {jobs} jobs of {_MS:.0f} ms of CPU on {setting.workers} workers",
        "explained": [
            f"{made.seconds:.2f} s by the clock, {jobs_s:.2f} s of CPU in jobs, {1000 * outside_s:.0f} ms outside",
            f"them in workers and supervisor ({100 * outside_s / whole_s:.1f} % of all their CPU time),",
            f"{made.commits} commits. Notes add a few microseconds each.",
        ],
        "columns": ["process", "what for", "times a second", "us each", "of all CPU time"],
        "rows": [row for role, cpu_s in used.items() for row in _rows(role, cpu_s, notes, made.seconds, whole_s)],
    }


def within(notes: Sequence[Note], since_s: float, until_s: float) -> list[Note]:
    """The notes made between two times of the monotonic clock."""
    return [note for note in notes if since_s <= note.at_ns / 1e9 <= until_s]


def _rows(role: str, cpu_s: float, notes: Sequence[Note], seconds: float, whole_s: float) -> list[list[str]]:
    rows, left_s = [], cpu_s
    for _, _, what in _PLACES.get(role, ()):
        found = [note.cpu_ns / 1e9 for note in notes if note.what == what and note.process.startswith(role)]
        left_s -= sum(found)
        rows.append([role, what, *_cells(len(found), sum(found), seconds, whole_s)])
    if rows:
        rows.append([role, _REST, "", "", f"{100 * left_s / whole_s:.2f} %"])
    return [*rows, [role, "everything outside jobs", "", "", f"{100 * cpu_s / whole_s:.2f} %"]]


def _cells(times: int, cpu_s: float, seconds: float, whole_s: float) -> list[str]:
    each_us = 1e6 * cpu_s / times if times else 0.0
    return [f"{times / seconds:.0f}", f"{each_us:.0f}", f"{100 * cpu_s / whole_s:.2f} %"]
