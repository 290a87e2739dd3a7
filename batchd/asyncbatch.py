"""`AsyncBatch`: what `Batch` does, for asyncio applications: whatever may wait does so in a thread.

A thread never waits for long in one go, so that those nobody waits for any more are soon free again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from batchd.batch import Batch
from batchd.client.costing import CostOf
from batchd.edge.failures import FailureGroup
from batchd.mapping import Key
from batchd.standing import NOTHING_YET, Standing

T = TypeVar("T")

_WAIT_S: Final = 0.5
_TAKEN_MAX: Final = 200
"""Results that one turn of the event loop takes over."""


async def in_thread(hands: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    """Return what a call returns that may wait.

    >>> with ThreadPoolExecutor(1) as hands:
    ...     asyncio.run(in_thread(hands, lambda: 2 + 2))
    4
    """
    return await asyncio.get_running_loop().run_in_executor(hands, call)


class AsyncBatch:
    """A `Batch` for asyncio: the same methods, to be awaited. Made by `AsyncClient.submit_batch` and `.batch`.

    >>> from batchd import AsyncClient
    >>> async def application():
    ...     async with AsyncClient(folder, workers=1) as client:
    ...         batch = await client.submit_batch(abs, [-1, -2])
    ...         standing = await batch.wait()
    ...         return standing.succeeded, [result async for result in batch.results()]
    >>> asyncio.run(application())
    (2, [1, 2])
    """

    def __init__(self, batch: Batch, hands: ThreadPoolExecutor) -> None:
        self.id = batch.id
        self._batch, self._hands = batch, hands

    def __repr__(self) -> str:
        return f"<AsyncBatch {self.id}>"

    @property
    def added(self) -> int:
        """Jobs that were added through this object.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         return (await client.submit_batch(abs, [-1, -2])).added
        >>> asyncio.run(application())
        2
        """
        return self._batch.added

    @property
    def skipped(self) -> int:
        """Items that were given and not added, because the batch has their jobs already.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         for _ in range(2):
        ...             batch = await client.submit_batch(abs, [-1, -2], name="given twice")
        ...         return batch.added, batch.skipped
        >>> asyncio.run(application())
        (0, 2)
        """
        return self._batch.skipped

    @property
    def replaced(self) -> int:
        """Of the jobs that were added, those that took the place of one that had not succeeded: its item changed.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         for text in ("many", "7"):  # In the second run the row was corrected.
        ...             rows = [{"id": 1, "text": text}]
        ...             batch = await client.submit_batch(lambda row: int(row["text"]), rows, name="rows", key="id")
        ...             await batch.wait()
        ...         return batch.replaced, (await batch.progress()).failed
        >>> asyncio.run(application())
        (1, 0)
        """
        return self._batch.replaced

    async def name(self) -> str:
        """Return what the batch was called: it is read from the journal.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         return await (await client.submit_batch(abs, [-1])).name()
        >>> asyncio.run(application())
        'abs'
        """
        return await in_thread(self._hands, lambda: self._batch.name)

    async def add(self, items: Iterable[Any], *, key: Key | None = None, cost: CostOf | None = None) -> int:
        """`Batch.add`: return how many were added, when they are on disk. `items` are read in a thread.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         batch = await client.submit_batch(abs, seal=False)
        ...         return await batch.add([-1, -2])
        >>> asyncio.run(application())
        2
        """
        return await in_thread(self._hands, partial(self._batch.add, items, key=key, cost=cost))

    async def seal(self) -> None:
        """`Batch.seal`: say that no more jobs will come.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         batch = await client.submit_batch(abs, [-1], seal=False)
        ...         await batch.seal()
        ...         return (await batch.wait()).state
        >>> asyncio.run(application())
        'finished'
        """
        await in_thread(self._hands, self._batch.seal)

    async def progress(self) -> Standing:
        """`Batch.progress`: return how the batch stands now.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         return (await (await client.submit_batch(abs, range(-100, 0))).progress()).size
        >>> asyncio.run(application())
        100
        """
        return await in_thread(self._hands, self._batch.progress)

    async def wait(self, timeout: float | None = None) -> Standing:  # noqa: ASYNC109  (as Batch has it)
        """`Batch.wait`: return how the batch stands when all is done. To stop waiting does not stop the batch.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         batch = await client.submit_batch(abs, range(-100, 0))
        ...         return (await batch.wait(timeout=60)).succeeded
        >>> asyncio.run(application())
        100
        """
        async with asyncio.timeout(timeout):
            while True:
                with suppress(TimeoutError):
                    return await in_thread(self._hands, partial(self._batch.wait, _WAIT_S))

    async def results(self, *, ordered: bool = True, on_error: str = "raise") -> AsyncIterator[Any]:
        """`Batch.results`: give the results as they come. Raises JobError, BatchdError.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         batch = await client.submit_batch(int, ["1", "many", "3"], keep_going=True)
        ...         return [result async for result in batch.results(on_error="skip")]
        >>> asyncio.run(application())
        [1, 3]
        """
        steps = await in_thread(
            self._hands, partial(self._batch.steps, ordered=ordered, on_error=on_error, patience_s=_WAIT_S)
        )
        is_over = False
        while not is_over:
            found, error, is_over = await in_thread(self._hands, partial(_some, steps))
            for value in found:
                yield value
            del found
            if error is not None:
                raise error

    async def failures(self) -> list[FailureGroup]:
        """`Batch.failures`: return what failed, jobs that failed in the same way together.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         batch = await client.submit_batch(int, ["1", "many"], keep_going=True)
        ...         await batch.wait()
        ...         return [(group.type, group.count) for group in await batch.failures()]
        >>> asyncio.run(application())
        [('ValueError', 1)]
        """
        return await in_thread(self._hands, self._batch.failures)

    async def retry(self, *, failed: bool = True, quarantined: bool = True, cancelled: bool = False) -> int:
        """`Batch.retry`: run jobs again that did not succeed; return how many.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         batch = await client.submit_batch(int, ["1", "many"], keep_going=True)
        ...         await batch.wait()
        ...         return await batch.retry(), (await batch.wait()).failed
        >>> asyncio.run(application())
        (1, 1)
        """
        return await in_thread(
            self._hands, partial(self._batch.retry, failed=failed, quarantined=quarantined, cancelled=cancelled)
        )

    async def cancel(self, reason: str = "cancelled") -> None:
        """`Batch.cancel`: give the batch up.

        >>> import time
        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         batch = await client.submit_batch(time.sleep, [60] * 10)
        ...         await batch.cancel("there is a better one")
        ...         return (await batch.wait()).reason
        >>> asyncio.run(application())
        'there is a better one'
        """
        await in_thread(self._hands, partial(self._batch.cancel, reason))

    async def close(self, *, at_once: bool = False) -> None:
        """`Batch.close`: let go of the batch, which stays in the journal.

        >>> from batchd import AsyncClient
        >>> async def application():
        ...     async with AsyncClient(folder, workers=1) as client:
        ...         batch = await client.submit_batch(abs, range(-100, 0))
        ...         await batch.close()
        ...         return (await batch.wait()).succeeded  # Takes it up again.
        >>> asyncio.run(application())
        100
        """
        await in_thread(self._hands, partial(self._batch.close, at_once=at_once))


def _some(steps: Iterator[Any]) -> tuple[list[Any], Exception | None, bool]:
    """In a thread: take results as far as they are there; return (them, what was raised behind them, was it all)."""
    found: list[Any] = []
    try:
        for value in steps:
            if value is NOTHING_YET:
                return found, None, False
            found.append(value)
            if len(found) == _TAKEN_MAX:
                return found, None, False
    except Exception as error:
        return found, error, True
    return found, None, True
