"""Tasks: found without running them, loaded with the user's own traceback, named in full when they are missing."""

import importlib
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from batchd.errors import TaskError
from batchd.worker.task import Task, find_source, load, parse, source_digest


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules on the import path; what they leave in sys.modules is taken out again."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: Path, text: str = "def run(item):\n    return item\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- Named -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("module:run", Task("module", "run")),
        ("a.b.c:Class.method", Task("a.b.c", "Class.method")),
        ("_private:\u00e9t\u00e9", Task("_private", "\u00e9t\u00e9")),
    ],
)
def test_a_dotted_name_is_taken_as_it_stands(text: str, task: Task) -> None:
    assert parse(text, Path("/nowhere")) == task
    assert str(task) == text
    assert not task.is_file


@pytest.mark.parametrize("text", ["module", "module:", ":run", "module:a b", "module:a..b", "module:1a", "", ":"])
def test_what_is_no_task_is_told_how_one_is_written(text: str) -> None:
    with pytest.raises(TaskError, match=re.escape(f"{text!r} is not a task: write package.module:function")):
        parse(text, Path("/"))


@pytest.mark.parametrize("module", ["a-b", "a..b", "a.1b", "a/b", "C:\\x"])
def test_what_is_no_module_is_said_to_be_none(module: str) -> None:
    with pytest.raises(TaskError, match=r"neither a module nor a \.py file"):
        parse(f"{module}:run", Path("/"))


def test_a_file_is_made_absolute(tmp_path: Path) -> None:
    file = write(tmp_path / "sub" / "mine.py")
    task = parse("sub/mine.py:run", tmp_path)
    assert task == Task(str(file.resolve()), "run")
    assert task.is_file
    assert parse(f"{file}:run", Path("/")) == task


def test_a_file_that_is_not_there_is_named_in_full(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    for name in ("missing.py", "folder.py"):
        with pytest.raises(TaskError, match=f"there is no file {re.escape(str(tmp_path.resolve() / name))}"):
            parse(f"{name}:run", tmp_path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("json.py", "json.py has the name of a module of Python itself: rename the file"),
        ("v1.2.py", "v1.2.py would be imported as 'v1.2', part of a package: rename the file"),
    ],
)
def test_a_file_that_cannot_be_imported_under_its_name_is_refused(tmp_path: Path, name: str, why: str) -> None:
    write(tmp_path / name)
    with pytest.raises(TaskError, match=re.escape(why)):
        parse(f"{name}:run", tmp_path)


@pytest.mark.parametrize("name", ["my-task.py", "2nd.py", "a b.py"])
def test_a_file_need_not_have_a_name_that_can_stand_in_code(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name)
    assert parse(f"{name}:run", tmp_path) == Task(str(file.resolve()), "run")


# --- Found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("single", "single.py"),
        ("package", "package/__init__.py"),
        ("package.inner.deep", "package/inner/deep.py"),
        ("loose.deep", "loose/deep.py"),
        ("loose.looser.deep", "loose/looser/deep.py"),
    ],
)
def test_the_source_is_found_and_nothing_is_run(tmp_path: Path, module: str, file: str) -> None:
    for each in ("single.py", "package/__init__.py", "package/inner/__init__.py", "package/inner/deep.py"):
        write(tmp_path / each, "raise AssertionError('it was imported')\n")
    write(tmp_path / "loose" / "deep.py", "raise AssertionError\n")
    write(tmp_path / "loose" / "looser" / "deep.py", "raise AssertionError\n")
    before = set(sys.modules)
    assert find_source(Task(module, "run"), [str(tmp_path)]) == tmp_path / file
    assert set(sys.modules) == before


def test_the_first_folder_of_the_path_wins(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1" / "mine.py"), write(tmp_path / "2" / "mine.py")
    path = [str(tmp_path / "1"), str(tmp_path / "2")]
    assert find_source(Task("mine", "run"), path) == first
    assert find_source(Task("mine", "run"), path[::-1]) == second


def test_what_has_no_source_has_none(tmp_path: Path) -> None:
    (tmp_path / "loose").mkdir()
    assert find_source(Task("loose", "run"), [str(tmp_path)]) is None
    assert find_source(Task("sys", "exit"), sys.path) is None
    assert source_digest(None) == ""


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("nowhere", "nowhere"),
        ("nowhere.deep", "nowhere"),
        ("package.gone", "package.gone"),
        ("flat.json", "flat.json"),
    ],
)
def test_a_module_that_is_not_there_is_named(tmp_path: Path, module: str, missing: str) -> None:
    write(tmp_path / "package" / "__init__.py")
    write(tmp_path / "flat.py")
    write(tmp_path / "json.py")  # It does not stand for flat.json.
    with pytest.raises(TaskError, match=f"there is no module {missing!r} on the import path; run from the folder"):
        find_source(Task(module, "run"), [str(tmp_path)])


def test_a_module_that_only_an_import_hook_knows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hooks of editable installs do it."""
    source = write(tmp_path / "elsewhere" / "hooked.py")

    class Hook:
        @staticmethod
        def find_spec(name: str, *_: object) -> ModuleSpec | None:
            return importlib.util.spec_from_file_location(name, source) if name == "hooked" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Hook])
    assert find_source(Task("hooked", "run"), [str(tmp_path)]) == source


def test_a_file_is_its_own_source_and_a_change_shows(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py")
    assert find_source(Task(str(file), "run"), []) == file
    before = source_digest(file)
    assert source_digest(file) == before
    write(file, "def run(item):\n    return -item\n")
    assert source_digest(file) != before


# --- Loaded ----------------------------------------------------------------------------------------------------


def test_a_function_a_method_and_a_class_are_callables(shelf: Path) -> None:
    write(shelf / "several.py", "class C:\n    @staticmethod\n    def m(item):\n        return item + 1\n")
    assert load(Task("several", "C.m"))(1) == 2
    assert load(Task("several", "C"))() is not None


def test_a_file_is_imported_with_its_neighbours(shelf: Path) -> None:
    write(shelf / "sub" / "neighbour.py", "VALUE = 5\n")
    file = write(shelf / "sub" / "mine.py", "from neighbour import VALUE\ndef run(item):\n    return item * VALUE\n")
    run = load(Task(str(file), "run"))
    assert run(2) == 10
    assert run.__module__ == "mine"
    assert sys.modules["mine"].run is run  # So that what it defines can be pickled by name.


def test_an_import_that_raises_shows_the_users_own_traceback(shelf: Path) -> None:
    write(shelf / "broken.py", "def helper():\n    return {}['key']\nhelper()\n")
    with pytest.raises(TaskError) as caught:
        load(Task("broken", "run"))
    text = str(caught.value)
    assert text.startswith("importing broken failed; its own traceback:\nTraceback (most recent call last):\n")
    assert text.endswith("KeyError: 'key'")
    assert f'File "{shelf}/broken.py", line 3, in <module>' in text
    assert f'File "{shelf}/broken.py", line 2, in helper' in text
    assert "importlib" not in text
    assert "task.py" not in text


@pytest.mark.parametrize(
    ("source", "last_line"),
    [
        ("def run(:\n", "SyntaxError: "),
        ("import nowhere_to_be_found\n", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("import sys\nsys.exit('not now')\n", "SystemExit: not now"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_whatever_an_import_raises_is_a_task_error(
    shelf: Path, source: str, last_line: str, *, as_file: bool
) -> None:
    file = write(shelf / "raising.py", source)
    with pytest.raises(TaskError) as caught:
        load(Task(str(file) if as_file else "raising", "run"))
    assert str(caught.value).splitlines()[-1].startswith(last_line)
    assert "raising.py" in str(caught.value)


def test_a_missing_attribute_is_answered_with_what_there_is(shelf: Path) -> None:
    write(shelf / "several.py", "VALUE = 1\ndef measure(x): ...\ndef count(x): ...\ndef _hidden(x): ...\n")
    with pytest.raises(TaskError, match=r"^several has no 'mesure'; it has count, measure$"):
        load(Task("several", "mesure"))
    with pytest.raises(TaskError, match=r"^several has no 'count.inner'"):
        load(Task("several", "count.inner"))


def test_a_module_with_nothing_to_call_suggests_nothing(shelf: Path) -> None:
    write(shelf / "bare.py", "VALUE = 1\n")
    with pytest.raises(TaskError, match=r"^bare has no 'run'$"):
        load(Task("bare", "run"))


def test_what_is_not_callable_is_said_to_be_what_it_is(shelf: Path) -> None:
    write(shelf / "bare.py", "VALUE = {}\n")
    with pytest.raises(TaskError, match="bare:VALUE is dict, not callable: name a function of one argument"):
        load(Task("bare", "VALUE"))
