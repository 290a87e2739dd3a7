"""Pickles of what no name stands for: functions of a script, lambdas, closures, local classes.

cloudpickle makes them; its import takes 30 ms, so whoever needs this module imports it late. The one idea of ours:
code keeps the name of its file. cloudpickle 3.1.3 writes a constant instead, and tracebacks would show no source.
"""

import io
from collections import ChainMap
from types import CodeType
from typing import Any, ClassVar, Final

import cloudpickle

_NO_FILE: Final = "<dynamic-code>"
_reduce = cloudpickle.Pickler.dispatch_table[CodeType]


def dumps(value: Any) -> bytes:
    """Pickle a value with all that it needs and that cannot be imported. Raises what pickling raises.

    >>> import pickle
    >>> twice = pickle.loads(dumps(lambda x: 2 * x))
    >>> twice(4), twice.__code__.co_filename.startswith("<doctest")
    (8, True)
    """
    file = io.BytesIO()
    Pickler(file, 5).dump(value)
    return file.getvalue()


def _reduce_code(code: CodeType) -> tuple[Any, tuple[Any, ...]]:
    make, parts = _reduce(code)
    return make, tuple(code.co_filename if part == _NO_FILE else part for part in parts)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, with the files of functions."""

    dispatch_table: ClassVar = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)
