"""The world a call from Python runs in, as the journal and the workers are told of it.

The command line has its own way of naming a task (cli/run.py); here a task is a callable that the caller holds.
"""

import os
import shlex
import sys
import types
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from batchd.client.connection import request
from batchd.client.throwaway import throwaway_folder
from batchd.core.facts import BatchFacts
from batchd.edge.folder import journal_folder, open_folder
from batchd.edge.journal import BatchJournal
from batchd.edge.shelf import open_batch
from batchd.edge.template import KeySpec
from batchd.errors import CodeChanged, UsageError
from batchd.formats.tables import TASK_MARK
from batchd.settings import NAME_CHARS_MAX
from batchd.worker.calls import Bundle, pack_bundle

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def check_name(name: str | None) -> None:
    """Refuse a name that a batch could not be asked for by, or that would spoil whatever shows it. Raises UsageError.

    >>> check_name("nightly")
    """
    if name is None:
        return  # One is made up.
    if name in {"", "last"}:
        raise UsageError(f"a batch cannot be asked for by the name {name!r}: choose another")
    if not name.isprintable():
        raise UsageError(f"the name {name!r:.200} holds what no terminal shows: choose another")
    if len(name) > NAME_CHARS_MAX:
        raise UsageError(f"a name of {len(name):,} characters is too long: choose one of {NAME_CHARS_MAX} at most")


def library_folder(journal: str | os.PathLike[str] | None, name: str | None) -> tuple[Path, bool]:
    """Return (folder, whether it is thrown away): a name or a folder asks for a journal that stays."""
    check_name(name)
    if journal is None and name is None:
        return throwaway_folder(), True
    return open_folder(journal_folder(os.fspath(journal) if journal is not None else None, os.environ)), False


def library_spec(
    name: str, *, is_named: bool, task: str, call: str, kind: str, digest: str, is_throwaway: bool
) -> dict[str, Any]:
    """Return the specification of a batch whose task is a callable of this process. Its name may be refused."""
    check_name(name if is_named else None)
    spec = {
        "name": name,
        "is_named": is_named,
        "task": ["", task],
        "call": call,
        "input": {"kind": kind},
        "args": {},
        "source": "",
        "digest": digest,
        "cwd": str(Path.cwd()),
        "sys_path": import_path(),
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "python": PYTHON,
        "durability": "process" if is_throwaway else "disk",
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
    }
    return {**spec, "is_throwaway": True} if is_throwaway else spec


def library_key(payload: bytes) -> KeySpec:
    """Return how workers of such a batch start: in the environment of this process."""
    return KeySpec(
        task=("", "callable"),
        sys_path=tuple(import_path()),
        cwd=str(Path.cwd()),
        environ=dict(os.environ),
        executable=sys.executable,
        payload=payload,
    )


def stored_key(journal: BatchJournal, *, is_fresh: bool = False) -> KeySpec:
    """Return how workers of a batch start again: as the journal says, in the environment of this process."""
    payload = b"" if journal.spec["task"][0] else journal.function(TASK_MARK)
    return key_of_spec(journal.spec, is_fresh=is_fresh, payload=payload)


def key_of_spec(spec: Mapping[str, Any], *, is_fresh: bool, payload: bytes = b"") -> KeySpec:
    """Return how workers of a batch of this specification start, in the environment of this process."""
    module, name = spec["task"]
    return KeySpec(
        task=(module, name),
        sys_path=tuple(spec["sys_path"]),
        cwd=spec["cwd"],
        environ=dict(os.environ),
        executable=sys.executable,
        is_fresh=is_fresh,
        payload=payload,
    )


def import_path() -> list[str]:
    """Return where this process imports from, with nothing relative in it."""
    return list(dict.fromkeys(str(Path(each).absolute()) for each in sys.path))


def check_python(spec: Mapping[str, Any], batch: str) -> None:
    """Refuse a batch whose values another Python pickled. Raises UsageError."""
    if spec.get("python") != PYTHON:
        raise UsageError(
            f"batch {batch} was written by Python {spec.get('python')}, this is {PYTHON}: its values may not read "
            "back; use that Python, or another name"
        )


def settle_known(folder: Path, batch: str, spec: dict[str, Any], *, accept_code: bool) -> BatchFacts:
    """Find out whether the batch that is there is the one that `spec` means; return its facts. Raises UsageError."""
    journal = open_batch(folder / "batches" / batch)
    known, facts = journal.spec, journal.facts
    journal.close()
    check_python(known, batch)
    if known["input"].get("kind") != spec["input"]["kind"] or known.get("call") != spec["call"]:
        raise UsageError(f"batch {spec['name']} was made in another way: choose another name")
    if known["digest"] != spec["digest"]:
        if not accept_code:
            raise CodeChanged(
                f"{spec['task'][1]} changed since batch {spec['name']} was started: accept_code=True goes on with "
                "the new code (results that are there stay), another name starts again"
            )
        request(folder, "accept_code", batch=batch, digest=spec["digest"])
    return facts


def warn(text: str) -> None:
    """Say what waits or went wrong where nothing is drawn: as a warning of the logger `batchd`."""
    import logging  # noqa: PLC0415  (the command line draws, and does not load it)

    logging.getLogger("batchd").warning(text)


def name_of(function: Callable[..., Any]) -> str:
    """Return what people call a callable.

    >>> name_of(partial(max, 3)), name_of(str.upper)
    ('max', 'str.upper')
    """
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def pack_task(function: Callable[..., Any]) -> bytes:
    """Return the bundle of a batch whose jobs are calls of one function. Raises what pickling raises."""
    try:
        return pack_bundle(Bundle(function))
    except Exception as error:
        error.add_note(f"while pickling the function {name_of(function)}")
        raise


def modules_of(function: Callable[..., Any] | None) -> tuple[str, ...]:
    """Return the modules worth importing before the workers are made: the function's own, or those it names."""
    module = getattr(function, "__module__", None)
    if module not in {None, "__main__", "builtins"}:
        return (str(module),)
    code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    used = [names.get(name) for name in getattr(code, "co_names", ())]
    return tuple(sorted({each.__name__ for each in used if isinstance(each, types.ModuleType)}))
