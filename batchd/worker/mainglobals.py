"""The globals of a client's `__main__`, as the functions that travel from there see them in a worker.

Functions that are pickled by value each bring the globals they name. In a worker they are to share one set of them,
as they did in the script: what an initializer sets must be there for the jobs. The one idea: a name that code in the
worker has set is not touched by what arrives later; one that only ever arrived follows the script.
"""

import pickle
from io import BytesIO
from typing import Any, Final

_shared: Final[dict[str, Any]] = {}
_arrived: Final[dict[str, Any]] = {}
"""What came with functions, under the names of `_shared`: another value there was set by code that ran here."""
_NOTHING: Final = object()


def load_function(payload: bytes | memoryview) -> Any:
    """Unpickle a function, or what holds some; those of a client's `__main__` share their globals.

    >>> load_function(pickle.dumps(len))([1, 2])
    2
    """
    return _Unpickler(BytesIO(payload)).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "cloudpickle.cloudpickle" and name in _STEPS:
            return _STEPS[name]
        return super().find_class(module, name)


def _make_function(code: Any, its_globals: dict[str, Any], *rest: Any) -> Any:
    from cloudpickle import cloudpickle  # noqa: PLC0415  (whoever pickled by value had it loaded)

    if its_globals.get("__name__") == "__main__":
        for name, value in its_globals.items():
            _shared.setdefault(name, value)
        its_globals = _shared
    return cloudpickle._make_function(code, its_globals, *rest)  # noqa: SLF001


def _function_setstate(function: Any, state: tuple[Any, dict[str, Any]]) -> None:
    from cloudpickle import cloudpickle  # noqa: PLC0415

    if function.__globals__ is _shared:
        attributes, slots = state
        for name, value in slots["__globals__"].items():
            if name not in _shared or _shared[name] is _arrived.get(name, _NOTHING):
                _shared[name] = _arrived[name] = value
        state = attributes, {**slots, "__globals__": {}}
    cloudpickle._function_setstate(function, state)  # noqa: SLF001


_STEPS: Final = {"_make_function": _make_function, "_function_setstate": _function_setstate}
"""What cloudpickle (3.0 and 3.1) names in a pickle of a function."""
