"""The globals of a client's `__main__`, as the functions that travel from there see them in a worker.

Functions that are pickled by value each bring the globals they name. In a worker those of one run of a program share
one set of them, as they did in the script: what an initializer sets must be there for the jobs. Those of another
program, or of an earlier run of the same one, have their own: both hand jobs to one queue, and name different things
alike. So each such pickle ends in a tag that says where it was made. The one idea within a set: a name that code in
the worker has set is not touched by what arrives later; one that only ever arrived follows the script.
"""

import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from io import BytesIO
from typing import Any, Final

_SPACES_MAX: Final = 64
"""Runs of programs whose globals a worker keeps: a queue may have a new one every minute."""
_ID_BYTES: Final = 8
_TAG_END: Final = b"/batchd1"
"""What a tag ends in: a pickle without one ends in a dot."""
_TAG_BYTES: Final = 2 * _ID_BYTES + len(_TAG_END)
_NOTHING: Final = object()


class _Space:
    """The globals that the functions of one run share."""

    def __init__(self, program: bytes) -> None:
        self.program = program
        self.names: dict[str, Any] = dict(_prepared.get(program, ()))
        self.arrived: dict[str, Any] = {}
        """What came with functions, under the names of `names`: another value there was set by code that ran here."""

    def take(self, arriving: dict[str, Any]) -> None:
        """Take in the globals of a function."""
        for name, value in arriving.items():
            if name not in self.names or self.names[name] is self.arrived.get(name, _NOTHING):
                self.names[name] = self.arrived[name] = value

    def own(self) -> dict[str, Any]:
        """Return what code that ran here has set."""
        own = {each: value for each, value in self.names.items() if value is not self.arrived.get(each, _NOTHING)}
        return {name: value for name, value in own.items() if not (name.startswith("__") and name.endswith("__"))}


_spaces: Final[OrderedDict[bytes, _Space]] = OrderedDict()
"""By tag, the one used last at the end."""
_prepared: Final[dict[bytes, dict[str, Any]]] = {}
"""By program: what the initializer of the workers has set, for the jobs that an earlier run of it has left."""


class _Run:
    """Which run of which program this process is."""

    tag = b""


_run: Final = _Run()


def tag_of_run() -> bytes:
    """Return the tag of what this process pickles; a fork of it has another one."""
    if not _run.tag:
        run = os.urandom(_ID_BYTES)
        file = getattr(sys.modules.get("__main__"), "__file__", None)
        program = blake2b(os.fsencode(os.path.realpath(file)), digest_size=_ID_BYTES).digest() if file else run
        _run.tag = program + run + _TAG_END
    return _run.tag


def _forget_run() -> None:
    _run.tag = b""


os.register_at_fork(after_in_child=_forget_run)


def tagged(payload: bytes) -> bytes:
    """Return a pickle with the tag of this run, when something of a `__main__` is in it; others stay as they are.

    >>> tagged(pickle.dumps(len)) == pickle.dumps(len)
    True
    """
    return payload + tag_of_run() if b"__main__" in payload else payload


def load_function(payload: bytes | memoryview) -> Any:
    """Unpickle a function, or what holds some; those of one run of a client's `__main__` share their globals.

    >>> load_function(pickle.dumps(len))([1, 2])
    2
    """
    return _Unpickler(payload, _space(tag_of(payload))).load()


def keep_prepared(tag: bytes) -> None:
    """Have what an initializer with this tag has set be there for all runs of its program."""
    if tag:
        space = _space(tag)
        _prepared[space.program] = space.own()


def tag_of(payload: bytes | memoryview) -> bytes:
    """Return the tag of a pickle, b"" when it has none."""
    tag = bytes(payload[-_TAG_BYTES:])
    return tag if tag.endswith(_TAG_END) else b""


def _space(tag: bytes) -> _Space:
    found = _spaces.get(tag)
    if found is None:
        found = _spaces[tag] = _Space(tag[:_ID_BYTES])
        if len(_spaces) > _SPACES_MAX:
            _spaces.popitem(last=False)
    _spaces.move_to_end(tag)
    return found


class _Unpickler(pickle.Unpickler):
    def __init__(self, payload: bytes | memoryview, space: _Space) -> None:
        super().__init__(BytesIO(payload))
        self._space = space

    def find_class(self, module: str, name: str) -> Any:
        if module == "cloudpickle.cloudpickle" and name in _STEPS:
            return partial(_STEPS[name], self._space)  # No method: the memo would hold the unpickler, and all in it.
        return super().find_class(module, name)


def _make_function(space: _Space, code: Any, its_globals: dict[str, Any], *rest: Any) -> Any:
    from cloudpickle import cloudpickle  # noqa: PLC0415  (whoever pickled by value had it loaded)

    if its_globals.get("__name__") == "__main__":
        for name, value in its_globals.items():
            space.names.setdefault(name, value)
        its_globals = space.names
    return cloudpickle._make_function(code, its_globals, *rest)  # noqa: SLF001


def _function_setstate(space: _Space, function: Any, state: tuple[Any, dict[str, Any]]) -> None:
    from cloudpickle import cloudpickle  # noqa: PLC0415

    if function.__globals__ is space.names:
        attributes, slots = state
        space.take(slots["__globals__"])
        state = attributes, {**slots, "__globals__": {}}
    cloudpickle._function_setstate(function, state)  # noqa: SLF001


_STEPS: Final[dict[str, Callable[..., Any]]] = {
    "_make_function": _make_function,
    "_function_setstate": _function_setstate,
}
"""What cloudpickle (3.0 and 3.1) names in a pickle of a function."""
