"""What runs in the processes that work for joblib: it prepares them, and calls what joblib put together.

Nothing here imports joblib or numpy when it is loaded, because how many threads those may start is settled first.
The one idea: what has to be done once for all workers is done where a pickle of it is read, in the process they are
forked from.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

from batchd.joblib import register


class Preparation:
    """An initializer whose pickle, when it is read, sets the environment and imports modules."""

    def __init__(
        self,
        environ: Mapping[str, str],
        modules: Iterable[str],
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        """`initializer` is the user's own; it runs in each worker, after this."""
        self._args = dict(environ), tuple(modules), initializer, initargs

    def __call__(self) -> None:
        """Only its pickle is of use."""

    def __reduce__(self) -> Any:
        return prepare, self._args


def prepare(
    environ: Mapping[str, str],
    modules: Iterable[str],
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
) -> Callable[[], object]:
    """Prepare this process and return what each worker calls before its first job.

    >>> prepare({}, ["no.such.module"], max, (1, 2))()
    2
    """
    os.environ.update(environ)
    for name in modules:
        with suppress(Exception):  # Whoever needs it fails by itself, and says why.
            import_module(name)
    return partial(initializer, *initargs) if initializer is not None else _nothing


def _nothing() -> None:
    """Stand in for an initializer."""


def joblib_call(payload: bytes) -> Any:
    """Run a batch of calls that joblib put together. A job may name the backend again.

    >>> joblib_call(pickle.dumps(partial(pow, 2, 3)))
    8
    """
    call = pickle.loads(payload)
    register()
    return call()
