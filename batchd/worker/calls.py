"""Calls: how the items of a batch are applied to a callable, and callables that travel as pickles.

A task with a name is imported (worker/task.py). One without (a lambda, a closure, a function of a script) travels as
a pickled bundle, made here in the client and unpickled here in the template, once for all its workers. The client
of an executor sends each further function once, under a mark that its calls then name; worker/origins.py sees that it
is the same function there.
"""

import importlib
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from batchd.errors import TaskError
from batchd.worker.mainglobals import keep_prepared, load_function, tag_of, tagged
from batchd.worker.origins import check_origins, with_origins

ONE: Final = "one"
"""The task is called with the item, and with the batch's constant arguments."""
STAR: Final = "star"
"""The item is the tuple of the arguments."""
CALLS: Final = "calls"
"""The item is (mark of the function, tuple of arguments, dict of keyword arguments or None)."""

_KNOWN_MAX: Final = 1_024
"""Functions that a worker keeps unpickled for a batch."""
_KNOWN_BYTES_MAX: Final = 64 << 20
"""What their pickles may have taken together."""
_KNOWN_MIN: Final = 2
"""Those used last stay whatever they hold: calls of one large function are many as a rule."""

Call = tuple[bytes, tuple[Any, ...], dict[str, Any] | None]


class Bundle(NamedTuple):
    """What a template prepares its workers with."""

    task: Callable[..., Any] | None
    """None: each item names its function."""
    initializer: Callable[..., object] | None = None
    """Called with `initargs` in each new worker before its first job."""
    initargs: tuple[Any, ...] = ()
    preload: tuple[str, ...] = ()
    """Modules to import once for all workers, where they can be imported."""
    tag: bytes = b""
    """Where it was pickled, as worker/mainglobals.py tells runs of programs apart; it does not travel in it."""

    def prepare(self) -> None:
        """Run the initializer, if there is one."""
        if self.initializer is not None:
            self.initializer(*self.initargs)
            keep_prepared(self.tag)


def mark_of(payload: bytes) -> bytes:
    """Return the mark of a pickled function: equal pickles are one function."""
    return blake2b(payload, digest_size=8).digest()


def pack_function(function: Callable[..., Any]) -> bytes:
    """Return a callable's pickle: by name where workers can import it, else by value. Raises what pickling raises."""
    from batchd.formats import byvalue  # noqa: PLC0415  (30 ms, needed in clients only)

    return tagged(with_origins(*byvalue.dumps_naming(function)))


def pack_bundle(bundle: Bundle) -> bytes:
    """Return a bundle's pickle. Raises what pickling raises."""
    from batchd.formats import byvalue  # noqa: PLC0415

    payload = byvalue.dumps(tuple(bundle[:-1]))
    # A task alone shares its globals with nothing that travels, and its workers may serve the next run.
    return payload if bundle.initializer is None else tagged(payload)


def load_bundle(payload: bytes) -> Bundle:
    """Return the bundle of a pickle, modules imported. Raises TaskError with the user's own traceback.

    >>> load_bundle(pack_bundle(Bundle(abs))).task(-3)
    3
    """
    try:
        bundle = Bundle(*load_function(payload))._replace(tag=tag_of(payload))
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        raise TaskError(f"the task could not be unpickled in a worker; its own traceback:\n{text.rstrip()}") from None
    for name in bundle.preload:
        with suppress(Exception):  # Whoever needs it fails by itself, and says why.
            importlib.import_module(name)
    return bundle


def bind(
    spec: Mapping[str, Any], task: Callable[..., Any] | None, function: Callable[[bytes], bytes]
) -> Callable[[Any], Any]:
    """Return what is called with each item of a batch. `function` returns the pickled callable of a mark.

    >>> bind({"call": "star"}, pow, lambda mark: b"")((2, 5))
    32
    """
    kind = spec.get("call", ONE)
    if kind == CALLS:
        is_queue = spec.get("input", {}).get("kind") == "queue"
        return _Calls(function, f"{'queue' if is_queue else 'batch'} {spec.get('name', '')}")
    if task is None:
        raise TaskError("the batch has no task")
    if kind == STAR:
        return lambda item: task(*item)
    args = spec.get("args") or {}
    return partial(task, **args) if args else task


class _Calls:
    """Calls the function that an item names.

    Each is unpickled once per worker and kept while it is among those used last: partials and closures are as many as
    the calls, and as large as what they hold. One that was let go is in the journal still.
    """

    def __init__(self, function: Callable[[bytes], bytes], batch: str) -> None:
        self._function, self._batch = function, batch
        self._known: OrderedDict[bytes, tuple[Callable[..., Any], int]] = OrderedDict()
        """Functions and the sizes of their pickles, the one used last at the end."""
        self._bytes = 0
        self._last_mark = b""
        self._last: Callable[..., Any] = _nothing

    def __call__(self, item: Call) -> Any:
        mark, args, kwargs = item
        if mark != self._last_mark:
            self._last, self._last_mark = self._find(mark), mark
        return self._last(*args, **kwargs) if kwargs else self._last(*args)

    def _find(self, mark: bytes) -> Callable[..., Any]:
        known = self._known.get(mark)
        if known is not None:
            self._known.move_to_end(mark)
            return known[0]
        payload = self._function(mark)
        check_origins(payload, self._batch)
        found: Callable[..., Any] = load_function(payload)
        self._known[mark] = found, len(payload)
        self._bytes += len(payload)
        while len(self._known) > _KNOWN_MAX or (self._bytes > _KNOWN_BYTES_MAX and len(self._known) > _KNOWN_MIN):
            _, (_, size) = self._known.popitem(last=False)
            self._bytes -= size
        return found


def _nothing() -> None:
    """Stand where no function was called yet."""
