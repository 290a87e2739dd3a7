"""The intake: items in, jobs out. What a batch was given before is not submitted again.

Items are read in the caller's thread and encoded here. Jobs are known by their place in the input, and then what was
given before is held against the journal, or by a key.
"""

import marshal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import islice
from operator import itemgetter
from pickle import PicklingError
from time import perf_counter
from typing import Any, Final, NoReturn, Protocol, cast

from batchd.client.codedigest import value_digest
from batchd.client.costing import Costing, shown
from batchd.core.costs import Cost
from batchd.core.job import JobState
from batchd.core.ranges import Range, RangeSet
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.errors import InputChanged, InputError
from batchd.formats.reference import Keep, Payload, Reference, keep_nothing, whole
from batchd.formats.segment import input_blocks, nbytes_of, pickled_blocks
from batchd.formats.tables import KEY_DIGEST_BYTES
from batchd.formats.values import are_plain, dump, dump_kept, load, runs_code

Items = Iterator[Any] | range
"""What is still to be read. A range stays one: it is cut without being counted out."""
PULL_S: Final = 0.002
"""Reading input goes on for about this long before results are looked at again."""
PULL_MAX: Final = 8_192


class Door(Protocol):
    """Where jobs go: a session, or what stands for one in another thread."""

    @property
    def progress(self) -> dict[str, Any]:
        """What the supervisor last said of the batch."""

    def submit(
        self,
        body: bytes,
        checkpoint: str = "",
        keys: bytes = b"",
        then: Callable[[dict[str, Any]], None] | None = None,
        costs: Sequence[Cost] = (),
    ) -> None:
        """Add the jobs of these input segments; `then` is called with the reply when they are on disk."""

    def unseal(self) -> None:
        """Let more input come behind what was the end."""


class PlainInput:
    """Input whose jobs are known by their place. What the batch was given before is held against its journal."""

    def __init__(self, door: Door) -> None:
        self.items: Items = iter(())
        self.is_over = False
        self.skipped = 0
        """Items that the batch had been given before."""
        self.bytes_per_item = 0
        """Of the last items that were submitted."""
        self.door = door
        self.costing: Costing | None = None
        self._size = 0

    def begin(self, journal: BatchJournal, *, is_known: bool = False) -> None:
        """Take in what the batch holds. It is read again, and refused if it is not the same, unless `is_known`."""
        self._known = journal.facts.size
        self._given = _Given(journal)
        self._keep = journal.keep
        if is_known:
            self._size = self._known

    def pull(self, count: int) -> list[Range]:
        """Read up to `count` items, or as many as come soon, and submit them; return their jobs."""
        start = self._size
        is_known = start < self._known
        count = min(count, self._known - start) if is_known else count
        items, self.is_over, self.items = read_soon(self.items, count)
        costs: list[float] = []
        if self.costing and not is_known:
            costs, error = self.costing.read_until_error(items, start)
            if error is not None:  # Those before are jobs all the same.
                items, self.is_over, self.items = items[: len(costs)], False, _raising(InputRaised(error))
        self._size += len(items)
        if is_known:
            self._given.compare(start, items)
            self.skipped += len(items)
        if self.is_over and self._size < self._known:
            raise InputChanged(
                f"the input ends after {self._size:,} items, and the batch was given {self._known:,}: "
                "use another name for other input, or key="
            )
        if items and not is_known:
            self._submit(items, costs)
        return [(start, self._size)] if items else []

    def _submit(self, items: Sequence[Any], costs: list[float]) -> None:
        if self.door.progress["is_sealed"]:
            self.door.unseal()
        pickles = (pickled(item, self._keep) for item in items)
        made = input_blocks(items, self._keep) if are_plain(items) else pickled_blocks(pickles)
        blocks = [block for _, block in made]
        self.bytes_per_item = sum(map(nbytes_of, blocks)) // len(items)
        first = self._size - len(items)
        self.door.submit(b"".join(blocks), costs=self.costing.costly(first, costs) if self.costing else ())


class _Given:
    """The inputs that a batch has, for holding others against them."""

    def __init__(self, journal: BatchJournal) -> None:
        self._outcomes = Outcomes(journal)
        self._first = self._stop = 0
        self._inputs: Sequence[Any] = ()
        """Of jobs [first, stop), one record: values, or pickles."""
        self._is_pickled = False

    def compare(self, start: int, items: Sequence[Any]) -> None:
        """Raise InputChanged unless these are the inputs of the jobs from `start` on."""
        at = start
        while at < start + len(items):
            if not self._first <= at < self._stop:
                self._read(at)
            known = self._inputs[at - self._first :]
            mine = items[at - start : at - start + len(known)]
            is_same = _is_pickle_of if self._is_pickled else _is_plainly
            if self._is_pickled or not _are_plainly(known[: len(mine)], mine):
                for index, (one, other) in enumerate(zip(known, mine, strict=False), at):
                    if not is_same(one, other):
                        raise InputChanged(
                            f"item {index:,} of the input is not what the batch was given before: use another name "
                            "for other input, or key= to tell items by something that stays"
                        )
            at += len(mine)

    def _read(self, index: int) -> None:
        self._first, block = self._outcomes.input_block(index)
        self._stop = self._first + block.count
        self._is_pickled = block.is_separate
        self._inputs = block.separate() if self._is_pickled else block.values()


def _are_plainly(known: Sequence[Any], items: Sequence[Any]) -> bool:
    return are_plain(items) and marshal.dumps(tuple(known), 2) == marshal.dumps(tuple(items), 2)


def _is_plainly(known: Any, item: Any) -> bool:
    return _are_plainly([known], [item])


def _is_pickle_of(payload: Payload, item: Any) -> bool:
    """Whether a pickle is the item's. Equal values may have several: sets come in any order."""
    payload = whole(payload)
    if _pickled(item) == payload:
        return True
    try:
        known = load(payload)
    except Exception:
        return False
    with suppress(Exception):  # Of arrays there is no one answer.
        if type(known) is type(item) and bool(known == item):
            return True
    try:
        return value_digest(known) == value_digest(item)
    except Exception:
        return False


class KeyedInput:
    """Input whose jobs are known by a key: only what is new, or changed under its key, is submitted.

    With `reruns` jobs that have not succeeded run again, as far as their items are given again: whoever pulls asks
    for those of `again`. An item that changed replaces its old job: `take_failed` and `take_unwanted` tell which.
    """

    def __init__(self, door: Door, key: Callable[[Any], Any], *, reruns: bool = False) -> None:
        self.items: Items = iter(())
        self.is_over = False
        self.skipped = 0
        """Items that have a job already."""
        self.bytes_per_item = 0
        """Of the last items that were submitted."""
        self.door = door
        self.costing: Costing | None = None
        self._key = key
        self._reruns = reruns
        self._seen = 0
        """Items that were read."""
        self.again = RangeSet()
        """Jobs to run again that were not asked for yet."""
        self.replaced = 0
        """Jobs that did not succeed and whose items have changed."""
        self._failed = RangeSet()
        self._unwanted = RangeSet()
        """Of those that were replaced: those that have an outcome, and those that have none."""
        self._wanted: set[int] = set()
        """Of the jobs that had not succeeded before: those that were given again as they are."""
        self._fresh: dict[bytes, tuple[int, bytes]] = {}
        """What was submitted and is not in the journal yet."""

    def begin(self, journal: BatchJournal, *, is_known: bool = False) -> None:  # noqa: ARG002
        """Take in what the batch holds."""
        self._journal = journal
        self._size = self._known = journal.facts.size
        self._succeeded, self._finished = RangeSet(), journal.facts.done
        for span in Outcomes(journal).spans(journal.facts.done, journal.facts.generation):
            if span.state is JobState.SUCCEEDED:
                self._succeeded.add(span.start, span.stop)

    def pull(self, count: int) -> list[Range]:
        """Read up to `count` items and submit those that are new; return the jobs of all of them."""
        items, self.is_over, self.items = read_soon(self.items, min(count, 512))
        known_costs, error = [0.0] * len(items), None
        if self.costing:
            known_costs, error = self.costing.read_until_error(items, self._seen)
        jobs: list[Range] = []
        payloads: list[bytes | Reference] = []
        keys: list[bytes] = []
        costs: list[float] = []
        for item, cost in zip(items, known_costs, strict=False):
            try:
                key = self._key_of(item)
            except Exception as raised:
                error = raised
                break
            self._seen += 1
            payload = _pickled(item)
            digest, content = key_digests(key, item, payload)
            known = self._fresh.get(digest) or self._journal.known_key(digest)
            if known is not None and known[1] == content:
                index = known[0]
                self.skipped += not self._does_run_again(index)
            else:
                if known is not None:
                    self._replace(known[0])
                index, self._size = self._size, self._size + 1
                self._fresh[digest] = index, content
                payloads.append(self._journal.keep([payload]) or payload)
                keys.append(digest + content)
                costs.append(cost)
            jobs.append((index, index + 1))
        if payloads:
            self._submit(payloads, keys, costs)
        if error is not None:  # Those before are jobs all the same.
            self.is_over, self.items = False, _raising(InputRaised(error))
        return jobs

    def _key_of(self, item: Any) -> Any:
        """Return an item's key. Raises InputError, and what a function of the user's raises."""
        try:
            return self._key(item)
        except InputError as error:
            raise InputError(f"Item {self._seen:,} of the input, {shown(item)}, has no key: {error}.") from None
        except Exception as error:
            error.add_note(f"while key= looked at item {self._seen:,} of the input, {shown(item)}")
            raise

    def _does_run_again(self, index: int) -> bool:
        if not self._reruns or index in self._succeeded or index in self._wanted or index >= self._known:
            return False
        self._wanted.add(index)
        if index in self._finished:
            self.again.add(index, index + 1)
        return True

    def _replace(self, index: int) -> None:
        """Put a job away, unless its outcome is wanted all the same."""
        if index < self._known and index not in self._succeeded and index not in self._wanted:
            self.replaced += 1
            (self._failed if index in self._finished else self._unwanted).add(index, index + 1)

    def take_unwanted(self) -> list[Range]:
        """Return the jobs that were replaced since the last question and need not begin."""
        unwanted, self._unwanted = self._unwanted, RangeSet()
        return list(unwanted)

    def take_failed(self) -> list[Range]:
        """Return the jobs that were replaced since the last question and are to count as failed no more."""
        failed, self._failed = self._failed, RangeSet()
        return list(failed)

    def _submit(self, payloads: list[bytes | Reference], keys: list[bytes], costs: list[float]) -> None:
        indices = range(self._size - len(keys), self._size)
        if self.door.progress["is_sealed"]:
            self.door.unseal()

        def then(_: dict[str, Any]) -> None:
            for key, index in zip(keys, indices, strict=True):  # Unless its job has changed once more meanwhile.
                if self._fresh.get(key[:KEY_DIGEST_BYTES], (-1, b""))[0] == index:
                    del self._fresh[key[:KEY_DIGEST_BYTES]]

        blocks = [block for _, block in pickled_blocks(payloads)]
        self.bytes_per_item = sum(map(nbytes_of, blocks)) // len(payloads)
        costly = self.costing.costly(indices.start, costs) if self.costing else ()
        self.door.submit(b"".join(blocks), keys=b"".join(keys), then=then, costs=costly)


def key_digests(key: Any, item: Any, payload: bytes) -> tuple[bytes, bytes]:
    """Return (digest of a job's key, digest of its input): the same for equal values in every process.

    >>> key_digests("k", {"x": 1, "y": 2}, b"") == key_digests("k", {"y": 2, "x": 1}, b"")
    True
    >>> a, b = "a b".split(), "a b".split()
    >>> key_digests({*a}, [a, a], dump([a, a])) == key_digests({*a[::-1]}, [a, b], dump([a, b]))
    True
    """
    of_key = blake2b(_encoded(key, dump(key)), digest_size=KEY_DIGEST_BYTES).digest()
    return of_key, blake2b(_encoded(item, payload), digest_size=8).digest()


def _encoded(value: Any, payload: bytes) -> bytes:
    """Return bytes that tell a value: unlike a pickle neither the order of a set nor what is one object shows."""
    if not runs_code(payload):
        if type(value) is dict and set(map(type, value)) == {str}:
            value = sorted(value.items(), key=itemgetter(0))  # Nor in what order a row has its fields.
        with suppress(ValueError):  # Too deep, or made of subclasses.
            return marshal.dumps(value, 2)
    try:
        return value_digest(value)
    except Exception:  # Too deep for anybody, or with a mind of its own.
        return payload


class InputRaised(Exception):
    """Iterating the input raised `error`; what it gave before that was taken in."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def as_items(iterable: Iterable[Any]) -> Items:
    """Return what `read_soon` reads of an iterable."""
    return iterable if isinstance(iterable, range) else iter(iterable)


def read_soon(items: Items, count: int) -> tuple[Sequence[Any], bool, Items]:
    """Return (up to `count` items, as many as come soon; whether these were the last; where the next come from).

    >>> def broken():
    ...     yield 1
    ...     raise OSError("no more")
    >>> found, is_over, items = read_soon(broken(), 5)
    >>> found, is_over, read_soon(items, 5)
    Traceback (most recent call last):
    batchd.intake.InputRaised: no more
    """
    if isinstance(items, range):
        return items[:count], not items[count:], items[count:]
    found = []
    until = perf_counter() + PULL_S
    try:
        for item in islice(items, count):
            found.append(item)
            if perf_counter() > until:  # Slow items are not waited for in groups.
                return found, False, items
    except InputRaised:
        raise
    except Exception as error:
        return found, False, _raising(InputRaised(error))
    return found, len(found) < count, items


def _raising(error: Exception) -> Iterator[Any]:
    raise error
    yield  # type: ignore[unreachable]  # What makes it an iterator.


def pickled(item: Any, keep: Keep) -> bytes | Reference:
    """Return an item's pickle, or where it is kept; of one that does not pickle, one whose job fails and says why."""
    try:
        return dump_kept(item, keep)
    except Exception as error:
        path, culprit = culprit_of(item, "item")
        return dump(Unsendable(f"{path} is a {type(culprit).__qualname__}, which does not pickle: {error}"))


def _pickled(item: Any) -> bytes:
    return cast("bytes", pickled(item, keep_nothing))


def culprit_of(value: Any, path: str) -> tuple[str, Any]:
    """Return (where it is, what it is) of the part that makes a value not pickle.

    >>> culprit_of({"a": [1, (n for n in "abc")]}, "item")[0]
    "item['a'][1]"
    """
    seen = {id(value)}
    while True:
        for name, part in _parts_of(value):
            if id(part) not in seen and not _does_pickle(part):
                path, value = path + name, part
                seen.add(id(part))
                break
        else:
            return path, value


def _parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r:.80}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{at}]", part) for at, part in enumerate(value))
    yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())


def _does_pickle(value: Any) -> bool:
    try:
        dump(value)
    except Exception:
        return False
    return True


class Unsendable:
    """Stands in for an input that does not pickle: reading it back fails."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __reduce__(self) -> tuple[Callable[[str], NoReturn], tuple[str]]:
        return refuse, (self._why,)


def refuse(why: str) -> NoReturn:
    """Fail a job whose input could not be sent."""
    raise PicklingError(why)
