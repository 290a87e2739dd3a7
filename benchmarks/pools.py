"""The standard library as contenders: ProcessPoolExecutor, multiprocessing.Pool, and bare processes.

A pool is made and warmed (ten jobs) before the clock starts, and taken down after it stopped.
"""

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.contest import Sample

Fold = Callable[[Iterable[Any]], tuple[int, Any]]
"""Takes all results, gives how many there were and what they add up to."""


def run_executor(
    task: Callable[[Any], Any], items: Iterable[Any], fold: Fold, *, workers: int, warm: Sequence[Any], chunksize: int
) -> Sample:
    """ProcessPoolExecutor.map."""
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(task, warm))
        since = time.perf_counter()
        count, checksum = fold(pool.map(task, items, chunksize=chunksize))
        return Sample(time.perf_counter() - since, count, checksum)


def run_pool(
    task: Callable[[Any], Any], items: Iterable[Any], fold: Fold, *, workers: int, warm: Sequence[Any], chunksize: int
) -> Sample:
    """multiprocessing.Pool.map."""
    with multiprocessing.Pool(workers) as pool:
        pool.map(task, warm, chunksize=1)
        since = time.perf_counter()
        count, checksum = fold(pool.map(task, items, chunksize=chunksize))
        return Sample(time.perf_counter() - since, count, checksum)


def run_bare(task: Callable[[Any], Any], items: Sequence[Any], fold: Fold, *, workers: int) -> Sample:
    """Forked processes that each run every n-th job, and nothing else: a static split with no traffic."""
    pipes = [(*os.pipe(), *os.pipe()) for _ in range(workers)]
    children = []
    for number, (go, _, _, done) in enumerate(pipes):
        child = os.fork()
        if child == 0:
            _run_share(task, items[number::workers], go, done)
        children.append(child)
    time.sleep(0.05)  # Until they wait for the word.
    since = time.perf_counter()
    for _, go, _, _ in pipes:
        os.write(go, b"!")
    for _, _, _, done in pipes:
        os.close(done)
    shares = [pickle.loads(_read_all(results)) for _, _, results, _ in pipes]
    count, checksum = fold(value for share in shares for value in share)
    seconds = time.perf_counter() - since
    for fds in pipes:
        for fd in fds[:3]:
            os.close(fd)
    for child in children:
        os.waitpid(child, 0)
    return Sample(seconds, count, checksum)


def _run_share(task: Callable[[Any], Any], items: Sequence[Any], go: int, done: int) -> None:
    code = 1
    try:
        os.read(go, 1)
        data = memoryview(pickle.dumps([task(item) for item in items], 5))
        while data:
            data = data[os.write(done, data) :]
        code = 0
    finally:
        os._exit(code)


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)
