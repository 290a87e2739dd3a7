"""Requests that were changed at random, sent to a real supervisor: it answers or refuses, and lives on."""

import json
import os
import random
import select
import socket
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from batchd.client.connection import connect
from batchd.core.events import Options
from batchd.edge import control
from batchd.errors import UsageError
from batchd.formats import frame
from batchd.formats.segment import input_blocks
from tests.bench import House, key_spec, pump_until
from tests.fuzz.fuzzer import Fuzzer, Target

BATCH = "b"


def same(count: int) -> list[Any]:
    return [("same", index) for index in range(count)]


def requests() -> list[dict[str, Any]]:
    """One good request of each kind."""
    options = {**asdict(Options(workers=2)), "allowances": Options().allowances._asdict()}
    spec = {name: value for name, value in asdict(key_spec("tests.jobs:act")).items() if name != "payload"}
    opening = {"batch": BATCH, "spec": {"durability": "process"}, "options": options, "key": "k", "key_spec": spec}
    submitting = {"batch": BATCH, "client": "c", "sequence": 1, "checkpoint": "", "keys": ""}
    return [
        {"do": "hello"},
        {"do": "open", **opening},
        {"do": "open", **opening, "is_shared": True, "follows": True, "is_eager": True},
        {"do": "submit", **submitting},
        {"do": "submit", **submitting, "sequence": 2, "costs": [[0, 2.5]]},
        {"do": "define", "batch": BATCH, "mark": "00" * 8},
        {"do": "trim", "batch": BATCH, "ranges": [[0, 1]]},
        {"do": "withdraw", "batch": BATCH, "ranges": [[1, 2]]},
        {"do": "seal", "batch": BATCH},
        {"do": "unseal", "batch": BATCH},
        {"do": "detach", "batch": BATCH, "at_once": True},
        {"do": "accept_code", "batch": BATCH, "digest": "d"},
        {"do": "cancel", "batch": BATCH, "reason": "r"},
        {"do": "reopen", "batch": BATCH, "states": [4, 5, 6]},
        {"do": "status"},
        {"do": "scale", "workers": 2},
        {"do": "scale", "workers": None, "change": 1},
    ]


class Caller:
    """A client that sends what it likes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.told: Counter[str] = Counter()
        """Replies: `done`, or the name of the error."""
        self._dice = random.Random(seed)
        self._requests = requests()
        self._fuzzer = Fuzzer(Target("requests", lambda _: None, []), seed)
        self._line: socket.socket | None = None
        self._reader = frame.FrameReader()

    def call(self) -> None:
        """Send a request, mostly a changed one, and take in what was answered meanwhile."""
        fields = json.dumps(self._dice.choice(self._requests)).encode()
        if self._dice.random() < 0.8:
            fields = self._fuzzer._mutated_json(fields) or fields
        message = json.loads(fields)
        if isinstance(message, dict) and "number" not in message:
            message["number"] = self._dice.randrange(1 << 30)
        (_, body) = next(iter(input_blocks(same(self._dice.randrange(1, 5)))))
        if self._dice.random() < 0.1:
            body = body[: self._dice.randrange(len(body))]
        meta = json.dumps(message).encode()
        if self._line is None or self._dice.random() < 0.02:
            self.hang_up()
            self._line = control.connect(self.folder)
        try:
            self._line.sendall(frame.encode(control.REQUEST, meta, len(body)) + body)
        except OSError:
            self.hang_up()
        self.hear(0.002)

    def hear(self, wait_s: float) -> None:
        """Take in what is there."""
        while self._line is not None and select.select([self._line], [], [], wait_s)[0]:
            try:
                data = self._line.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                self.hang_up()
                return
            for message in control.decode(self._reader.feed(data)):
                if message.kind == control.REPLY:
                    self.told[str(message.fields.get("error", "done"))] += 1

    def hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
        self._line, self._reader = None, frame.FrameReader()


@pytest.mark.fault
@pytest.mark.parametrize(
    ("seed", "count"), [(1, 100), *(pytest.param(seed, 3000, marks=pytest.mark.slow) for seed in range(2, 6))]
)
@pytest.mark.covers("C6")
def test_no_request_harms_the_supervisor(house: House, seed: int, count: int) -> None:
    house.start(same(3), "other")
    pid = house.supervisor
    caller = Caller(house.folder, seed)
    log = house.folder / "supervisor.log"
    try:
        for _ in range(count):
            caller.call()
        caller.hear(1.0)
        caller.hang_up()
    except OSError as error:
        pytest.fail(f"the supervisor is gone: {error}; its last words: {log.read_text('utf-8', 'replace')[-2000:]}")
    assert caller.told["done"] > count // 20
    assert caller.told["UsageError"] > count // 20
    assert house.supervisor == pid, "another one took over"
    assert house.run(same(20), "after") == {index: index for index in range(20)}
    said = log.read_text("utf-8", "replace")
    assert "/batchd/supervisor/" not in said, said[-2000:]  # A worker may say why it could not import a task.
    assert os.path.exists(f"/proc/{pid}")  # noqa: PTH110


@pytest.mark.fault
@pytest.mark.parametrize("costs", [[[5, 1.0]], [[-1, 1.0]], [[0, 0.0]], [[0, -1]], [[0, float("nan")]], [[0]], 7])
def test_costs_that_are_none_are_refused(house: House, costs: Any) -> None:
    session = house.session()
    session.open()
    (_, body) = next(iter(input_blocks(same(5))))
    session.post("submit", body, None, client="c", sequence=1, checkpoint="", costs=costs)
    with pytest.raises(UsageError, match="malformed request"):
        pump_until(session, lambda: session.progress["size"] == 5, "it is refused")
    session.leave(at_once=True)
    pump_until(session, lambda: session.is_put_down, "it is put down")


@pytest.mark.fault
def test_a_change_that_fails_lets_go_of_the_batch(house: House) -> None:
    """It was taken up for the change alone: nobody has told how its workers would start."""
    session = house.start(same(20))
    pump_until(session, lambda: session.progress["size"] == 20, "its input is there")
    session.leave(at_once=True)
    pump_until(session, lambda: session.is_put_down, "it is put down")
    connection = connect(house.folder)
    pid = house.supervisor
    with pytest.raises(UsageError, match="malformed request: KeyError: 'reason'"):
        connection.ask("cancel", batch=BATCH)
    # Whoever opens it next waits until it is put down again, and runs what is left.
    again = house.session()
    again.open()
    again.feed(iter(()))
    house.finish(again)
    assert house.outcomes() == {index: index for index in range(20)}
    assert house.supervisor == pid
    connection.close()
