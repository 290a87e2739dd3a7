"""The house keeps its own rules: the floors, the pure rooms, the sizes and the names, read from the source.

Each rule is a function from a path and its source to complaints, so that every one of them is also shown a bad
example and seen to complain. The tables say what the rules are; ARCHITECTURE.md says why.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import batchd

FLOORS: Final = {
    **dict.fromkeys(("errors", "settings", "units"), 0),
    **dict.fromkeys(("core", "formats"), 1),
    **dict.fromkeys(("worker",), 2),
    **dict.fromkeys(("edge", "pools"), 3),
    **dict.fromkeys(("supervisor", "client", "joberrors"), 4),
    **dict.fromkeys(
        (
            "executor",
            "engine",
            "mapping",
            "flow",
            "intake",
            "packing",
            "door",
            "batch",
            "standing",
            "application",
            "asyncbatch",
            "asyncclient",
            "meter",
            "view",
            "joblib",
            "sources",
            "sinks",
            "testing",
        ),
        5,
    ),
    **dict.fromkeys(("cli", "web"), 6),
}
SIDEWAYS: Final = {
    ("units", "errors"),
    ("units", "settings"),
    ("joblib", "executor"),
    ("client", "joberrors"),
    ("executor", "engine"),
    ("engine", "packing"),
    ("packing", "intake"),
    ("mapping", "flow"),
    ("mapping", "intake"),
    ("flow", "intake"),
    ("batch", "door"),
    ("batch", "intake"),
    ("batch", "mapping"),
    ("batch", "standing"),
    ("application", "batch"),
    ("application", "engine"),
    ("application", "mapping"),
    ("asyncbatch", "batch"),
    ("asyncbatch", "standing"),
    ("asyncbatch", "mapping"),
    ("asyncclient", "application"),
    ("asyncclient", "asyncbatch"),
    ("asyncclient", "engine"),
    ("batch", "flow"),
    ("mapping", "view"),
    ("mapping", "meter"),
    ("flow", "view"),
    ("meter", "view"),
}  # On one floor, and meant.
FREE_ROOMS: Final = {"__init__", "__main__"}  # The front door may open every room, as it is needed.
ALONE_ROOMS: Final = {"examples"}  # Tasks a user could have written: of batchd they import the front door.
PURE_ROOMS: Final = {"core", "formats"}
IMPURE: Final = frozenset(
    {"os", "time", "random", "socket", "threading", "subprocess", "logging", "lmdb", "psutil", "datetime", "signal"}
)
PRINTING_ROOMS: Final = {"cli", "examples"}
EMPTY_NAMES: Final = {"utils", "common", "helpers", "manager", "base", "types", "handlers"}
FUNCTION_LINES_MAX: Final = 70
FILE_LINES_MAX: Final = 500
LAZY: Final = ("lmdb", "psutil", "rich", "cloudpickle", "argparse", "typing")

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = sorted((ROOT / "batchd").rglob("*.py"))
TESTS: Final = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS: Final = sorted((ROOT / "benchmarks").rglob("*.py"))

Rule = Callable[[str, str], list[str]]


class Import(NamedTuple):
    """One name that a module imports: the module it comes from, and the name if there is one."""

    line: int
    module: str
    name: str | None


# --- The rules: (path, source) -> complaints -------------------------------------------------------------------


def purity(path: str, source: str) -> list[str]:
    """The pure rooms import nothing that has a clock, a disk, a process or a die."""
    if room_of(path) not in PURE_ROOMS:
        return []
    tops = [(found.line, found.module.partition(".")[0]) for found in imports_in(path, ast.parse(source))]
    return [f"{path}:{line} imports {top}, and {room_of(path)} is pure" for line, top in tops if top in IMPURE]


def floors(path: str, source: str) -> list[str]:
    """Imports go down, or stay in the room. What only the type checker reads counts too."""
    room = room_of(path)
    if room in FREE_ROOMS:
        return []
    if room not in FLOORS and room not in ALONE_ROOMS:
        return [f"{path} stands on no floor; give {room} one in FLOORS"]
    found = imports_in(path, ast.parse(source))
    return [complaint for each in found if (complaint := floor_complaint(path, each))]


def sizes(path: str, source: str) -> list[str]:
    """Functions fit a screen, files fit a head."""
    complaints = []
    if (lines := len(source.splitlines())) > FILE_LINES_MAX:
        complaints.append(f"{path} has {lines} lines; {FILE_LINES_MAX} is the limit")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                where = f"{path}:{node.lineno} {node.name}"
                complaints.append(f"{where} has {lines} lines; {FUNCTION_LINES_MAX} is the limit")
    return complaints


def printing(path: str, source: str) -> list[str]:
    """Only the command line and the examples print."""
    if room_of(path) in PRINTING_ROOMS:
        return []
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [f"{path}:{call.lineno} prints" for call in calls if ast.unparse(call.func) in {"print", "builtins.print"}]


def names(path: str, source: str) -> list[str]:
    """A module's name says what is inside."""
    parts = Path(path).with_suffix("").parts
    return [f"{path}: {part!r} says nothing about what is inside" for part in parts if part in EMPTY_NAMES]


def sleeping(path: str, source: str) -> list[str]:
    """A test waits for an event or moves a clock; it never hopes that so much time will do."""
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    complaints = [f"{path}:{call.lineno} sleeps" for call in calls if ast.unparse(call) == "time.sleep"]
    found = imports_in(path, tree)
    return complaints + [f"{path}:{each.line} sleeps" for each in found if each[1:] == ("time", "sleep")]


def error_sentences(path: str, source: str) -> list[str]:
    """An error's docstring is the one sentence that a user reads, and perhaps an example of it."""
    sentence = re.compile(r"[A-Z](?:[^.!?\n]|[.!?](?=\w))*\.(\n\n>>> .*)?", re.DOTALL)
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    wrong = [node for node in classes if not sentence.fullmatch(ast.get_docstring(node) or "")]
    return [f"{path}:{node.lineno} the docstring of {node.name} is not one sentence" for node in wrong]


def cycles(sources: dict[str, str]) -> list[str]:
    """No module needs itself to be loaded. Imports for the type checker and inside functions do not count."""
    modules = {module_of(path): path for path in sources}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = imports_in(path, ast.parse(sources[path]), at_load_only=True)
        # A name may be a module of its own, or something inside one.
        targets = [
            f"{each.module}.{each.name}" if f"{each.module}.{each.name}" in modules else each.module for each in found
        ]
        graph[module] = modules.keys() & set(targets)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["a cycle of imports: " + " <- ".join(error.args[1])]
    return []


# --- How the source is read ------------------------------------------------------------------------------------


def module_of(path: str) -> str:
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(path: str) -> str:
    """Return the file or folder directly below batchd that holds `path`."""
    return Path(path).with_suffix("").parts[1]


def imports_in(path: str, tree: ast.AST, *, at_load_only: bool = False) -> Iterator[Import]:
    for node in nodes_run_at_load(tree) if at_load_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                here = Path(path).parts[: -node.level]
                module = ".".join([*here, module] if module else here)
            yield from (Import(node.lineno, module, alias.name) for alias in node.names)


def nodes_run_at_load(node: ast.AST) -> Iterator[ast.AST]:
    """Walk without functions' bodies, and without what stands under TYPE_CHECKING."""
    yield node
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children = list(node.orelse)
    for child in children:
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from nodes_run_at_load(child)


def floor_complaint(path: str, found: Import) -> str | None:
    top, *inner = found.module.split(".")
    if top != "batchd":
        return None
    room, where = room_of(path), f"{path}:{found.line}"
    if room in ALONE_ROOMS:
        if (found.module, found.name) == ("batchd", None):
            return None
        return f"{where} imports {found.module}, and {room} imports of batchd only the front door"
    target = inner[0] if inner else found.name
    if target == "__version__":
        return None
    if target not in FLOORS:
        return f"{where} imports {target or 'the front door'}; import a name from the module that holds it"
    if FLOORS[target] < FLOORS[room] or target == room or (room, target) in SIDEWAYS:
        return None
    return f"{where} imports {target} (floor {FLOORS[target]}) from {room} (floor {FLOORS[room]})"


def sources_of(files: list[Path]) -> dict[str, str]:
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}


# --- The house as it stands ------------------------------------------------------------------------------------


HOUSE: Final[dict[Rule, list[Path]]] = {
    purity: PACKAGE,
    floors: PACKAGE,
    printing: PACKAGE,
    names: PACKAGE,
    sizes: PACKAGE + TESTS + BENCHMARKS,
    sleeping: TESTS,
    error_sentences: [ROOT / "batchd/errors.py"],
}


@pytest.mark.parametrize("rule", HOUSE)
def test_the_house_keeps_the_rule(rule: Rule) -> None:
    complaints = [each for path, source in sources_of(HOUSE[rule]).items() for each in rule(path, source)]
    assert not complaints, "\n".join(complaints)


def test_no_module_needs_itself() -> None:
    assert cycles(sources_of(PACKAGE)) == []


def loaded_after(statement: str) -> set[str]:
    """Return which of the lazy packages a fresh interpreter holds after `statement`."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(LAZY) & set(run.stdout.split())


def test_importing_batchd_is_cheap() -> None:
    bare = loaded_after("pass")
    assert loaded_after("import batchd") == bare
    assert loaded_after("import batchd, psutil") >= bare | {"psutil"}


def test_asking_for_help_is_cheap() -> None:
    told = "import batchd.cli.main as cli; cli.main(['--help']); cli.main(['--version'])"
    assert loaded_after(told) == loaded_after("pass")


# --- What users may call is shown ------------------------------------------------------------------------------

UNSHOWN: Final = {
    "Batch.let_go": "Client lets go of its batches together",
    "Batch.open": "Client opens its batches",
    "Batch.release": "and closes what they have open",
    "Batch.steps": "AsyncBatch reads by it",
    "Client.hand_over": "AsyncClient hands over by it",
    "Client.let_go": "AsyncClient lets go by it, without waiting",
    "FailureGroup.add": "the journal's failures are counted by it",
}
"""Public to batchd's own modules alone, and why."""


def examples_missing(name: str, thing: object) -> Iterator[str]:
    """Give what has no example: a class or function, and the methods and properties a class has of its own."""
    if not callable(thing) and not isinstance(thing, property):
        return
    if ">>> " not in (getattr(thing, "__doc__", None) or ""):
        yield name
    for inner, each in vars(thing).items() if isinstance(thing, type) else ():
        found = each.__func__ if isinstance(each, classmethod | staticmethod) else each
        if not inner.startswith("_") and not isinstance(found, type):
            yield from examples_missing(f"{name}.{inner}", found)


def test_every_public_name_has_an_example() -> None:
    assert set(dir(batchd)) >= set(batchd.__all__)  # Also before any of them is loaded.
    public = [(name, getattr(batchd, name)) for name in batchd.__all__]
    missing = {each for name, thing in public for each in examples_missing(name, thing)}
    assert missing - UNSHOWN.keys() == set(), "what has no example is not public, or not finished"
    assert all(hasattr(getattr(batchd, name.split(".")[0]), name.split(".")[1]) for name in UNSHOWN)


def test_a_missing_example_is_seen() -> None:
    class Shown:
        """It has one.

        >>> Shown()
        """

        def quiet(self) -> None:
            """Say nothing."""

        @property
        def bare(self) -> int:
            return 0

        def _own(self) -> None: ...

    assert list(examples_missing("Shown", Shown)) == ["Shown.quiet", "Shown.bare"]


# --- Every rule can fail ---------------------------------------------------------------------------------------


def lines(count: int) -> str:
    return "x = 1\n" * count


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (purity, "batchd/core/job.py", "import os.path"),
        (purity, "batchd/formats/frame.py", "def f():\n    from time import monotonic"),
        (floors, "batchd/core/job.py", "from batchd.formats import frame"),
        (floors, "batchd/core/job.py", "from batchd import edge"),
        (floors, "batchd/core/job.py", "from batchd import current_job"),
        (floors, "batchd/core/job.py", "import batchd"),
        (floors, "batchd/core/job.py", "from ..edge import journal"),
        (floors, "batchd/core/job.py", "from .. import edge"),
        (floors, "batchd/worker/main.py", "def f():\n    import batchd.edge.pool"),
        (floors, "batchd/edge/pool.py", "if TYPE_CHECKING:\n    from batchd.client import Client"),
        (floors, "batchd/client.py", "from batchd.sources import lines"),
        (floors, "batchd/client.py", "from batchd.testing import Simulator"),
        (floors, "batchd/supervisor.py", "from batchd.client import Client"),
        (floors, "batchd/cli/main.py", "from batchd.unknown import thing"),
        (floors, "batchd/examples/hello.py", "from batchd.errors import BatchdError"),
        (floors, "batchd/attic.py", ""),
        (sizes, "tests/test_long.py", lines(FILE_LINES_MAX + 1)),
        (sizes, "batchd/long.py", "async def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
        (printing, "batchd/client.py", "def f():\n    print('hello')"),
        (names, "batchd/edge/utils.py", ""),
        (names, "batchd/common/pool.py", ""),
        (sleeping, "tests/unit/test_a.py", "import time\ntime.sleep(1)"),
        (sleeping, "tests/unit/test_a.py", "from time import sleep"),
        (error_sentences, "batchd/errors.py", "class A(Exception):\n    pass"),
        (error_sentences, "batchd/errors.py", 'class A(Exception):\n    """Lost. Try again."""'),
        (error_sentences, "batchd/errors.py", 'class A(Exception):\n    """Lost.\n\n    Try again."""'),
    ],
)
def test_a_broken_rule_is_seen(rule: Rule, path: str, source: str) -> None:
    assert len(rule(path, source)) == 1


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (purity, "batchd/edge/pool.py", "import os"),
        (purity, "batchd/core/job.py", "import operator"),
        (floors, "batchd/core/job.py", "from batchd.core.ranges import Ranges\nfrom . import lease\nimport os"),
        (floors, "batchd/units.py", "from batchd.errors import UsageError"),
        (floors, "batchd/cli/main.py", "from batchd import __version__, settings\nfrom batchd.sources import lines"),
        (floors, "batchd/__init__.py", "from batchd.client import Client"),
        (floors, "batchd/examples/hello.py", "import batchd"),
        (sizes, "batchd/full.py", lines(FILE_LINES_MAX)),
        (sizes, "batchd/full.py", "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1)),
        (printing, "batchd/cli/main.py", "print('hello')"),
        (printing, "batchd/client.py", "pprint('hello')"),
        (names, "batchd/edge/journal.py", ""),
        (sleeping, "tests/unit/test_a.py", "code = 'import time; time.sleep(1)'"),
        (error_sentences, "batchd/errors.py", 'class A(Exception):\n    """The file journal.json is lost."""'),
        (error_sentences, "batchd/errors.py", 'class A(Exception):\n    """Lost.\n\n    >>> A()\n    """'),
    ],
)
def test_a_kept_rule_is_not_complained_about(rule: Rule, path: str, source: str) -> None:
    assert rule(path, source) == []


@pytest.mark.parametrize(
    "sources",
    [
        {"batchd/a.py": "from batchd.b import f", "batchd/b.py": "from batchd import a"},
        {"batchd/a.py": "import batchd.a"},
        {"batchd/core/__init__.py": "from batchd.core.a import A", "batchd/core/a.py": "from batchd.core import B"},
        {
            "batchd/a.py": "class A:\n    from . import b",
            "batchd/b.py": "try:\n    import batchd.a\nfinally:\n    pass",
        },
    ],
)
def test_a_cycle_is_seen(sources: dict[str, str]) -> None:
    assert len(cycles(sources)) == 1


@pytest.mark.parametrize(
    "back",
    [
        "def f():\n    from batchd.a import g",
        "if TYPE_CHECKING:\n    from batchd.a import g",
        "if typing.TYPE_CHECKING:\n    import batchd.a\nelse:\n    import os",
    ],
)
def test_an_import_that_waits_makes_no_cycle(back: str) -> None:
    assert cycles({"batchd/a.py": "import batchd.b", "batchd/b.py": back}) == []
