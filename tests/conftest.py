"""Fixtures of the tests that run real processes."""

import gc
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.bench import Bench, House, is_alive, open_descriptors
from tests.commands import Desk, dead, until
from tests.disks import mounted
from tests.fault.ledger import Ledger, Tally


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", metavar="FILE", help="write what the fault tests saw, as a table")


def pytest_configure(config: pytest.Config) -> None:
    # Started in the background of a script they inherit that Ctrl-C is ignored, and so does all they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says how busy the machine is, and nothing about the code.
    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")
    config.pluginmanager.register(Ledger(config.getoption("--fault-table")))


def pytest_collection_finish() -> None:
    # Who asks whether something is let go collects garbage often, and would look through all tests each time.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Generator[None, Any, Any]:
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, Any, Any]:
    # Workers have the environment of their caller: with it, each test would import its functions anew.
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    return (yield)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 80 MB."""
    with mounted(tmp_path / "disk", "size=80m,mode=700") as refusal:
        if refusal:
            pytest.skip(f"no small disk can be mounted here: {refusal}")
        yield tmp_path / "disk"


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Where a fault test counts what it did."""
    return Tally(request.node.user_properties)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A journal of its own; afterwards nothing of it may be alive."""
    desk = Desk(tmp_path)
    yield desk
    if not (desk.journal / "journal.json").exists():
        return
    pid = desk.supervisor()
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not [pid for pid in desk.processes() if not dead(pid)], "no process is left")
    desk.recorder().unlink(missing_ok=True)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A pool; afterwards nothing of it may be left."""
    before = open_descriptors()
    made = Bench(tmp_path)
    yield made
    workers = [worker.pid for worker in made.pool.workers.values()]
    made.close()
    assert not [pid for pid in workers if is_alive(pid)]
    assert open_descriptors() == before


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "journal")
    yield made
    made.close()
