"""Calls: how the items of a batch are applied to a callable, and callables that travel as pickles.

A task with a name is imported (worker/task.py). One without (a lambda, a closure, a function of a script) travels as
a pickled bundle, made here in the client and unpickled here in the template, once for all its workers. The client
of an executor sends each further function once, under a mark that its calls then name.
"""

import importlib
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from batchd.errors import TaskError
from batchd.worker.mainglobals import load_function

ONE: Final = "one"
"""The task is called with the item, and with the batch's constant arguments."""
STAR: Final = "star"
"""The item is the tuple of the arguments."""
CALLS: Final = "calls"
"""The item is (mark of the function, tuple of arguments, dict of keyword arguments or None)."""

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

    def prepare(self) -> None:
        """Run the initializer, if there is one."""
        if self.initializer is not None:
            self.initializer(*self.initargs)


def mark_of(payload: bytes) -> bytes:
    """Return the mark of a pickled function: equal pickles are one function."""
    return blake2b(payload, digest_size=8).digest()


def pack_function(function: Callable[..., Any]) -> bytes:
    """Return a callable's pickle: by name where workers can import it, else by value. Raises what pickling raises."""
    import cloudpickle  # noqa: PLC0415  (30 ms, needed in clients only)

    payload: bytes = cloudpickle.dumps(function, 5)
    return payload


def pack_bundle(bundle: Bundle) -> bytes:
    """Return a bundle's pickle. Raises what pickling raises."""
    import cloudpickle  # noqa: PLC0415

    payload: bytes = cloudpickle.dumps(tuple(bundle), 5)
    return payload


def load_bundle(payload: bytes) -> Bundle:
    """Return the bundle of a pickle, modules imported. Raises TaskError with the user's own traceback.

    >>> load_bundle(pack_bundle(Bundle(abs))).task(-3)
    3
    """
    try:
        bundle = Bundle(*load_function(payload))
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
        return _Calls(function)
    if task is None:
        raise TaskError("the batch has no task")
    if kind == STAR:
        return lambda item: task(*item)
    args = spec.get("args") or {}
    return partial(task, **args) if args else task


class _Calls:
    """Calls the function that an item names; each is unpickled once per worker."""

    def __init__(self, function: Callable[[bytes], bytes]) -> None:
        self._function = function
        self._known: dict[bytes, Callable[..., Any]] = {}

    def __call__(self, item: Call) -> Any:
        mark, args, kwargs = item
        found = self._known.get(mark)
        if found is None:
            found = self._known[mark] = load_function(self._function(mark))
        return found(*args, **kwargs) if kwargs else found(*args)
