"""What a command's --arg may be is read from the task's source; what only importing would tell is not refused."""

from pathlib import Path
from typing import Any

import pytest

from batchd.cli.signature import check_call
from batchd.errors import TaskError
from batchd.worker.task import Task


def check(folder: Path, source: str, **args: Any) -> None:
    path = folder / "mine.py"
    path.write_text(source)
    check_call(path, Task(str(path), "f"), args)


@pytest.mark.parametrize(
    ("source", "args", "message"),
    [
        ("def f(x, *, times=1): ...", {"tmes": 2}, r"f\(x, \*, times=1\) has no tmes .*: --arg takes times$"),
        ("def f(x): ...", {"times": 2}, "it takes no --arg"),
        ("def f(x, times=1): ...", {"x": 2}, "is given x by the input already: --arg takes times"),
        ("def f(x, **more): ...", {"x": 2}, "is given x by the input already"),
        ("def f(x, y, /): ...", {"y": 2}, "has no y for --arg"),
        ("def f(x, width, height=1): ...", {}, "needs width: add --arg width=VALUE"),
        ("def f(x, *, width, height): ...", {"height": 2}, "needs width"),
        ("async def f(x, width): ...", {}, "needs width"),
        ("def f(): ...", {}, "takes no item"),
        ("async def f(x): ...", {}, r"f\(x\) is async, .* calls asyncio\.run$"),
        ("def f(x):\n    if x:\n        y = yield x", {}, "yields, .* returns a list"),
        ("def f(x):\n    return [(yield from x)]", {}, "yields"),
    ],
)
def test_what_surely_fails_is_refused(tmp_path: Path, source: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        check(tmp_path, source, **args)


@pytest.mark.parametrize(
    ("source", "args"),
    [
        ("def f(x, *, times=1): ...", {"times": 2}),
        ("def f(x, /, **more): ...", {"x": 2}),
        ("def f(x, **more): ...", {"times": 2}),
        ("def f(*all, times): ...", {"times": 2}),
        ("def f(x, y=1, /): ...", {}),
        ("def f(x): ...\nimport functools\nf = functools.partial(f)", {"times": 2}),
        ("import functools\n@functools.cache\ndef f(x): ...", {"times": 2}),
        ("if 1:\n    def f(x): ...\nelse:\n    def f(x, times): ...", {"times": 2}),
        ("def f(x): ...\nfrom elsewhere import *", {"times": 2}),
        ("def f(x): ...\nfrom elsewhere import g as f", {"times": 2}),
        ("def f(x): ...\nglobals()['f'] = max", {"times": 2}),
        ("def f(x): ...\ndef swap():\n    global f\n    f = max\nswap()", {"times": 2}),
        ("def f(x): ...\nf.__defaults__ = (1,)", {"times": 2}),
        ("class f:\n    def __new__(cls, x): ...", {"times": 2}),
        ("f = print", {"times": 2}),
        ("def f(x: ...", {"times": 2}),
        ("def f(x):\n    def g(): yield x\n    return list(g())", {}),
        ("def f(x):\n    async def g(): return x\n    return run(g(), lambda: (yield))", {}),
    ],
)
def test_what_could_work_is_not(tmp_path: Path, source: str, args: dict[str, Any]) -> None:
    check(tmp_path, source, **args)


def test_a_module_without_source_is_not_looked_into(tmp_path: Path) -> None:
    check_call(None, Task("math", "sqrt"), {"times": 2})
    check_call(tmp_path / "gone.py", Task("gone", "f"), {"times": 2})
    check_call(tmp_path / "fast.so", Task("fast", "f"), {"times": 2})
