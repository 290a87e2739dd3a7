"""Faults that a test cannot bring about without harm to the machine, held off by what the source may do at all."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import batchd
from tests.test_house import imports_in

PACKAGE = Path(batchd.__file__).parent
WALL = {"time.time", "datetime.now", "datetime.utcnow", "time.time_ns", "datetime.today"}
READ_BY_IT = {
    *("edge/pool.py", "edge/reports.py", "edge/journal.py", "edge/control.py", "edge/commits.py", "edge/template.py"),
    *("edge/strays.py", "edge/drafts.py"),
}
SHOWN = {
    "edge/lock.py",  # Since when a supervisor holds the journal, for people.
    "client/world.py",
    "worker/joblog.py",
    "worker/service.py",
}
"""Where people are told a time of day. Nothing here decides anything by it."""


def named(node: ast.expr) -> str:
    """Return the last two parts of a dotted name, '' for anything else."""
    match node:
        case ast.Attribute(ast.Name(id=of) | ast.Attribute(attr=of), attr):
            return f"{of}.{attr}"
    return ""


def calls(names: set[str]) -> set[str]:
    """Return the files that call one of these."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and named(node.func) in names:
                found.add(file.relative_to(PACKAGE).as_posix())
    return found


def test_nothing_that_decides_reads_the_wall_clock() -> None:
    deciding = ("core/", "supervisor/", "edge/", "worker/", "client/", "formats/")
    assert {file for file in calls(WALL) if file.startswith(deciding)} <= SHOWN


# --- What may wait for a lock of somebody else, or for the disk --------------------------------------------------

OF_LMDB: Final = {"open_db", "copy", "copyfd", "sync", "set_mapsize", "reader_check"}
"""Calls of an environment that wait for its writer, its table of readers, its disk or its own transactions; and so
does `begin` of a transaction that writes."""
OF_JOURNAL: Final = {"commit", "replace_spec", "replace_function"}
"""Calls of a journal that make these."""

WAITING: Final = {
    # In drafts, aside: nobody else knows of the folder yet.
    ("edge/drafts.py", "make_batch", "open_db"),
    ("edge/drafts.py", "make_batch", "begin"),
    ("edge/drafts.py", "make_batch", "sync"),
    # When a batch is opened. LMDB opens tables for a writer in a transaction that writes, and only in such a one.
    ("edge/journal.py", "BatchJournal._open_tables", "begin"),
    ("edge/journal.py", "BatchJournal._open_tables", "open_db"),
    # In a commit, or in one of the two that replace something.
    ("edge/journal.py", "BatchJournal._writing", "begin"),
    ("edge/journal.py", "BatchJournal.commit", "set_mapsize"),
    ("edge/journal.py", "BatchJournal.commit", "reader_check"),
    ("edge/journal.py", "BatchJournal.commit", "sync"),
    # Aside, for the lookout.
    ("edge/journal.py", "BatchJournal.clear_places", "reader_check"),
}
"""(file, function, call): everything in the supervisor's process that may wait within LMDB."""

WRITING: Final = {
    ("edge/commits.py", "CommitThread.make", "commit"),  # The loop's, with a deputy who takes over when it waits.
    ("edge/commits.py", "CommitThread._write", "commit"),  # The thread's, as the next.
    ("edge/commits.py", "CommitThread._trim", "commit"),
    ("supervisor/recovery.py", "_write", "commit"),  # Before anybody is served.
    ("supervisor/fulldisk.py", "FullDisk.forget", "commit"),  # When nothing runs any more.
    # Aside, with a batch that nobody has open.
    ("supervisor/taking.py", "take_up", "commit"),
    ("supervisor/taking.py", "take_up", "replace_function"),
    ("supervisor/taking.py", "replace_digest", "replace_spec"),
}
"""Who makes them: nothing on the way of a batch that runs, but the two that commit."""

OPENING: Final = {
    ("supervisor/recovery.py", "_charge"),
    ("supervisor/taking.py", "take_up"),
    ("supervisor/taking.py", "replace_digest"),
    ("edge/journal.py", "BatchJournal.create"),
}
"""Who opens a journal for writing, and so its tables."""

IN_HAND: Final = {"make", "take_up", "replace_digest", "set_aside", "jobs_in"}
"""What waits for the lock of a batch or for the disk, or reads much of it: done aside, and in the loop only named."""


class Call(NamedTuple):
    """A call, and the function it stands in."""

    file: str
    function: str
    node: ast.Call

    @property
    def receiver(self) -> str:
        """The last word before the name of what is called: of `self._env.sync()`, `_env`."""
        of = self.node.func.value if isinstance(self.node.func, ast.Attribute) else None
        return ast.unparse(of).rpartition(".")[2] if of is not None else ""

    @property
    def name(self) -> str:
        """What is called."""
        return ast.unparse(self.node.func).rpartition(".")[2]

    def has(self, word: str) -> bool:
        """Whether it is called with this keyword, unless that says False."""
        return any(each.arg == word and ast.unparse(each.value) != "False" for each in self.node.keywords)


def calls_in(file: str, node: ast.AST, function: str = "") -> Iterator[Call]:
    """Give every call, in functions by their names."""
    for child in ast.iter_child_nodes(node):
        inner = function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{function}.{child.name}".lstrip(".")
        elif isinstance(child, ast.Call):
            yield Call(file, function, child)
        yield from calls_in(file, child, inner)


def without_lambdas(source: str) -> ast.AST:
    """Return the tree of a source without what is called later, if it is."""

    class Cut(ast.NodeTransformer):
        def visit_Lambda(self, _: ast.Lambda) -> ast.AST:
            return ast.Constant(None)

    return ast.Module(Cut().visit(ast.parse(source)).body, [])


def supervisors_own() -> dict[str, str]:
    """Return the source of what the loop and its threads are made of, by file: not what workers and clients run."""
    found: dict[str, str] = {}
    todo = [f"{room}/{file.name}" for room in ("supervisor", "core") for file in (PACKAGE / room).glob("*.py")]
    while todo:
        path = todo.pop()
        if path in found or not path.startswith(("supervisor/", "core/", "edge/")) or not (PACKAGE / path).is_file():
            continue
        found[path] = (PACKAGE / path).read_text("utf-8")
        for each in imports_in(f"batchd/{path}", ast.parse(found[path])):
            if each.module.startswith("batchd."):
                module = each.module.removeprefix("batchd.").replace(".", "/")
                todo += [f"{module}.py", f"{module}/{each.name}.py"]
    return found


def waits(call: Call) -> bool:
    """Whether a call may wait within LMDB. Most are told by their names alone."""
    if call.name == "begin":
        return call.has("write") or bool(call.receiver and call.node.args)
    return call.name in OF_LMDB and (call.receiver in {"env", "_env"} or call.name not in {"copy", "sync"})


def writes(call: Call) -> bool:
    """Whether a call writes a journal. What saves, and its thread, are only told to write."""
    is_handing_over = call.receiver in {"_saving", "_commits"} or (call.file, call.receiver) == (
        "edge/commits.py",
        "self",
    )
    return call.name in OF_JOURNAL and not is_handing_over


@pytest.mark.covers("C2b")
def test_nothing_on_the_supervisors_way_waits_for_a_lock_of_others_but_in_the_places_named() -> None:
    own = supervisors_own()
    assert {"edge/journal.py", "edge/strays.py", "edge/commits.py", "edge/drafts.py"} <= own.keys()
    assert not {"edge/backup.py", "edge/watch.py"} & own.keys(), "a client's way"
    calls = [call for file, source in own.items() for call in calls_in(file, ast.parse(source))]
    assert {(call.file, call.function, call.name) for call in calls if waits(call)} == WAITING
    assert {(call.file, call.function, call.name) for call in calls if writes(call)} == WRITING
    writers = {(call.file, call.function) for call in calls if call.has("is_writer")}
    assert writers == OPENING


@pytest.mark.covers("C2b")
def test_the_loop_calls_nothing_that_is_to_be_done_aside() -> None:
    """It hands over a lambda or a partial. `_reopening` is one of these, and `make` is another's beginning."""
    own = {file: source for file, source in supervisors_own().items() if file.startswith("supervisor/")}
    found = {
        (file, call.function, call.name)
        for file, source in own.items()
        for call in calls_in(file, without_lambdas(source))
        if call.name in IN_HAND and not call.receiver
    }
    assert found == {("supervisor/taking.py", "make", "take_up"), ("supervisor/changes.py", "_reopening", "jobs_in")}
    named = {
        (file, node.id)
        for file, source in own.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and node.id in IN_HAND
    }
    assert {name for _, name in named} == IN_HAND, "one has another name by now"


def test_every_environment_is_called_one() -> None:
    """Or its calls would not be seen to be some that wait."""
    nodes = [node for source in supervisors_own().values() for node in ast.walk(ast.parse(source))]
    made = ("lmdb.open(", "open_environment(", "readers.acquire(")
    assigned = [node for node in nodes if isinstance(node, ast.Assign)]
    opened = [node for node in assigned if any(call in ast.unparse(node.value) for call in made)]
    assert {ast.unparse(node.targets[0]).rpartition(".")[2] for node in opened} == {"env", "_env", "(env, users)"}


@pytest.mark.parametrize(
    ("source", "is_seen"),
    [
        ("self._env.begin(write=True)", True),
        ("env.begin(write=is_writer)", True),
        ("env.begin(None, None, True)", True),
        ("env.begin(db=db)", False),
        ("begin(self._env)", False),
        ("env.begin(write=False, db=db)", False),
        ("journal._env.open_db(name, create=False)", True),
        ("self._env.copy(path)", True),
        ("held.reader_check()", True),
        ("self._env.sync(True)", True),
        ("facts.done.copy()", False),
        ("copy(facts)", False),
    ],
)
def test_a_call_that_waits_is_told_from_others(source: str, *, is_seen: bool) -> None:
    (call,) = calls_in("file", ast.parse(f"def f():\n    {source}"))
    assert (call.function, waits(call)) == ("f", is_seen)


def test_only_the_journal_begins_transactions_that_write() -> None:
    """And only the supervisor opens it for that: nobody waits for a lock that a client holds."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        path = file.relative_to(PACKAGE).as_posix()
        found |= {call.file for call in calls_in(path, ast.parse(file.read_text("utf-8"))) if call.has("write")}
    assert found == {"edge/journal.py", "edge/drafts.py"}


def test_the_supervisor_has_nothing_to_unpickle_with() -> None:
    for file in PACKAGE.rglob("*.py"):
        path = file.relative_to(PACKAGE).as_posix()
        if path.startswith(("supervisor/", "core/")) or path in READ_BY_IT:
            modules = {each.module for each in imports_in(f"batchd/{path}", ast.parse(file.read_text("utf-8")))}
            assert not modules & {"pickle", "cloudpickle", "batchd.formats.values"}, path
