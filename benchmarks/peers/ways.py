"""The ways in which a number uses a peer. Each takes a peer that is up, and gives what came out.

A peer that would need too long is not waited for: jobs that do nothing tell its pace first, and warm it up.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from benchmarks.contest import Absent, Sample
from benchmarks.figures import KILL_AFTER, restart_figures, runs_in
from benchmarks.jobs import ended_in, noop
from benchmarks.peers.peer import Peer, Request, Restartable

_AHEAD: Final = 8
_PACE_JOBS: Final = 8
_PACE_S: Final = 1.0
_READY_S: Final = 30.0
_NAP_S: Final = 0.02
_GLANCE_S: Final = 0.01
"""Some peers take a timeout of 0 for none."""
_DOWN_S: Final = 1.0


def bulk(peer: Peer, request: Request) -> Sample:
    """One bulk call."""
    grain = peer.grain if request.gathers else 1
    _pace(peer, request, lambda jobs: list(peer.map(noop, jobs, grain)))
    since = time.perf_counter()
    count, checksum = request.fold(peer.map(request.task, request.items, grain))
    return Sample(time.perf_counter() - since, count, checksum)


def singles(peer: Peer, request: Request) -> Sample:
    """Every job handed over by itself, then every result taken."""
    _need_handles(peer)

    def run(task: Any, items: Sequence[Any]) -> list[Any]:
        handles = [peer.submit(task, item) for item in items]
        return [peer.take(handle) for handle in handles]

    _pace(peer, request, lambda jobs: run(noop, jobs))
    since = time.perf_counter()
    count, checksum = request.fold(run(request.task, request.items))
    return Sample(time.perf_counter() - since, count, checksum)


def window(peer: Peer, request: Request) -> Sample:
    """Large values: a few calls ahead of the results taken, where the peer has handles."""

    def results() -> Any:
        handles: list[Any] = []
        for item in request.items:
            handles.append(peer.submit(request.task, item))
            if len(handles) == _AHEAD:
                yield peer.take(handles.pop(0))
        for handle in handles:
            yield peer.take(handle)

    _pace(peer, request, lambda jobs: list(peer.map(noop, jobs, 1)))
    list(peer.map(request.task, request.items[:_AHEAD], 1))
    since = time.perf_counter()
    found = results() if peer.has_handles else peer.map(request.task, request.items, 1)
    count, checksum = request.fold(found)
    return Sample(time.perf_counter() - since, count, checksum)


def trips(peer: Peer, request: Request) -> Sample:
    """One job at a time, waited for."""
    _pace(peer, request, lambda jobs: [peer.call(noop, job) for job in jobs])
    took_s, results = [], []
    for item in request.items:
        since = time.perf_counter()
        results.append(peer.call(request.task, item))
        took_s.append(time.perf_counter() - since)
    count, checksum = request.fold(results)
    figures = {"a trip, ms": median(took_s) * 1e3, "99 % of trips within, ms": quantiles(took_s, n=100)[98] * 1e3}
    return Sample(median(took_s) * len(took_s), count, checksum, figures)


def deaths(peer: Peer, request: Request) -> Sample:
    """Jobs some of which kill their worker: what came back, and what is absent if that is not everything."""
    _pace(peer, request, lambda jobs: list(peer.map(noop, jobs, 1)))
    since = time.perf_counter()
    results: list[Any] = []
    errors: list[BaseException] = []
    silent = 0
    handles: list[Any] = []
    try:
        if peer.has_handles:
            handles.extend(peer.submit(request.task, item) for item in request.items)  # Keeps those it had.
        else:
            results.extend(peer.map(request.task, request.items, 1))
    except Exception as error:  # The pool broke while it was being filled: whatever it did not take failed.
        errors.append(error)
    for handle in handles:
        try:
            results.append(peer.take(handle, max(_GLANCE_S, since + request.cap_s - time.perf_counter())))
        except TimeoutError:
            silent += 1
        except Exception as error:
            errors.append(error)
    seconds = time.perf_counter() - since
    missing = len(request.items) - len(results) - silent
    if missing or silent:
        reason = f", {type(errors[-1]).__name__}" if errors else ""
        raise Absent(
            f"not all came back: {len(results):,} results, {missing:,} errors{reason}, {silent:,} without an answer, "
            f"{seconds:.1f} s"
        )
    count, checksum = request.fold(results)
    return Sample(seconds, count, checksum)


def restart(peer: Peer, request: Request) -> Sample:
    """Master and workers killed after a quarter of the jobs, and started again a second later."""
    if not isinstance(peer, Restartable):
        raise Absent("not measured: it has no queue that outlives its master")
    _pace(peer, request, lambda jobs: list(peer.map(noop, jobs, 1)))
    log = Path(request.items[0][2])
    ids = {item[0] for item in request.items}
    log.touch()
    since = time.monotonic()
    for item in request.items:
        peer.submit(request.task, item)
    _until(lambda: ended_in(log) >= KILL_AFTER * len(ids), since + request.cap_s)
    peer.kill()
    killed_at_s = time.monotonic()
    time.sleep(_DOWN_S)
    peer.begin()
    _until(
        lambda: ended_in(log) >= len(ids) and runs_in(log.read_text("ascii")).ended.keys() >= ids,
        killed_at_s + request.cap_s,
    )
    runs = runs_in(log.read_text("ascii"))
    figures = restart_figures(runs, killed_at_s, request.workers)
    if missing := ids - runs.ended.keys():
        quiet_s = time.monotonic() - max((max(times) for times in runs.ended.values()), default=since)
        raise Absent(
            f"not all done: {len(ids) - len(missing):,} of {len(ids):,} done {request.cap_s:.0f} s after the kill, "
            f"{len(missing)} missing, none done in the last {quiet_s:.0f} s"
        )
    return Sample(max(max(times) for times in runs.ended.values()) - since, len(runs.ended), sum(ids), figures)


def _until(condition: Callable[[], bool], deadline_s: float) -> None:
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(_NAP_S)


def _need_handles(peer: Peer) -> None:
    if not peer.has_handles:
        raise Absent("it has no handles of single jobs")


def nap(_: int) -> int:
    """Sleep for a moment; return which process did."""
    time.sleep(_NAP_S)
    return os.getpid()


def _pace(peer: Peer, request: Request, run: Callable[[range], list[Any]]) -> None:
    """Wait for all workers, then see with ever more jobs how fast it is. Raises Absent when it is too slow."""
    deadline_s = time.monotonic() + _READY_S
    seen: set[int] = set()
    while len(seen) < request.workers and time.monotonic() < deadline_s:
        seen |= set(peer.map(nap, range(2 * request.workers), 1))
    run(range(_PACE_JOBS))
    jobs, took_s = 1, 0.0
    while took_s < _PACE_S and jobs < len(request.items):
        jobs = min(jobs * _PACE_JOBS, len(request.items))
        since = time.perf_counter()
        run(range(jobs))
        took_s = time.perf_counter() - since
    needed_s = took_s / jobs * len(request.items)
    if needed_s > request.cap_s:
        raise Absent(
            f"not run: would take {needed_s:,.0f} s at {jobs / took_s:,.0f} jobs/s; {request.cap_s:.0f} s is the cap"
        )
