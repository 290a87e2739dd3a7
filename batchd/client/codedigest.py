"""What makes a function another one: its code, and the values it holds.

A durable batch keeps the digest of its function: results of one function must not be taken for those of another. So
what a callable holds (arguments of a partial, closure, `self`, defaults) counts by value, never by address or by the
order of a set. What it calls is not looked into.
"""

import types
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from typing import Any, Final

from batchd.formats.values import is_plain

_REDUCED_WITH: Final = 4


def code_digest(function: Callable[..., Any]) -> str:
    """Return a digest that changes when the function's own code or the values it holds do.

    >>> code_digest(lambda x: x + 1) == code_digest(lambda x: x + 1) != code_digest(lambda x: x + 2)
    True
    """
    try:
        texts = "\0".join(_Walk().texts_of(function))
    except RecursionError:  # Deeper than anybody can tell apart.
        texts = _name(function)
    return blake2b(texts.encode(errors="replace"), digest_size=16).hexdigest()


def value_digest(value: Any) -> bytes:
    """Return a digest that is the same for equal values in every process, whatever their pickles.

    A class of a script has another pickle in every process; here it counts by its name.

    >>> value_digest({"a": {1, 2}, "b": len}) == value_digest({"b": len, "a": {2, 1}}) != value_digest({"a": {1}})
    True
    """
    return blake2b("\0".join(_Walk().texts_of(value)).encode(errors="replace"), digest_size=16).digest()


class _Walk:
    """One walk over what a callable holds; what is met again is named by when it was met first."""

    def __init__(self) -> None:
        self._met: dict[int, int] = {}
        self._held: list[Any] = []
        """Or another object could be given the address of one that was met."""

    def texts_of(self, value: Any) -> Iterator[str]:
        """Give the texts that tell a value from others."""
        if is_plain(value):
            yield repr(value)
            return
        if id(value) in self._met:
            yield f"met {self._met[id(value)]}"
            return
        self._met[id(value)] = len(self._met)
        self._held.append(value)
        yield f"({type(value).__qualname__}"
        for part in self._parts_of(value):
            yield from [part.text] if isinstance(part, _Text) else self.texts_of(part)
        yield ")"

    def _parts_of(self, value: Any) -> Iterator[Any]:
        match value:
            case partial():
                yield from (value.func, value.args, value.keywords)
            case types.MethodType():
                yield from (value.__func__, value.__self__)
            case types.FunctionType():
                yield from _parts_of_function(value)
            case dict() | types.MappingProxyType():
                yield from self._sorted(value.items())
            case set() | frozenset():
                yield from self._sorted(value)
            case list() | tuple():
                yield from value
            case type() | types.ModuleType() | types.BuiltinFunctionType():
                yield _Text(_name(value))
            case _:
                yield from _state_of(value)

    def _sorted(self, values: Any) -> Iterator[Any]:
        """Give values in an order that no hash decides."""
        yield from (_Text(text) for text in sorted("\1".join(_Walk().texts_of(each)) for each in values))


class _Text:
    """A part that is a text already."""

    def __init__(self, text: str) -> None:
        self.text = text


def _parts_of_function(function: types.FunctionType) -> Iterator[Any]:
    yield from map(_Text, _parts_of_code(function.__code__))
    yield from (function.__defaults__, function.__kwdefaults__)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            yield _Text("nothing yet")
    yield getattr(function, "__wrapped__", None)  # What a decorator hides.


def _state_of(value: Any) -> Iterator[Any]:
    """Give the class of an object and what its pickle would keep; of one that does not pickle the class only."""
    call = type(value).__call__ if callable(value) else None
    if isinstance(call, types.FunctionType):
        yield call
    if (wrapped := getattr(value, "__wrapped__", None)) is not None:
        yield wrapped
    try:
        block = memoryview(value)
    except (TypeError, ValueError):  # It has no buffer, or one without a format, such as dates of numpy.
        pass
    else:
        if block.format != "O":
            yield from (_Text(f"{block.format} {block.shape}"), block.tobytes())
            return
    try:
        reduced = value.__reduce_ex__(_REDUCED_WITH)
    except Exception:
        return
    if isinstance(reduced, str):
        yield _Text(reduced)
        return
    made_by, args, state, items, pairs = (*reduced, None, None, None)[:5]
    yield from (_Text(_name(made_by)), args)
    yield from (state, list(items or ()), list(pairs or ()))


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__qualname__))


def _parts_of_code(code: types.CodeType) -> list[str]:
    """What a code object does, without where it stands: line numbers and file names change with every edit."""
    found = [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames[: code.co_argcount])]
    for each in code.co_consts:
        found += _parts_of_code(each) if isinstance(each, types.CodeType) else [_constant(each)]
    return found


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
