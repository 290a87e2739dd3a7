"""Integers as items: A:B or A:B:STEP, counted as Python's range counts.

The end is no part of the identity: a range may grow and its batch goes on. Start and step stand in the
checkpoint's digest, because they decide what each item given before has been.
"""

from collections.abc import Iterator
from typing import Any

from batchd.errors import InputChanged, UsageError
from batchd.settings import LEASE_JOBS_MAX
from batchd.sources.source import BLOCK_ITEMS, Block, Checkpoint, block_limits, new_hash


class RangeSource:
    """The integers of one range.

    >>> RangeSource.parse("10:0:-4").count()
    3
    """

    def __init__(self, numbers: range) -> None:
        self.skipped = 0
        self.skipped_places = ()
        self.spec: dict[str, Any] = {"kind": "range", "start": numbers.start, "step": numbers.step}
        self._numbers = numbers
        self._digest = _digest(numbers)

    @classmethod
    def parse(cls, text: str) -> "RangeSource":
        """The source that `--range` names."""
        parts = text.split(":")
        try:
            numbers = range(*map(int, parts)) if len(parts) in {2, 3} else None
        except ValueError:
            numbers = None
        if numbers is None:
            raise UsageError(f"--range {text} is not a range: write A:B or A:B:STEP in whole numbers, STEP not 0.")
        return cls(numbers)

    def count(self) -> int:
        """How many integers the range holds."""
        # Not len(): that refuses what does not fit into a machine word.
        numbers = self._numbers
        away = numbers.stop - numbers.start if numbers.step > 0 else numbers.start - numbers.stop
        return max(0, -(-away // abs(numbers.step)))

    def blocks(self, start: Checkpoint | None = None) -> Iterator[Block]:
        """The integers behind `start`."""
        given = 0 if start is None else self._verified(start)
        count = self.count()
        for limit in block_limits((*BLOCK_ITEMS, LEASE_JOBS_MAX)):
            if given >= count:
                return
            end = min(given + limit, count)
            yield Block(self._numbers[given:end], Checkpoint(items=end, offset=end, digest=self._digest))
            given = end

    def _verified(self, start: Checkpoint) -> int:
        numbers = self._numbers
        name = f"The range {numbers.start}:{numbers.stop}:{numbers.step}"
        if start.items and start.digest != self._digest:
            raise InputChanged(
                f"{name} starts or steps differently from the range this batch has read. "
                "Give the range as it was, or pass --new to start a new batch."
            )
        if start.items > self.count():
            raise InputChanged(
                f"{name} ends after {self.count()} items, but this batch has already read {start.items}. "
                "Give at least as many, or pass --new to start a new batch."
            )
        return start.items


def _digest(numbers: range) -> str:
    digest = new_hash()
    digest.update(f"{numbers.start}:{numbers.step}".encode())
    return digest.hexdigest()
