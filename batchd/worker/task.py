"""Tasks: how a callable is named, found without importing it, and loaded.

Finding is for clients, which must not run the user's module; loading is for the template process.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from hashlib import blake2b
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from batchd.errors import TaskError


class Task(NamedTuple):
    """A callable by name. `module` is dotted, or the absolute path of a file that ends in .py."""

    module: str
    name: str

    @property
    def is_file(self) -> bool:
        """Whether the module is given as a file."""
        return self.module.endswith(".py")

    @property
    def is_pickled(self) -> bool:
        """Whether the name is for people only, and the callable travels as a bundle (worker/calls.py)."""
        return not self.module

    def __str__(self) -> str:
        return f"{self.module}:{self.name}" if self.module else self.name


def parse(text: str, folder: Path) -> Task:
    """Return the task `text` names. Raises TaskError.

    >>> parse("package.module:function", Path("/"))
    Task(module='package.module', name='function')
    """
    module, colon, name = text.rpartition(":")
    if not colon or not module or not all(part.isidentifier() for part in name.split(".")):
        raise TaskError(f"{text!r} is not a task: write package.module:function or path/file.py:function")
    if module.endswith(".py"):
        path = (folder / module).resolve()
        if not path.is_file():
            raise TaskError(f"there is no file {path}: check the path before the colon of {text!r}")
        if path.stem in sys.stdlib_module_names:
            raise TaskError(f"{path.name} has the name of a module of Python itself: rename the file")
        if "." in path.stem:
            raise TaskError(f"{path.name} would be imported as {path.stem!r}, part of a package: rename the file")
        return Task(str(path), name)
    if not all(part.isidentifier() for part in module.split(".")):
        raise TaskError(f"{module!r} is neither a module nor a .py file: write package.module:function")
    return Task(module, name)


def find_source(task: Task, path: Sequence[str]) -> Path | None:
    """Return the file that defines the task's module, without importing anything; None when it has none.

    Raises TaskError when there is no such module on `path`.
    """
    if task.is_file:
        return Path(task.module)
    search: Sequence[str] = path
    spec = None
    parts = task.module.split(".")
    for depth, part in enumerate(parts):
        # By its last name alone: the spec of a package without __init__ asks for its parent, which is not imported.
        spec = PathFinder.find_spec(part, search) if search else None
        if spec is None and depth == 0:
            spec = _from_hooks(part)
        if spec is None:
            raise TaskError(
                f"there is no module {'.'.join(parts[: depth + 1])!r} on the import path; run from the folder that "
                f"holds it, or name the file: path/{parts[-1]}.py:{task.name}"
            )
        search = list(spec.submodule_search_locations or ())
    return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None


def _from_hooks(name: str) -> ModuleSpec | None:
    """Ask those who find modules elsewhere than on the path: built-in ones, and editable installs."""
    finders = [finder for finder in sys.meta_path if finder is not PathFinder]
    return next((spec for finder in finders if (spec := finder.find_spec(name, None)) is not None), None)


def source_digest(source: Path | None) -> str:
    """Return the digest that tells whether the task's code changed, '' when there is no source."""
    if source is None:
        return ""
    try:
        return blake2b(source.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise TaskError(f"the task's file {source} cannot be read ({error.strerror}): put it back") from None


def load(task: Task) -> Callable[..., Any]:
    """Import the task's module and return the callable. Raises TaskError with the user's own traceback."""
    try:
        module = _import_file(Path(task.module)) if task.is_file else importlib.import_module(task.module)
    except BaseException as error:
        text = "".join(traceback.format_exception(error.with_traceback(_behind_import(error))))
        raise TaskError(f"importing {task.module} failed; its own traceback:\n{text.rstrip()}") from None
    found: Any = module
    for part in task.name.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name))]
            known = f"; it has {', '.join(names[:12])}" if names else ""
            raise TaskError(f"{task.module} has no {task.name!r}{known}")
        found = getattr(found, part)
    if not callable(found):
        raise TaskError(f"{task} is {type(found).__name__}, not callable: name a function of one argument")
    return found  # type: ignore[no-any-return]


def _behind_import(error: BaseException) -> Any:
    trace = error.__traceback__
    while trace is not None and (
        "importlib" in trace.tb_frame.f_code.co_filename or trace.tb_frame.f_code.co_filename == __file__
    ):
        trace = trace.tb_next
    return trace


def _import_file(path: Path) -> Any:
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018  (a .py file always has both)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
