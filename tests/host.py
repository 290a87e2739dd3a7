"""A host for requests: clients' requests are real, and what follows of them is the test's to say."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from selectors import BaseSelector, DefaultSelector
from time import monotonic
from types import SimpleNamespace
from typing import Any, cast

from batchd.core import events as ev
from batchd.core.scheduler import Scheduler
from batchd.edge import control
from batchd.edge.journal import BatchJournal
from batchd.edge.template import KeySpec
from batchd.formats import frame
from batchd.supervisor.aside import Aside
from batchd.supervisor.clients import Clients
from batchd.supervisor.requests import Requests
from batchd.supervisor.usage import Usage
from tests.bench import WAIT_S, key_spec


class Host:
    """A supervisor's loop that decides nothing: everything is durable, and put down, when the test says so."""

    def __init__(self, folder: Path, scheduler: Any = None, aside: type[Aside] = Aside) -> None:
        self.ground: Any = SimpleNamespace(folder=folder, epoch=1)
        self.selector: BaseSelector = DefaultSelector()
        self.scheduler: Any = SimpleNamespace(batches={}) if scheduler is None else scheduler
        self.pool: Any = SimpleNamespace(
            add_key=self.add_key,
            let_go=self.let_go,
            take_up=lambda *_: None,
            workers={},
            shortage="",
            status=list,
        )
        self.journals: dict[str, BatchJournal] = {}
        self.progress: dict[str, Any] = {}
        self.usage = Usage(cast(Scheduler, self.scheduler))
        self.trouble = ""
        self.events: list[ev.Event] = []
        self.import_error: Exception | None = None
        self.is_importing = False
        self.waiting: list[Callable[[], bool]] = []
        self._after: list[Callable[[], None]] = []
        self.aside = aside(self.selector)
        self.clients = Clients(self)
        self.requests = Requests(self, self.clients)
        self.clients.answer = self.requests.answer

    def add_key(
        self, _key: str, _spec: KeySpec, on_ready: Callable[[str], None], is_waiting: Callable[[], bool]
    ) -> None:
        if self.import_error is not None:
            raise self.import_error
        if self.is_importing:
            self.waiting.append(is_waiting)
        else:
            on_ready("")

    def let_go(self) -> None:
        self.waiting = [is_waiting for is_waiting in self.waiting if is_waiting()]

    def emit(self, event: ev.Event) -> None:
        self.events.append(event)

    def later(self, delay_s: float, call: Callable[[], None]) -> None: ...

    def after_commit(self, call: Callable[[], None]) -> None:
        self._after.append(call)

    def status(self) -> dict[str, Any]:
        return {}

    def turn(self) -> None:
        """Take in what is there."""
        for key, _ in self.selector.select(0.05):
            key.data()

    def commit(self) -> None:
        """Take in what was attached, and say that everything so far is durable."""
        for event in self.events:
            if isinstance(event, ev.BatchAttached) and event.facts.batch in self.journals:
                live = SimpleNamespace(facts=event.facts, options=event.options, workers=())
                self.scheduler.batches.setdefault(event.facts.batch, live)
        calls, self._after = self._after, []
        for call in calls:
            call()

    def put_down(self, batch: str) -> None:
        self.clients.on_put_down(batch)
        self.scheduler.batches.pop(batch, None)
        self.journals.pop(batch).close()
        self.clients.go_on_without(batch)

    def close(self) -> None:
        for journal in self.journals.values():
            journal.close()
        self.clients.close()
        self.selector.close()
        self.aside.close()


class Caller:
    """A client that sends what the test says, and keeps what it hears."""

    def __init__(self, host: Host) -> None:
        self.replies: dict[int, dict[str, Any]] = {}
        self.news: list[dict[str, Any]] = []
        self._host = host
        self._line = control.connect(host.ground.folder)
        self._line.setblocking(False)
        self._reader = frame.FrameReader()
        self._number = 0

    def send(self, do: str, body: bytes = b"", **fields: Any) -> int:
        """Send a request and return its number, when it was taken in."""
        self._number += 1
        meta = json.dumps({"do": do, "number": self._number, **fields}).encode()
        self._line.sendall(frame.encode(control.REQUEST, meta, len(body)) + body)
        self._host.turn()
        self._host.turn()  # The first time, it only let the client in.
        return self._number

    def open(self, batch: str = "b", *, timeout_s: float | None = None, **fields: Any) -> int:
        options = {**asdict(ev.Options(timeout_s=timeout_s)), "allowances": ev.Options().allowances._asdict()}
        spec = {name: value for name, value in asdict(key_spec()).items() if name != "payload"}
        return self.send("open", batch=batch, spec={}, options=options, key="k", key_spec=spec, **fields)

    def submit(self, batch: str = "b") -> int:
        """Submit nothing, patiently."""
        return self.send("submit", batch=batch, client="c", sequence=1, checkpoint="", is_patient=True)

    def hear(self, number: int) -> dict[str, Any]:
        """Wait for the reply to a request."""
        deadline = monotonic() + WAIT_S
        while number not in self.replies:
            assert monotonic() < deadline, "no answer"
            self._host.turn()
            self._host.commit()
            self.take_in()
        return self.replies[number]

    def take_in(self) -> None:
        """Read what was sent."""
        try:
            data = self._line.recv(1 << 20)
        except BlockingIOError:
            return
        for kind, fields, _ in control.decode(self._reader.feed(data)):
            if kind == control.REPLY:
                self.replies[fields["number"]] = fields
            else:
                self.news.append(fields)

    def close(self) -> None:
        self._line.close()
