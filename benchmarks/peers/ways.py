"""The ways in which a number uses a peer. Each takes a peer that is up, and gives what came out.

How many jobs a peer can do in a given time is found out first, which warms it up. One that would need too long is
not waited for.
"""

import os
import time
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.contest import Absent, Sample, Work
from benchmarks.figures import KILL_AFTER, restart_figures, runs_in, trip_figures
from benchmarks.jobs import ended_in, noop
from benchmarks.peers.peer import Peer, Request, Restartable, Task

_AHEAD: Final = 8
_PACE_JOBS: Final = 8
"""Ever so many times as many jobs, until they take long enough to tell its pace."""
_PACE_S: Final = 0.2
_JOBS_MIN: Final = 5
_READY_S: Final = 30.0
_NAP_S: Final = 0.02
_GLANCE_S: Final = 0.01
"""Some peers take a timeout of 0 for none."""
_DOWN_S: Final = 1.0

Run = Callable[[Task, Sequence[Any]], Any]
"""Runs a task on items in the way that is measured."""


def refuse(way: str, peer: Peer) -> None:
    """Raise Absent, before it is started, when a peer has not what a way needs."""
    if way == singles.__name__ and not peer.has_handles:
        raise Absent("no handles: jobs cannot be submitted one by one")
    if way == restart.__name__ and not isinstance(peer, Restartable):
        raise Absent("no restart: it has no queue that outlives its master")


def bulk(peer: Peer, request: Request) -> Sample:
    """One bulk call."""
    grain = peer.grain if request.gathers else 1

    def run(task: Task, items: Sequence[Any]) -> tuple[int, Any]:
        return request.fold(peer.map(task, items, grain))

    return _timed(run, request, _fitted(peer, request, run))


def singles(peer: Peer, request: Request) -> Sample:
    """Every job handed over by itself, then every result taken."""

    def run(task: Task, items: Sequence[Any]) -> tuple[int, Any]:
        handles = [peer.submit(task, item) for item in items]
        return request.fold([peer.take(handle) for handle in handles])

    return _timed(run, request, _fitted(peer, request, run))


def window(peer: Peer, request: Request) -> Sample:
    """Large values: a few calls ahead of the results taken, where the peer has handles."""

    def results(task: Task, items: Sequence[Any]) -> Any:
        handles: list[Any] = []
        for item in items:
            handles.append(peer.submit(task, item))
            if len(handles) == _AHEAD:
                yield peer.take(handles.pop(0))
        for handle in handles:
            yield peer.take(handle)

    def run(task: Task, items: Sequence[Any]) -> tuple[int, Any]:
        return request.fold(results(task, items) if peer.has_handles else peer.map(task, items, 1))

    return _timed(run, request, _fitted(peer, request, run))


def trips(peer: Peer, request: Request) -> Sample:
    """One job at a time, waited for."""

    def run(task: Task, items: Sequence[Any]) -> tuple[list[Any], list[float]]:
        took_s, results = [], []
        for item in items:
            since = time.perf_counter()
            results.append(peer.call(task, item))
            took_s.append(time.perf_counter() - since)
        return results, took_s

    items = _fitted(peer, request, run)
    results, took_s = run(request.task, items)
    return Sample(median(took_s) * len(took_s), *request.fold(results), trip_figures(took_s), Work(len(items), None))


def _timed(run: Run, request: Request, items: Sequence[Any]) -> Sample:
    since = time.perf_counter()
    count, checksum = run(request.task, items)
    return Sample(time.perf_counter() - since, count, checksum, work=Work(len(items), None))


def deaths(peer: Peer, request: Request) -> Sample:
    """Jobs some of which kill their worker: what came back, and what is absent if that is not everything."""
    _not_too_slow(peer, request)
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
            f"lost {missing + silent:,} of {len(request.items):,} results: {missing:,} errors{reason}, {silent:,} "
            f"without an answer, {seconds:.1f} s"
        )
    count, checksum = request.fold(results)
    return Sample(seconds, count, checksum)


def restart(peer: Peer, request: Request) -> Sample:
    """Master and workers killed after a quarter of the jobs, and started again a second later."""
    assert isinstance(peer, Restartable)
    _not_too_slow(peer, request)
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
            f"{len(missing):,} of {len(ids):,} jobs not done {request.cap_s:.0f} s after the kill: none ended in the "
            f"last {quiet_s:.0f} s"
        )
    return Sample(max(max(times) for times in runs.ended.values()) - since, len(runs.ended), sum(ids), figures)


def _until(condition: Callable[[], bool], deadline_s: float) -> None:
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(_NAP_S)


def nap(_: int) -> int:
    """Sleep for a moment; return which process did."""
    time.sleep(_NAP_S)
    return os.getpid()


def _await_workers(peer: Peer, request: Request) -> None:
    deadline_s = time.monotonic() + _READY_S
    seen: set[int] = set()
    while len(seen) < request.workers and time.monotonic() < deadline_s:
        seen |= set(peer.map(nap, range(2 * request.workers), 1))


def _fitted(peer: Peer, request: Request, run: Run) -> Sequence[Any]:
    """As many of the items as the budget allows. Raises Absent when these take longer than the cap.

    How fast it is shows with ever more of them, once all workers are up.
    """
    _await_workers(peer, request)
    run(request.task, request.items[: 2 * request.workers])  # Imports what it needs.
    items, jobs, took_s = request.items, 1, 0.0
    while took_s < _PACE_S and jobs < len(items):
        jobs = min(jobs * _PACE_JOBS, len(items))
        since = time.perf_counter()
        run(request.task, items[:jobs])
        took_s = time.perf_counter() - since
    if (fitting := request.budget_s / took_s * jobs) < len(items):
        items = items[: max(_JOBS_MIN, _even(int(fitting), peer.grain * request.workers if request.gathers else 1))]
    if (needed_s := took_s / jobs * len(items)) > request.cap_s:
        raise Absent(f"not within {request.cap_s:.0f} s: would take {needed_s:,.0f} s at {jobs / took_s:,.0f} jobs/s")
    return items


def _not_too_slow(peer: Peer, request: Request) -> None:
    """Warm up. Raises Absent when even jobs that do nothing would take too long."""
    idle = request._replace(task=noop, items=range(len(request.items)), budget_s=inf)
    _fitted(peer, idle, lambda task, items: list(peer.map(task, items, 1)))


def _even(jobs: int, together: int) -> int:
    """As many, but so that every worker gets as many as the others, where they travel together."""
    return jobs - jobs % together if jobs > together else jobs
