"""Pickles of what no name stands for: functions of a script, lambdas, closures, local classes.

cloudpickle makes them; its import takes 30 ms, so whoever needs this module imports it late. The one idea of ours:
code keeps the name of its file. cloudpickle 3.1.3 writes a constant instead, and tracebacks would show no source.
"""

import io
from collections import ChainMap
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, ClassVar, Final

import cloudpickle

_NO_FILE: Final = "<dynamic-code>"
_reduce = cloudpickle.Pickler.dispatch_table[CodeType]
_reduce_module = cloudpickle.Pickler.dispatch_table[ModuleType]


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


def dumps_naming(value: Any) -> tuple[bytes, list[str]]:
    """Return what `dumps` returns, and which modules whoever unpickles it will import.

    >>> dumps_naming(ChainMap)[1], dumps_naming(lambda x: 2 * x)[1]
    (['collections'], ['cloudpickle.cloudpickle'])
    """
    file = io.BytesIO()
    pickler = _NamingPickler(file, 5)
    pickler.dump(value)
    return file.getvalue(), list(pickler.modules)


def _reduce_code(code: CodeType) -> tuple[Any, tuple[Any, ...]]:
    make, parts = _reduce(code)
    return make, tuple(code.co_filename if part == _NO_FILE else part for part in parts)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, with the files of functions."""

    dispatch_table: ClassVar = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)


class _NamingPickler(Pickler):
    """It notes the modules of what it writes down as a name."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.modules: dict[str, None] = {}

    def reducer_override(self, value: Any) -> Any:
        """Let cloudpickle decide."""
        if isinstance(value, ModuleType):
            made = _reduce_module(value)
            if made[0].__name__ == "subimport":
                self.modules[value.__name__] = None
            return made
        made = super().reducer_override(value)
        if made is NotImplemented and isinstance(value, type | FunctionType | BuiltinFunctionType):
            module = value.__module__
            if module is not None:  # A method of a built-in value has none.
                self.modules[module] = None
        return made
