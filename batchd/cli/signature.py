"""Whether a task can be called as the command says, found out by reading its source: nothing of it is run.

The one idea: only what surely fails every job is refused. A function that is decorated, defined twice or behind a
condition, or may be replaced while its module is imported, has a signature that only importing would tell.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from batchd.errors import TaskError
from batchd.worker.task import Task

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_REBINDING: Final = frozenset({"globals", "vars", "exec", "setattr", "modules", "__dict__"})
"""Who uses these names may bind any name."""


def check_call(source: Path | None, task: Task, args: Mapping[str, Any]) -> None:
    """Refuse a call with one item and `args` that the task's signature does not allow. Raises TaskError.

    >>> check_call(None, Task("json", "loads"), {})
    """
    function = _function(source, task.name)
    trouble = _trouble(function.args, args) or _unresolved(function) if function is not None else ""
    if function is not None and trouble:
        raise TaskError(f"every job would fail: {task.name}({ast.unparse(function.args)}) {trouble}")


def _trouble(taken: ast.arguments, args: Mapping[str, Any]) -> str:
    """Return why a function of these parameters cannot be called with an item and `args`, '' if it can."""
    by_place = [each.arg for each in (*taken.posonlyargs, *taken.args)]
    if not by_place and not taken.vararg:
        return "takes no item: a task is a function of one argument, and of what --arg gives"
    by_name = [each.arg for each in (*taken.args, *taken.kwonlyargs) if each.arg not in by_place[:1]]
    known = f"--arg takes {', '.join(by_name)}" if by_name else "it takes no --arg"
    for name in args:
        if name in by_place[:1] and not taken.posonlyargs:
            return f"is given {name} by the input already: {known}"
        if name not in by_name and not taken.kwarg:
            return f"has no {name} for --arg {name}=...: {known}"
    needed = by_place[1 : len(by_place) - len(taken.defaults)]
    needed += [each.arg for each, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True) if default is None]
    missing = [name for name in needed if name not in args or name not in by_name]
    return f"needs {', '.join(missing)}: add --arg {missing[0]}=VALUE" if missing else ""


def _unresolved(function: _Function) -> str:
    """Return why what the function returns is no result yet, '' if it may be one."""
    if isinstance(function, ast.AsyncFunctionDef):
        return "is async, and no worker awaits it: name a function that calls asyncio.run"
    inner: list[ast.AST] = list(function.body)
    while inner:
        node = inner.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return "yields, and a generator is no result: name a function that returns a list of what it yields"
        if not isinstance(node, _Function | ast.Lambda | ast.ClassDef):  # They yield for themselves.
            inner += ast.iter_child_nodes(node)
    return ""


def _function(source: Path | None, name: str) -> _Function | None:
    """Return the definition that surely is what the name of the module stands for."""
    if source is None or source.suffix != ".py":
        return None
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None  # Importing it will say what is wrong.
    found = [each for each in tree.body if isinstance(each, _Function) and each.name == name]
    if len(found) != 1 or found[0].decorator_list or list(_bindings(tree, name)) != [name]:
        return None
    return found[0]


def _bindings(tree: ast.Module, name: str) -> Iterator[str]:
    """Give whatever in the module may bind the name, wherever it stands; its one definition too."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=bound) | ast.AsyncFunctionDef(name=bound) | ast.ClassDef(name=bound):
                names = [bound]
            case ast.Attribute(value=ast.Name(id=bound), attr=attr, ctx=ast.Store()) if attr.startswith("__"):
                names = [bound]  # Such as its defaults.
            case ast.Name(id=bound, ctx=ast.Store() | ast.Del()) | ast.Attribute(attr=bound, ctx=ast.Store()):
                names = [bound]
            case ast.Global(names=bound_all):
                names = bound_all
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names = [name if each.name == "*" else each.asname or each.name for each in aliases]
            case ast.ExceptHandler(name=str(bound)) | ast.MatchAs(name=str(bound)) | ast.MatchStar(name=str(bound)):
                names = [bound]
            case ast.Name(id=used) | ast.Attribute(attr=used) if used in _REBINDING:
                names = [name]
            case _:
                continue
        yield from (each for each in names if each == name)
