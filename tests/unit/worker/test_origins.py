"""Which modules are the ones that a function was pickled with, and which only have their names."""

import importlib
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cloudpickle
import pytest

from batchd.errors import TaskError
from batchd.worker.calls import pack_function
from batchd.worker.origins import _names_of, check_origins

Import = Callable[[Path], ModuleType]


@pytest.fixture
def import_from(monkeypatch: pytest.MonkeyPatch) -> Import:
    """Import the module `moving` from a folder, as another process would."""
    folders: list[str] = []

    def import_from(folder: Path) -> ModuleType:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "moving.py").exists():
            (folder / "moving.py").write_text("def move(): return __file__\n")
        monkeypatch.setattr(sys, "path", [str(folder), *[each for each in sys.path if each not in folders]])
        folders.append(str(folder))
        monkeypatch.delitem(sys.modules, "moving", raising=False)
        _names_of.cache_clear()
        return importlib.import_module("moving")

    return import_from


def test_another_file_is_refused(tmp_path: Path, import_from: Import) -> None:
    payload = pack_function(import_from(tmp_path / "here").move)
    check_origins(payload, "queue jobs")
    import_from(tmp_path / "there")
    with pytest.raises(
        TaskError, match=f"moving is {tmp_path}/here/moving.py where .* {tmp_path}/there/moving.py in the"
    ):
        check_origins(payload, "queue jobs")


def test_an_environment_made_anew_is_the_same(tmp_path: Path, import_from: Import) -> None:
    one, two = (tmp_path / name / "lib/python3/site-packages" for name in ("one", "two"))
    payload = pack_function(import_from(one).move)
    import_from(two)
    check_origins(payload, "queue jobs")
    import_from(tmp_path / "own")  # It hides the installed one.
    with pytest.raises(TaskError, match=r"moving is site-packages/moving.py where .* /.*/own/moving.py in the"):
        check_origins(payload, "queue jobs")


def test_another_way_to_the_same_file_is_the_same(tmp_path: Path, import_from: Import) -> None:
    payload = pack_function(import_from(tmp_path / "real").move)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    import_from(tmp_path / "link")
    check_origins(payload, "queue jobs")


def test_the_same_way_stays_the_same_when_it_leads_to_the_next_release(tmp_path: Path, import_from: Import) -> None:
    """Programs are replaced so, and are to find what their jobs were."""
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "1")
    payload = pack_function(import_from(tmp_path / "current").move)
    (tmp_path / "next").symlink_to(tmp_path / "2")
    (tmp_path / "next").rename(tmp_path / "current")
    import_from(tmp_path / "current")
    check_origins(payload, "queue jobs")


def test_a_module_that_is_there_says_itself_what_it_lacks(tmp_path: Path, import_from: Import) -> None:
    payload = pack_function(import_from(tmp_path / "here").move)
    (tmp_path / "here" / "moving.py").write_text("import moving_along\n")
    del sys.modules["moving"]
    with pytest.raises(ModuleNotFoundError, match="moving_along"):
        check_origins(payload, "queue jobs")


def test_what_is_the_same_everywhere_is_not_told(tmp_path: Path, import_from: Import) -> None:
    assert pack_function(os.path.join) == pickle.dumps(os.path.join, 5)
    moving = import_from(tmp_path)
    assert str(tmp_path).encode() in pack_function(lambda: moving)
    cloudpickle.register_pickle_by_value(moving)
    try:
        travelling = pack_function(moving.move)
        with_it = pack_function(lambda: moving)
    finally:
        cloudpickle.unregister_pickle_by_value(moving)
    del sys.modules["moving"]
    (tmp_path / "moving.py").unlink()
    importlib.invalidate_caches()
    check_origins(travelling, "queue jobs")  # Nothing has to be there.
    check_origins(with_it, "queue jobs")


def test_functions_of_journals_that_told_none_are_called(tmp_path: Path, import_from: Import) -> None:
    check_origins(pickle.dumps(import_from(tmp_path).move), "queue jobs")
    check_origins(b"", "queue jobs")
