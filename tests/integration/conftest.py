"""A journal to write into and a way to run the verbs that read it, a door, and the joblib backend."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchd.joblib
from batchd.edge.folder import open_folder
from tests.contract.calls import Door
from tests.written import Run, Verb


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = open_folder(tmp_path / "journal")
    monkeypatch.setenv("BATCHD_JOURNAL", str(made))
    return made


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(sys, "path", list(sys.path))  # Verbs append what results may need.

    def run_verb(verb: Verb, **given: Any) -> tuple[int, str, str]:
        known = {"journal": None, "json": False, "batch": "last", "values": False, "output": None, "all": False}
        capfd.readouterr()
        code = verb(argparse.Namespace(**{**known, **given}))
        return code, *capfd.readouterr()

    return run_verb


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path)
    yield made
    made.open()


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    batchd.joblib.register()
    yield
    batchd.joblib.release_workers()
