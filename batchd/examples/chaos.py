"""The task of `batchd chaos`: jobs of many lengths and sizes whose answers are known, and which write down each run.

Nothing here kills or checks anything. The one idea: a job's index alone says how long it takes, what it returns and
whether it raises, so that anybody can say afterwards what must have come of it; and what really ran stands in a
file that only grows (O_APPEND), which no death can take back.
"""

import os
import time
from hashlib import blake2b

import batchd

_LONG_BYTES = 300_000
"""More than a pipe holds: a worker can die in the middle of sending such a result."""


class Refused(Exception):
    """What some jobs raise on purpose."""


def run(line: str, *, ledger: str) -> tuple[str, int]:
    """The answer of job `line` and the number of this attempt; every run is written down in the file `ledger`."""
    index, job = int(line), batchd.current_job()
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, f"begin {index} {job.attempt}\n".encode())
        time.sleep(seconds_of(index))
        os.write(fd, f"{'raise' if is_refused(index) else 'end'} {index} {job.attempt}\n".encode())
    finally:
        os.close(fd)
    if job.index != index:
        raise LookupError(f"job {job.index} was given the input of job {index}")
    return answer_of(index), job.attempt


def answer_of(index: int) -> str:
    """What a job returns. Raises what the job raises.

    >>> answer_of(4) == answer_of(4) != answer_of(5)
    True
    >>> answer_of(60)
    Traceback (most recent call last):
    batchd.examples.chaos.Refused: 60
    """
    if is_refused(index):
        raise Refused(str(index))
    digest = _digest(index).hex()
    return digest * (_LONG_BYTES // len(digest)) if index % 211 == 7 else digest


def seconds_of(index: int) -> float:
    """How long a job takes: half of them nothing, most others some milliseconds, a few a tenth of a second.

    >>> max(map(seconds_of, range(1000))), sum(map(seconds_of, range(1000))) < 5.0
    (0.1, True)
    """
    dice = _digest(index)
    if dice[0] < 128:
        return 0.0
    if dice[0] < 230:
        return 0.001 + dice[1] * 1e-5
    return 0.1 if dice[0] > 252 else 0.01 + dice[1] * 1e-4


def is_refused(index: int) -> bool:
    """Whether the job raises, at every attempt."""
    return index % 97 == 60


def _digest(index: int) -> bytes:
    return blake2b(b"%d" % index, digest_size=16).digest()
