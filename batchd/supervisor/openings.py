"""Openings: how a client comes to have a batch open, which is made or taken up for that.

What a client sends of options and of how workers start is looked at here, before anything is done with it. Nothing of
the user's is unpickled here.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from batchd.core import events as ev
from batchd.core.job import Allowances
from batchd.core.ranges import RangeSet
from batchd.edge import strays
from batchd.edge.control import Message
from batchd.edge.log import log_traceback
from batchd.edge.template import KeySpec
from batchd.errors import BatchBusy, BatchdError, SupervisorError, TaskError, UsageError
from batchd.settings import OPEN_BATCHES_MAX, WORKERS_MAX
from batchd.supervisor.clients import Client, Clients, Host
from batchd.supervisor.taking import Hands, Taken, check_same, make, take_up

_NO_KEY = KeySpec(("", ""), (), "", {}, "")


class Opening(NamedTuple):
    """A request to open a batch."""

    name: str
    spec: dict[str, Any] | None = None
    options: ev.Options = ev.Options()
    key: str = ""
    key_spec: KeySpec = _NO_KEY
    is_shared: bool = False
    """Others who ask for the same may have it open as well."""
    follows: bool = False
    """The client wants to be told which outcomes are durable."""
    is_eager: bool = False
    """And waits for each of them."""
    created: str = ""
    """When the batch was made that the client had open before, "" when it had none."""

    @classmethod
    def of(cls, message: Message) -> "Opening":
        """Return what a message asks for; raises UsageError, KeyError, TypeError, ... for one that is malformed."""
        fields = message.fields
        spec = fields.get("spec")
        if spec is not None and not isinstance(spec, dict):
            raise UsageError("malformed request: the specification of a batch is a JSON object")
        return cls(
            name=str(fields["batch"]),
            spec=spec,
            options=options_of(fields["options"]),
            key=str(fields["key"]),
            key_spec=key_spec_of(fields["key_spec"], bytes(message.body)),
            is_shared=bool(fields.get("is_shared")),
            follows=bool(fields.get("follows")),
            is_eager=bool(fields.get("is_eager")),
            created=str(fields.get("created", "")),
        )


class Openings:
    """Opens batches for clients."""

    def __init__(self, supervisor: Host, clients: Clients) -> None:
        self._supervisor = supervisor
        self._clients = clients
        self.hands = Hands(supervisor.aside)

    def open(self, client: Client, number: int, request: Opening) -> None:
        """Attach a batch for this client; the task is imported first, so that nothing is made for a wrong one."""
        if client.is_gone:
            return
        with self.answering(client, number, f"open batch {request.name}"):
            if self._is_free(client, number, request, lambda: self.open(client, number, request)):
                go_on = partial(self._go_on, client, number, request)
                self._supervisor.pool.add_key(request.key, request.key_spec, go_on, lambda: not client.is_gone)

    def _go_on(self, client: Client, number: int, request: Opening, reason: str = "") -> None:
        """Take the batch up, or make it, now that its task is imported: or why it cannot be."""
        if client.is_gone:
            return
        with self.answering(client, number, f"open batch {request.name}"):
            if reason:
                raise TaskError(reason)
            if not self._is_free(client, number, request, lambda: self._go_on(client, number, request)):
                return  # Another client was faster, or it was taken up to be changed, or left, during the import.
            folder, spec, payload = self.folder(request.name), request.spec, request.key_spec.payload
            is_new = spec is not None and not folder.exists()
            work = (
                partial(make, folder, spec or {}, payload)
                if is_new
                else partial(take_up, folder, payload, request.created)
            )
            self.hands.take(request.name, work, partial(self._serve, client, number, request), is_halfway=is_new)

    def _is_free(self, client: Client, number: int, request: Opening, again: Callable[[], None]) -> bool:
        """Return whether nobody has the batch. Else the client joins those who have, or waits and looks `again`."""
        name = request.name
        self.check_free(name, is_shared=request.is_shared)
        if self._clients.may_join(name):
            if name not in self._supervisor.scheduler.batches:  # By which rules it runs shows when it has stepped.
                self._supervisor.after_commit(again)
                return False
            self._check_alike(request)
            self._bind(client, request)  # Others run it: their workers serve this client as well.
            self._supervisor.after_commit(lambda: self._tell_opened(client, number, name))
            return False
        return not self.waits(name, again)

    def waits(self, name: str, again: Callable[[], None]) -> bool:
        """Return whether something is under way with a batch, or somebody has it; then look `again` after that."""
        if self.hands.wait(name, again):
            return True
        if name in self._supervisor.journals:
            self._clients.when_put_down(name, again)
            return True
        return False

    def _serve(self, client: Client, number: int, request: Opening, made: Taken | Exception) -> None:
        with self.answering(client, number, f"open batch {request.name}"):
            if isinstance(made, Exception):
                raise made
            if client.is_gone or self._clients.refusal:
                made.journal.close()
                raise SupervisorError(self._clients.refusal)
            self.attach(made, request)
            self._bind(client, request)
            self._supervisor.after_commit(lambda: self._tell_opened(client, number, request.name))

    def attach(self, taken: Taken, request: Opening) -> None:
        """Have a batch served that was taken up."""
        supervisor, journal = self._supervisor, taken.journal
        name = request.name
        if taken.suspects is not None:
            supervisor.aside.do_parts(strays.sweep(journal, taken.suspects))
        supervisor.journals[name] = journal
        supervisor.progress[name] = taken.progress
        supervisor.usage.take_up(name, taken.usage)
        supervisor.pool.take_up(name, request.key, request.key_spec)
        supervisor.emit(ev.BatchAttached(taken.live, request.options, request.key, _new_stint()))

    @contextmanager
    def answering(self, client: Client, number: int, what: str) -> Iterator[None]:
        """Refuse the client for whatever is raised: nobody else would, and it waits for an answer."""
        try:
            yield
        except BatchdError as error:
            client.refuse(number, error)
        except Exception as error:
            log_traceback()
            log = self._supervisor.ground.folder / "supervisor.log"
            why = f"cannot {what}: {type(error).__name__}: {error}; {log} says where that came from"
            client.refuse(number, SupervisorError(why))

    def _bind(self, client: Client, request: Opening) -> None:
        client.bound.add(request.name)
        if request.follows:
            client.untold[request.name] = RangeSet()
        if request.is_shared:
            self._clients.shared.add(request.name)
        if request.is_eager:
            self._clients.eager.add(request.name)

    def check_free(self, name: str, *, is_shared: bool) -> None:
        """Raise BatchBusy or SupervisorError when the batch cannot be opened now."""
        if self._clients.refusal:
            raise SupervisorError(self._clients.refusal)
        owner = self._clients.owner(name)
        if owner is not None and not (is_shared and name in self._clients.shared):
            raise BatchBusy(f"batch {name} is being run by process {owner.line.pid}: `batchd status` shows it")
        if len([*self._supervisor.journals, *self.hands]) >= OPEN_BATCHES_MAX:
            raise SupervisorError(f"{OPEN_BATCHES_MAX} batches are open, which is the limit: wait for one to finish")

    def _check_alike(self, request: Opening) -> None:
        """Refuse a client whose jobs would silently be run by the rules of others, or go into another batch."""
        check_same(self._supervisor.journals[request.name], request.created)
        batch = self._supervisor.scheduler.batches[request.name]
        theirs, its = _rules_of(batch.options), _rules_of(request.options)
        if theirs != its:
            raise UsageError(
                f"the queue {request.name} is open with {theirs}, and this client asks for {its}: "
                "ask for the same, or for a queue of another name"
            )

    def folder(self, name: str) -> Path:
        """Return where a batch is, or would be; raises UsageError for what cannot be an id."""
        if not name or not all(part.isalnum() for part in name.split("-")) or len(name) > 16:
            raise UsageError(f"{name!r} cannot be a batch's id")
        return self._supervisor.ground.folder / "batches" / name

    def _tell_opened(self, client: Client, number: int, name: str) -> None:
        if client.is_gone:
            return  # And the batch may be as well.
        journal = self._supervisor.journals[name]
        fields = {
            "created": str(journal.spec.get("created", "")),
            "checkpoint": journal.facts.checkpoint,
            **self._clients.progress(name),
            **({"recorded": list(journal.snapshot().done)} if name in client.untold else {}),
        }
        client.reply(number, fields)


def _new_stint() -> int:
    """Return a number by chance, for a counter would begin anew with a journal that is restored."""
    return int.from_bytes(os.urandom(8), "big")


def _rules_of(options: ev.Options) -> str:
    """Say how the jobs of a batch are run, as far as it shows in their outcomes."""
    allowed = options.allowances
    memory = "" if options.memory_bytes_max is None else f", memory_per_job={options.memory_bytes_max}"
    return f"retries={allowed.retries}, crashes_max={allowed.crashes_max}, timeout={options.timeout_s}{memory}"


def options_of(fields: dict[str, Any]) -> ev.Options:
    """Return the options a client sent. What is none of them is found out here, not by the scheduler."""
    allowances = Allowances(**{name: int(value) for name, value in fields["allowances"].items()})
    options = ev.Options(**{**fields, "allowances": allowances})
    if type(options.workers) is not int or not 1 <= options.workers <= WORKERS_MAX:
        raise UsageError(f"cannot run {options.workers} workers: give a number from 1 to {WORKERS_MAX}")
    for limit in (options.timeout_s, options.memory_bytes_max, options.failures_max, options.failures_share_max):
        if limit is not None and not isinstance(limit, int | float):
            raise TypeError(f"{limit!r} is no limit")
    return options


def key_spec_of(fields: dict[str, Any], payload: bytes) -> KeySpec:
    """Return how workers are to be started, as a client sent it."""
    spec = KeySpec(**{**fields, "payload": payload})
    module, name = spec.task
    texts = [module, name, *spec.sys_path, spec.cwd, spec.executable, *spec.environ, *spec.environ.values()]
    if not all(isinstance(text, str) and b"\0" not in os.fsencode(text) for text in texts):
        raise TypeError("a task, path or environment that is not text")
    if any("=" in name for name in spec.environ):
        raise ValueError("a name that no environment can have")
    return spec
