"""Origins: the files of the modules that a pickled function names, so that it never becomes another function.

Programs that share a queue share its workers, which import as the program does that opened it: what the others call
`tasks` may be another file there. So the pickle of a function ends in the files that its modules were imported from
where it was made, and a worker that has other files under these names refuses it. Installed packages count by their
place in the installation, because an environment made anew is as good; the standard library does not count.
"""

import importlib
import json
import os
import struct
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from batchd.errors import TaskError
from batchd.worker.mainglobals import tag_of

_SIZE: Final = struct.Struct("<I")
_END: Final = b"/files1"
"""What they end in, behind their size. A pickle without them ends in a dot; the tag of a run comes later."""
_INSTALLED: Final = ("/site-packages/", "/dist-packages/")
_LIBRARY: Final = os.path.dirname(os.path.realpath(os.__file__)) + "/"  # noqa: PTH120  (a text like all of these)


def with_origins(payload: bytes, modules: Iterable[str]) -> bytes:
    """Return a pickle with the files of the modules it names.

    >>> with_origins(b"pickle.", ["json", "sys"])
    b'pickle.'
    """
    found = {name: files for name in modules if (files := _files_of(sys.modules.get(name)))}
    if not found:
        return payload
    told = json.dumps(found).encode()
    return payload + told + _SIZE.pack(len(told)) + _END


def check_origins(payload: bytes, batch: str) -> None:
    """Import the modules that a pickle names. Raises TaskError where they are others than those it was made with."""
    for name, files in _origins_of(payload).items():
        try:
            found = _files_of(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise  # The module is there, and asks for one that is not.
            found = ()
        if not set(found) & set(files):
            there = found[0] if found else f"no module from {(sys.path or [''])[0]} on"
            raise TaskError(
                f"{name} is {files[0]} where this job was handed over, and {there} in the workers of {batch}, which "
                "import as the program that opened it: programs that import differently need names of their own, "
                "Client(queue=...) or Executor(name=...)"
            )


def _origins_of(payload: bytes) -> dict[str, Sequence[str]]:
    stop = len(payload) - len(tag_of(payload)) - len(_END) - _SIZE.size
    if payload[stop + _SIZE.size :][: len(_END)] != _END:
        return {}  # Written before there were any, or of functions that none are told of.
    (size,) = _SIZE.unpack_from(payload, stop)
    found: dict[str, Sequence[str]] = json.loads(payload[stop - size : stop])
    return found


def _files_of(module: Any) -> Sequence[str]:
    """Return under which names a module's file is the same file; none for batchd's own and where there is none."""
    file = getattr(module, "__file__", None)
    is_ours = getattr(module, "__name__", "").partition(".")[0] == "batchd"
    return _names_of(file) if isinstance(file, str) and not is_ours else ()


@lru_cache(maxsize=1_024)
def _names_of(file: str) -> Sequence[str]:
    """Return the path as it was found, which stays when a link in it is moved, and the one behind all links."""
    real = os.path.realpath(file)
    for folder in _INSTALLED:
        if folder in real:
            return (folder[1:] + real.rpartition(folder)[2],)
    if real.startswith(_LIBRARY):
        return ()
    return tuple(dict.fromkeys((os.path.abspath(file), real)))  # noqa: PTH100
