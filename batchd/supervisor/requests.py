"""Requests of clients: to events, and answered when what the answer tells is durable.

Every request is a JSON object with "do" and "number"; its reply carries the same number. One rule per request, in
the table at the end. Nothing of the user's is unpickled here.
"""

import os
from collections.abc import Callable
from typing import Any

from batchd import __version__
from batchd.core import events as ev
from batchd.core.costs import checked_costs
from batchd.edge.control import Message
from batchd.edge.journal import BatchJournal
from batchd.errors import BatchdError, FormatError, SupervisorError, UsageError
from batchd.formats import tables
from batchd.formats.segment import header_of
from batchd.settings import CUT_WAIT_S, WORKERS_MAX
from batchd.supervisor.changes import Changes, ranges_of
from batchd.supervisor.clients import Client, Clients, Host
from batchd.supervisor.openings import Opening, Openings
from batchd.units import counted


class Requests:
    """The rules for what clients ask."""

    def __init__(self, supervisor: Host, clients: Clients) -> None:
        self._supervisor = supervisor
        self._clients = clients
        self._openings = Openings(supervisor, clients)
        self._changes = Changes(supervisor, clients, self._openings)
        self.make_room = self._changes.make_room
        self._scaled: int | None = None
        """The worker count that was ordered last, which the scheduler knows a step later."""

    @property
    def is_halfway(self) -> bool:
        """Whether something is under way that would be left half done."""
        return self._openings.hands.is_halfway

    def answer(self, client: Client, message: Message) -> None:
        """Do what a message asks, or say why not."""
        number = message.fields.get("number", 0)
        rule = _RULES.get(str(message.fields.get("do")))
        try:
            if rule is None:
                raise UsageError(f"unknown request {message.fields.get('do')!r}")
            rule(self, client, number, message)
        except BatchdError as error:
            client.refuse(number, error)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            client.refuse(number, UsageError(f"malformed request: {type(error).__name__}: {error}"))

    def _hello(self, client: Client, number: int, _: Message) -> None:
        ground = self._supervisor.ground
        client.reply(number, {"version": __version__, "pid": os.getpid(), "epoch": ground.epoch})

    def _open(self, client: Client, number: int, message: Message) -> None:
        self._openings.open(client, number, Opening.of(message))

    def _submit(self, client: Client, number: int, message: Message) -> None:
        name = self._bound(client, message)
        client.names[name] = str(message.fields["client"])
        segments: list[bytes] = []
        view, at, jobs = memoryview(message.body), 0, 0
        while at < len(view):
            _, count, _, length = header_of(view, at)
            is_all = at == 0 and length == len(view)  # As of a large value: it is not copied.
            segments.append(message.body if is_all else bytes(view[at : at + length]))
            jobs, at = jobs + count, at + length
        keys = bytes.fromhex(str(message.fields.get("keys", "")))
        costs = checked_costs(message.fields.get("costs", ()), jobs)
        if at != len(view) or len(keys) not in {0, jobs * tables.KEY_BYTES}:
            raise FormatError("the last segment was cut off, or there is not a key for each job")
        self._supervisor.emit(
            ev.SegmentsReceived(
                batch=name,
                count=jobs,
                segments=tuple(segments),
                client=str(message.fields["client"]),
                sequence=int(message.fields["sequence"]),
                checkpoint=str(message.fields["checkpoint"]),
                keys=keys,
                costs=costs,
            )
        )
        if message.fields.get("is_patient"):
            self._supervisor.after_commit(lambda: self._clients.answer_with_news(client, name, number))
        else:
            journal = self._supervisor.journals[name]  # It is put down before the reply, perhaps.
            self._when_durable(client, number, lambda: self._submitted(journal, message))

    def _submitted(self, journal: BatchJournal, message: Message) -> dict[str, Any]:
        """Return how the batch stands, and where the client's last submission begins, for clients that share it."""
        name = journal.facts.batch
        progress = self._clients.progress(name)
        sequence, first = journal.last_of(str(message.fields["client"]))
        asked = int(message.fields["sequence"])
        if sequence == asked:
            return {**progress, "first": first}
        if sequence < asked:
            had = counted(progress["size"], "job")
            why = f"batch {name} was sealed by another client when it had {had}, and took no more: add the rest again"
            return {**progress, "refused": _cancelled(name) if progress["state"] == "cancelled" else why}
        return progress

    def _define(self, client: Client, number: int, message: Message) -> None:
        name, mark = self._bound(client, message), _mark_of(message.fields["mark"])
        self._supervisor.emit(ev.FunctionReceived(name, mark, message.body))
        self._supervisor.after_commit(lambda: client.reply(number, {}))

    def _trim(self, client: Client, number: int, message: Message) -> None:
        """Forget finished jobs of a batch that is not to be kept anyway."""
        name = self._bound(client, message)
        if not self._supervisor.journals[name].spec.get("is_throwaway"):
            raise UsageError(f"batch {name} is to be kept: `batchd prune` removes whole batches")
        marks = tuple(map(_mark_of, message.fields.get("marks", ())))
        self._supervisor.emit(ev.TrimRequested(name, ranges_of(message), marks))
        client.reply(number, {})

    def _withdraw(self, client: Client, number: int, message: Message) -> None:
        """Cancel jobs that have not begun; answered when it is certain and durable which did not."""
        name = self._bound(client, message)
        self._supervisor.emit(ev.WithdrawRequested(name, ranges_of(message)))
        self._when_cut(name, lambda: client.reply(number, {}))

    def _running(self, client: Client, number: int, message: Message) -> None:
        name = self._bound(client, message)
        rows = self._supervisor.pool.status()
        client.reply(number, {"running": [row["job"] for row in rows if row["batch"] == name]})

    def _when_cut(self, name: str, call: Callable[[], None]) -> None:
        """Call back when everything emitted so far is durable and no worker's progress is in doubt."""

        def look() -> None:
            batch = self._supervisor.scheduler.batches.get(name)
            if batch is not None and batch.is_cutting:
                self._supervisor.later(CUT_WAIT_S, lambda: self._supervisor.after_commit(look))
            else:
                self._supervisor.after_commit(call)

        self._supervisor.after_commit(look)

    def _seal(self, client: Client, number: int, message: Message) -> None:
        name = self._bound(client, message)
        self._supervisor.emit(ev.SealRequested(name))
        self._supervisor.after_commit(lambda: client.reply(number, self._clients.progress(name)))

    def _unseal(self, client: Client, number: int, message: Message) -> None:
        name = self._bound(client, message)
        self._supervisor.emit(ev.UnsealRequested(name))

        def told() -> dict[str, Any]:
            progress = self._clients.progress(name)
            if progress["state"] == "cancelled":
                raise UsageError(_cancelled(name))
            return progress

        self._when_durable(client, number, told)

    def _detach(self, client: Client, number: int, message: Message) -> None:
        name = str(message.fields["batch"])
        at_once = bool(message.fields.get("at_once"))
        if name not in client.bound:  # It has left meanwhile, when it asks again to have that done at once.
            client.reply(number, {})
            return
        if known := str(message.fields.get("client", "")):
            self._supervisor.emit(ev.ClientLeft(name, known))
        self._clients.detach(client, name, at_once=at_once, then=lambda: client.reply(number, {}))

    def _when_durable(self, client: Client, number: int, fields_of: Callable[[], dict[str, Any]]) -> None:
        """Answer when everything emitted so far is durable; whatever goes wrong then, nobody waits for ever."""

        def answer() -> None:
            try:
                client.reply(number, fields_of())
            except BatchdError as error:
                client.refuse(number, error)
            except Exception as error:
                client.refuse(
                    number, SupervisorError(f"cannot tell what came of it: {type(error).__name__}: {error}")
                )
                raise

        self._supervisor.after_commit(answer)

    def _status(self, client: Client, number: int, _: Message) -> None:
        client.reply(number, self._supervisor.status())

    def _scale(self, client: Client, number: int, message: Message) -> None:
        workers = message.fields["workers"]
        before = self._scaled or max(
            (batch.options.workers for batch in self._supervisor.scheduler.batches.values()), default=0
        )
        if "change" in message.fields:
            workers = max(1, before + int(message.fields["change"]))
        if workers is not None and not 1 <= int(workers) <= WORKERS_MAX:
            raise UsageError(f"cannot run {workers} workers: give a number from 1 to {WORKERS_MAX}")
        self._scaled = None if workers is None else int(workers)
        self._supervisor.emit(ev.ScaleRequested(self._scaled))
        client.reply(number, {"before": before, "workers": workers})

    def _bound(self, client: Client, message: Message) -> str:
        name = str(message.fields["batch"])
        if name not in client.bound:
            raise SupervisorError(f"batch {name} is not open on this connection")
        return name


def _cancelled(name: str) -> str:
    return f"batch {name} was cancelled and takes no more jobs: `batchd retry {name} --cancelled` takes that back"


def _mark_of(text: Any) -> bytes:
    mark = bytes.fromhex(str(text))
    if len(mark) != len(tables.TASK_MARK) or mark == tables.TASK_MARK:
        raise ValueError("a mark that is none")
    return mark


_RULES: dict[str, Callable[[Requests, Client, int, Message], None]] = {
    "hello": Requests._hello,  # noqa: SLF001  (the table of the class above)
    "open": Requests._open,  # noqa: SLF001
    "submit": Requests._submit,  # noqa: SLF001
    "define": Requests._define,  # noqa: SLF001
    "trim": Requests._trim,  # noqa: SLF001
    "withdraw": Requests._withdraw,  # noqa: SLF001
    "running": Requests._running,  # noqa: SLF001
    "seal": Requests._seal,  # noqa: SLF001
    "unseal": Requests._unseal,  # noqa: SLF001
    "detach": Requests._detach,  # noqa: SLF001
    "accept_code": lambda requests, *asked: requests._changes.accept_code(*asked),  # noqa: SLF001
    "cancel": lambda requests, *asked: requests._changes.cancel(*asked),  # noqa: SLF001
    "reopen": lambda requests, *asked: requests._changes.reopen(*asked),  # noqa: SLF001
    "prune": lambda requests, *asked: requests._changes.prune(*asked),  # noqa: SLF001
    "status": Requests._status,  # noqa: SLF001
    "scale": Requests._scale,  # noqa: SLF001
}
