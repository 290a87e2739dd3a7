"""The command line on batches that programs made: they are looked at, retried, never run as something else."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import batchd
from batchd.edge.journal import BatchJournal
from tests.commands import Desk, summary_of
from tests.contract.calls import WAIT_S, fail, notes, square
from tests.faces.jobs import fail_until
from tests.faces.programs import Programs


def make_by_map(desk: Desk, path: str, name: str | None) -> None:
    list(batchd.map(partial(fail_until, path), range(6), journal=desk.journal, name=name, workers=1, on_error="skip"))


def make_by_client(desk: Desk, path: str, name: str | None) -> None:
    with batchd.Client(desk.journal, workers=1) as client:
        client.submit_batch(partial(fail_until, path), range(6), name=name, keep_going=True).wait(WAIT_S)


def make_by_keys(desk: Desk, path: str, name: str | None) -> None:
    results = batchd.map(
        partial(fail_until, path), range(6), journal=desk.journal, name=name, workers=1, on_error="skip", key=str
    )
    list(results)


def make_by_executor(desk: Desk, path: str, name: str | None) -> None:
    with batchd.Executor(1, journal=desk.journal, name=name) as executor:
        for x in range(6):
            executor.submit(fail_until, path, x)


def make_by_queue(desk: Desk, path: str, name: str | None) -> None:
    with batchd.Client(desk.journal, workers=1, queue=name or "jobs") as client:
        for job in [client.submit(fail_until, path, x) for x in range(6)]:
            try:
                job.result(WAIT_S)
            except ValueError:
                continue


MAKERS = {
    "map": make_by_map,
    "client": make_by_client,
    "keys": make_by_keys,
    "executor": make_by_executor,
    "queue": make_by_queue,
}


NAMES = {"map": None, "client": None, "keys": "with keys", "executor": None, "queue": "mine"}


def test_they_are_shown(desk: Desk, tmp_path: Path) -> None:
    for kind, make in MAKERS.items():
        make(desk, str(tmp_path / kind), NAMES[kind])
    listed = json.loads(desk.run("ls", "--json").stdout)["batches"]
    assert [(each["size"], each["succeeded"], each["failed"]) for each in listed] == [(6, 3, 3)] * len(MAKERS)
    assert {"with keys", "mine"} <= {each["name"] for each in listed}
    assert desk.run("ls").returncode == 0
    for each in listed:
        shown = desk.run("show", each["batch"])
        assert (shown.returncode, shown.stderr) == (0, "")
        assert each["name"] in shown.stdout
        results = desk.run("results", each["name"] if each["name"] in NAMES.values() else each["batch"])
        assert ("is not finished" in results.stderr) == (each["name"] == "mine")  # A queue never is.
        told = [json.loads(line) for line in results.stdout.splitlines()]
        assert [line.get("result") for line in told] == [0, None, 20, None, 40, None]
        assert [line["state"] for line in told] == ["succeeded", "failed"] * 3
        failures = desk.run("failures", each["batch"]).stdout
        assert "ValueError: odd: 1" in failures
        assert "in fail_until" in failures


@pytest.mark.parametrize("kind", MAKERS)
def test_its_failed_jobs_are_retried(desk: Desk, tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "mended")
    MAKERS[kind](desk, path, "n")
    Path(path).touch()
    before = spec_of(desk)
    ended = desk.run("retry", "n", "--failed", "--json")
    assert ended.returncode == 0, ended.stderr
    assert summary_of(ended.stdout)["succeeded"] == 6
    assert sorted(map(int, notes(f"{path}.ran"))) == [0, 1, 1, 2, 3, 3, 4, 5, 5]
    assert spec_of(desk) == before
    with batchd.Client(desk.journal, queue="another") as client:
        assert list(client.batch("n").results()) == [0, 10, 20, 30, 40, 50]


def spec_of(desk: Desk) -> dict[str, Any]:
    """Return the specification of the only batch."""
    (place,) = (desk.journal / "batches").glob("[!.]*")
    journal = BatchJournal(place)
    journal.close()
    return dict(journal.spec)


def test_after_a_retry_the_program_goes_on(desk: Desk, tmp_path: Path) -> None:
    """The digest of its code is still the one it was made with."""
    path = str(tmp_path / "mended")
    make_by_map(desk, path, "n")
    Path(path).touch()
    assert desk.run("retry", "n", "--failed").returncode == 0
    go = partial(batchd.map, partial(fail_until, path), journal=desk.journal, name="n", workers=1)
    assert list(go(range(7))) == [0, 10, 20, 30, 40, 50, 60]
    assert len(notes(f"{path}.ran")) == 6 + 3 + 1


def test_jobs_of_a_script_are_retried(programs: Programs, desk: Desk) -> None:
    """Its functions live in no module that a command could import."""
    text = """
folder = Path.cwd()

class Fault(Exception):
    pass

def job(x):
    if x == 2 and not (folder / "mended").exists():
        raise Fault(x)
    return {"x": x}

print(list(batchd.map(job, range(4), name="n", workers=1, on_error="skip")))
"""
    assert programs.told(text) == "[{'x': 0}, {'x': 1}, {'x': 3}]\n"
    (programs.folder / "mended").touch()
    assert desk.run("retry", "n", "--failed").returncode == 0
    assert programs.told(text) == "[{'x': 0}, {'x': 1}, {'x': 2}, {'x': 3}]\n"


@pytest.mark.parametrize("kind", ["map", "client"])
def test_the_command_line_does_not_run_it_as_something_else(desk: Desk, tmp_path: Path, kind: str) -> None:
    MAKERS[kind](desk, str(tmp_path / "mended"), "n")
    ended = desk.run("run", desk.task("square"), "--range", "0:3", "--name", "n")
    assert ended.returncode == 2
    assert "batch n was made from Python" in ended.stderr
    assert "fail_until" in ended.stderr
    assert "another --name" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_batch_of_the_command_line_is_not_taken_for_a_map(desk: Desk) -> None:
    assert desk.run("run", desk.task("square"), "--range", "0:3", "--name", "n").returncode == 0
    with pytest.raises(batchd.BatchdError, match="another name"):
        list(batchd.map(square, range(3), journal=desk.journal, name="n", workers=1))
    with batchd.Client(desk.journal, workers=1) as client:
        with pytest.raises(batchd.BatchdError, match="another name"):
            client.submit_batch(square, range(3), name="n")
        batch = client.batch("n")
        assert (batch.wait(WAIT_S).succeeded, list(batch.results())) == (3, [0, 1, 4])


def test_a_batch_of_the_command_line_is_retried_from_python(desk: Desk) -> None:
    (desk.folder / "fragile.py").write_text(
        "from pathlib import Path\n\n\ndef job(x):\n    if x == 1 and not Path('mended').exists():\n"
        "        raise ValueError('not yet')\n    return x\n"
    )
    assert desk.run("run", "fragile.py:job", "--range", "0:3", "--name", "n", "--keep-going").returncode == 1
    (desk.folder / "mended").touch()
    with batchd.Client(desk.journal, workers=1) as client:
        batch = client.batch("n")
        assert batch.retry() == 1
        assert batch.wait(WAIT_S).succeeded == 3


def test_one_job_is_run_again_in_the_foreground(desk: Desk, tmp_path: Path) -> None:
    path = str(tmp_path / "mended")
    make_by_map(desk, path, "n")
    ended = desk.run("rerun", "n:1")
    assert ended.returncode == 1
    assert "odd: 1" in ended.stderr
    Path(path).touch()
    assert desk.run("rerun", "n:1").returncode == 0


def test_a_client_is_listed_while_nobody_runs_it(desk: Desk) -> None:
    with batchd.Client(desk.journal, workers=1) as client:
        bad = client.submit(fail, ValueError, "no such colour")
        with pytest.raises(ValueError, match="no such colour"):
            bad.result(WAIT_S)
    assert "jobs" in desk.run("ls").stdout
    found: Any = json.loads(desk.run("results", "jobs").stdout)
    assert found["error"] == {"type": "ValueError", "message": "no such colour"}
