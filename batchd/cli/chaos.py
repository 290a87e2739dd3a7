"""`batchd chaos`: shows on this very machine that nothing is lost, whatever is killed.

Only arguments and words live here; testing/chaos.py kills, testing/audit.py judges. The one idea: whoever sees a
violation can hand on one line, the command that repeats it, and finds everything that is left of it in one folder.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any, Final

from batchd.edge.gauges import cpus_usable
from batchd.errors import BatchdError, UsageError
from batchd.settings import PROGRESS_PLAIN_S, WORKERS_MAX
from batchd.testing.audit import CHECKS
from batchd.testing.chaos import JOBS_PER_WORKER_S, Chaos, Report, Target, remove
from batchd.units import format_duration, parse_duration

_WORKERS_MIN: Final = 4
_WORKERS_AUTO_MAX: Final = 16
_DRAW_S: Final = 0.1


def chaos(args: argparse.Namespace) -> int:
    """`batchd chaos`: run a batch whose answer is known, kill its processes at random, and check every outcome."""
    report = asked(args)
    folder = Path(tempfile.mkdtemp(prefix="batchd-chaos-"))
    line = Line(is_quiet=args.json)
    is_kept = True
    try:
        Chaos(folder, report, line.show).run()
        is_kept = bool(report.findings)
    except (KeyboardInterrupt, BatchdError):
        is_kept = False
        raise
    finally:
        line.clear()
        if not is_kept:
            remove(folder)
    kept = str(folder) if is_kept else ""
    if args.json:
        print(json.dumps(fields(report, kept)))
    else:
        print("\n".join(table(report, kept)))
    return 1 if report.findings else 0


def asked(args: argparse.Namespace) -> Report:
    """Return an empty report of what the arguments ask for. Raises UsageError."""
    duration_s = parse_duration(args.duration)
    auto = min(_WORKERS_AUTO_MAX, max(_WORKERS_MIN, int(cpus_usable())))
    workers: int = auto if args.workers is None else args.workers
    jobs = args.jobs if args.jobs is not None else int(JOBS_PER_WORKER_S * workers * duration_s)
    if duration_s <= 0 or jobs < 1 or not 1 <= workers <= WORKERS_MAX:
        raise UsageError(f"--duration and --jobs must be more than 0, --workers from 1 to {WORKERS_MAX}")
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(3), "big")
    return Report(seed=seed, duration_s=duration_s, jobs=jobs, workers=workers)


def again(report: Report) -> str:
    """Return the command that makes the same kills at the same moments."""
    return shlex.join(
        [
            *("batchd", "chaos", "--seed", str(report.seed), "--duration", f"{report.duration_s:g}s"),
            *("--jobs", str(report.jobs), "--workers", str(report.workers)),
        ]
    )


def fields(report: Report, kept: str) -> dict[str, Any]:
    """Return what `table` says, for programs."""
    return {
        "batchd": 1,
        "ok": not report.findings,
        "seed": report.seed,
        "duration_s": report.duration_s,
        "elapsed_s": round(report.elapsed_s, 3),
        "jobs": report.jobs,
        "workers": report.workers,
        "kills": {target.value: report.kills[target] for target in Target},
        "pauses": report.pauses,
        "executions": report.executions,
        "retries": report.retries,
        "replays": report.replays,
        **{check: report.findings.counts[check] for check in CHECKS},
        "violations": report.findings.examples,
        "kept": kept or None,
        "again": again(report),
    }


def table(report: Report, kept: str) -> list[str]:
    """Return the lines at the end."""
    rows = [
        ("seed", f"{report.seed}"),
        ("jobs", f"{report.jobs:,} on {report.workers} workers in {format_duration(report.elapsed_s)}"),
        *((f"{target.value} killed", f"{report.kills[target]:,}") for target in Target),
        ("stopped", f"{report.pauses:,} processes for a while"),
        ("executions", f"{report.executions:,}, {report.retries:,} of them retries of jobs that raise on purpose"),
        ("replays", f"{report.replays:,} executions cut off or not yet recorded, and begun again"),
        *((check.replace("_", " "), f"{report.findings.counts[check]:,}   {CHECKS[check]}") for check in CHECKS),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    lines += [f"  {example}" for example in report.findings.examples]
    if report.findings:
        lines += ["VIOLATED: see above", f"kept:  {kept} (journal, ledger of all runs, run.log)"]
    else:
        lines.append("ok: every job has the one outcome that a plain loop gives")
    return [*lines, f"again: {again(report)}"]


class Line:
    """One live line on a terminal; elsewhere a line now and then, or nothing."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._is_live = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._began_at = monotonic()
        self._due = self._began_at + (0.0 if self._is_live else PROGRESS_PLAIN_S)

    def show(self, report: Report) -> None:
        """Show how it stands; may be called as often as is handy."""
        now = monotonic()
        if self._is_quiet or now < self._due:
            return
        self._due = now + (_DRAW_S if self._is_live else PROGRESS_PLAIN_S)
        words = progress(report, now - self._began_at)
        sys.stderr.write(f"\r{words}\x1b[K" if self._is_live else f"{words}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the live line away."""
        if self._is_live and not self._is_quiet:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def progress(report: Report, elapsed_s: float) -> str:
    """Return the words of the live line."""
    kills = ", ".join(f"{report.kills[target]} {target.value}" for target in Target if report.kills[target])
    over = "" if elapsed_s < report.duration_s else " · no more kills, finishing"
    return (
        f"chaos {report.seed} · {report.done:,} of {report.jobs:,} done · killed {kills or 'nobody yet'} · "
        f"{format_duration(elapsed_s)} of {format_duration(report.duration_s)}{over}"
    )
