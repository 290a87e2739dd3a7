"""Likenesses: what a pickle holds, for people to look at, without running any code that it names.

A pickle is a program that calls what it names. Here every name stands for a class of ours, whose objects only keep
what they were made with; a few types of the standard library, which do nothing but hold a value, are themselves.
"""

import pickle
from collections.abc import Callable
from io import BytesIO
from reprlib import recursive_repr
from typing import Any, Final, Self, cast

from batchd.errors import FormatError
from batchd.formats.reference import Payload, whole

_BYTES_MAX: Final = 16 << 20
_HARMLESS: Final = frozenset(
    {
        ("builtins", name)
        for name in ("bool", "bytearray", "bytes", "complex", "float", "frozenset", "int", "list", "object", "range")
    }
    | {("builtins", name) for name in ("set", "slice", "str", "tuple", "dict")}
    | {("collections", "OrderedDict"), ("collections", "deque"), ("decimal", "Decimal"), ("uuid", "UUID")}
    | {("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")}
    | {("fractions", "Fraction"), ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath")}
)


class _Named(type):
    """The class of what stands for a name."""

    def __repr__(cls) -> str:
        return cls.__name__


class _Likeness(metaclass=_Named):
    """Stands for an object: `parts` made it, `state` was put into it, `members` were added."""

    def __new__(cls, *parts: Any, **named: Any) -> Self:
        made = super().__new__(cls)
        made._parts, made._state, made._members = parts, named, []
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        self._parts: tuple[Any, ...]
        self._state: Any
        self._members: list[Any]

    def __call__(self, *parts: Any) -> "_Likeness":
        return _Likeness(self, *parts)

    def __setstate__(self, state: Any) -> None:
        plain, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        both = [each for each in (plain, slots) if isinstance(each, dict)]
        self._state = {name: value for each in both for name, value in each.items()} if both else {"state": state}

    def extend(self, members: Any) -> None:
        self._members.extend(members)

    def add(self, member: Any) -> None:
        self._members.append(member)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._members.append((key, value))

    def __hash__(self) -> int:
        return id(self)

    @recursive_repr()
    def __repr__(self) -> str:
        named = [f"{name}={value!r:.80}" for name, value in list(self._state.items())[:20]]
        members = [f"{self._members[:20]!r}"] if self._members else []
        return f"{type(self).__name__}({', '.join([*map(repr, self._parts), *members, *named])})"


def _class_named(name: str) -> type[_Likeness]:
    return cast("type[_Likeness]", _Named(name, (_Likeness,), {}))


def _array(_: object, dtype: _Likeness, shape: object, *__: object) -> _Likeness:
    return _class_named("ndarray")(dtype=str(dtype._parts[0]), shape=shape)  # noqa: SLF001


_MAKERS: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("cloudpickle", "_make_skeleton_class"): lambda _, name, *__: _class_named(name),
    ("cloudpickle", "_make_skeleton_enum"): lambda _, name, *__: _class_named(name),
    ("cloudpickle", "_make_function"): lambda *_: _class_named("<function>"),
    ("cloudpickle", "_builtin_type"): _class_named,
    ("cloudpickle", "subimport"): _class_named,
    ("numpy", "_frombuffer"): _array,
}
"""What makes classes and functions that have no name to be imported by, and arrays."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return super().find_class(module, name)
        made_here = _MAKERS.get((module.partition(".")[0], name))
        return made_here or _class_named(name.rpartition(".")[2])

    def persistent_load(self, pid: Any) -> Any:
        return f"<{pid}>"


def likeness(payload: Payload) -> Any:
    """Return what looks like the pickled value, made without running any code of the user's. Raises FormatError.

    >>> from types import SimpleNamespace
    >>> likeness(pickle.dumps([SimpleNamespace(name="Ann", age=7), print, {3}], 5))
    [SimpleNamespace(name='Ann', age=7), print, {3}]
    """
    if len(payload) > _BYTES_MAX:
        raise FormatError(f"it takes {len(payload):,} bytes")
    try:
        return _Reader(BytesIO(whole(payload))).load()
    except Exception as error:
        raise FormatError(f"it cannot be read without running code: {type(error).__name__}: {error}") from error
