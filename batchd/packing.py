"""What becomes of calls before they travel: each is the mark of its function and its pickled arguments.

A function travels once, under its mark, and calls name it. One that workers import by name never changes under that
name; any other callable is pickled anew for each gathering of calls, because what it holds may have changed since.
"""

import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from batchd.formats.reference import Keep, keep_nothing
from batchd.formats.segment import input_blocks, pickled_blocks
from batchd.formats.values import are_plain, dump, dump_kept
from batchd.intake import culprit_of
from batchd.worker.calls import Call, mark_of, pack_function


class Calling(NamedTuple):
    """A call somebody submitted, and the future it gave in return."""

    future: Any
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Packer:
    """Packs the calls of one batch."""

    def __init__(self) -> None:
        self._lasting: weakref.WeakKeyDictionary[Callable[..., Any], bytes] = weakref.WeakKeyDictionary()
        """Marks of functions that travel by name."""
        self._defined: set[bytes] = set()
        self.nbytes_defined = 0
        """Of all functions that were defined so far."""
        self._uses: dict[bytes, int] = {}
        """Of each that was defined and does not travel by name: how many calls that were sent are not over."""

    def pack(
        self,
        calls: Iterable[Calling],
        define: Callable[[bytes, bytes], None],
        refuse: Callable[[Any, BaseException, str], None],
        keep: Keep = keep_nothing,
    ) -> tuple[list[Any], list[bytes]]:
        """Return the calls' futures and input segments.

        `define` is told mark and pickle of each function that is new; `refuse` is told the future, the error and the
        culprit of each call that does not pickle, which is left out; `keep` writes large arguments to a file.
        """
        items: list[Call] = []
        sound = []
        marks: dict[int, bytes] = {}
        for call in calls:
            mark = marks.get(id(call.fn))
            try:
                if mark is None:
                    mark = marks[id(call.fn)] = self._mark(call.fn, define)
            except Exception as error:
                refuse(call.future, error, f"while pickling the function {call.fn!r}")
                continue
            items.append((mark, call.args, call.kwargs or None))
            sound.append(call)
        if are_plain(items):
            for call, item in zip(sound, items, strict=True):
                self._count(call, item[0])
            return [call.future for call in sound], [block for _, block in input_blocks(items, keep)]
        sent, pickles = [], []
        for call, item in zip(sound, items, strict=True):
            try:
                pickles.append(dump_kept(item, keep))
                sent.append(call.future)
                self._count(call, item[0])
            except Exception as error:
                refuse(call.future, error, f"while pickling {_culprit(call)}")
        return sent, [block for _, block in pickled_blocks(pickles)]

    def over(self, mark: bytes) -> None:
        """Take in that a call is over that was sent with this mark."""
        if mark in self._uses:
            self._uses[mark] -= 1

    def forget_unused(self) -> list[bytes]:
        """Return the marks of functions that no call needs any more; who uses one again defines it again."""
        unused = [mark for mark, uses in self._uses.items() if not uses]
        for mark in unused:
            del self._uses[mark]
        self._defined.difference_update(unused)
        return unused

    def _count(self, call: Calling, mark: bytes) -> None:
        if mark in self._uses:
            call.future.mark = mark
            self._uses[mark] += 1

    def _mark(self, fn: Callable[..., Any], define: Callable[[bytes, bytes], None]) -> bytes:
        """Return the mark of a function, defined before the first call that names it."""
        does_last = is_importable(fn) and type(fn).__weakrefoffset__ > 0  # Ufuncs take no weak references.
        if does_last and (known := self._lasting.get(fn)) is not None:
            return known
        payload = pack_function(fn)
        mark = mark_of(payload)
        if mark not in self._defined:
            self._defined.add(mark)
            self.nbytes_defined += len(payload)
            define(mark, payload)
            if not does_last:
                self._uses[mark] = 0
        if does_last:
            self._lasting[fn] = mark
        return mark


def is_importable(fn: Callable[..., Any]) -> bool:
    """Whether a callable travels as the name of itself in a module.

    >>> is_importable(len), is_importable(lambda: 0), is_importable([].append)
    (True, False, False)
    """
    from cloudpickle import list_registry_pickle_by_value  # noqa: PLC0415  (30 ms, needed in clients only)

    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return False
    if any(module == each or module.startswith(f"{each}.") for each in list_registry_pickle_by_value()):
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is fn


def _culprit(call: Calling) -> str:
    """Name the part of the arguments that does not pickle."""
    named = [(f"args[{at}]", value) for at, value in enumerate(call.args)]
    for name, value in (*named, *call.kwargs.items()):
        try:
            dump(value)
        except Exception:
            path, part = culprit_of(value, name)
            return f"the argument {path}, a {type(part).__qualname__}"
    return "the arguments"
