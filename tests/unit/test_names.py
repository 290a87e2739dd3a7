"""What a batch may be called, wherever it is named."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import batchd
from batchd.cli.main import main
from batchd.errors import UsageError
from batchd.settings import NAME_CHARS_MAX

WRONG = {
    "": "cannot be asked for by the name ''",
    "last": "cannot be asked for by the name 'last'",
    "new\nline": r"the name 'new\nline' holds what no terminal shows",
    "\x1b[31mred": r"the name '\x1b[31mred' holds",
    "n" * (NAME_CHARS_MAX + 1): f"a name of {NAME_CHARS_MAX + 1} characters is too long",
}


def of_map(folder: Path, name: str) -> None:
    list(batchd.map(abs, [1], name=name, journal=folder))


def of_executor(folder: Path, name: str) -> None:
    batchd.Executor(1, name=name, journal=folder)


def of_queue(folder: Path, name: str) -> None:
    batchd.Client(folder, queue=name)


def of_batch(folder: Path, name: str) -> None:
    with batchd.Client(folder) as client:
        client.submit_batch(abs, [1], name=name)


@pytest.mark.parametrize("make", [of_map, of_executor, of_queue, of_batch])
@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_cannot_be_used_later_is_refused_from_python(
    tmp_path: Path, make: Callable[[Path, str], Any], name: str
) -> None:
    with pytest.raises(UsageError) as refused:
        make(tmp_path / "journal", name)
    assert WRONG[name] in str(refused.value)


@pytest.mark.parametrize("name", WRONG)
def test_and_by_the_command(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    journal = os.fspath(tmp_path / "journal")
    assert main(["run", "builtins:abs", "--range", "0:3", "--journal", journal, "--name", name]) == 2
    assert WRONG[name] in capsys.readouterr().err
