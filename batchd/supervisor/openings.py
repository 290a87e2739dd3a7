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

import lmdb

from batchd.core import events as ev
from batchd.core.job import Allowances
from batchd.core.ranges import RangeSet
from batchd.core.replay import all_interrupted
from batchd.core.stored import copy
from batchd.edge import strays
from batchd.edge.callbacks import call_each
from batchd.edge.control import Message
from batchd.edge.drafts import make_batch
from batchd.edge.folder import free_bytes, unwritten
from batchd.edge.journal import BatchJournal
from batchd.edge.log import log_traceback
from batchd.edge.template import KeySpec
from batchd.errors import (
    BatchBusy,
    BatchdError,
    BatchNotFound,
    JournalFull,
    SupervisorError,
    TaskError,
    UsageError,
)
from batchd.formats import tables
from batchd.settings import DISK_RESERVE_BYTES, OPEN_BATCHES_MAX, WORKERS_MAX
from batchd.supervisor.clients import Client, Clients, Host
from batchd.units import format_size

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
    """Opens batches, for clients or for a change alone."""

    def __init__(self, supervisor: Host, clients: Clients) -> None:
        self._supervisor = supervisor
        self._clients = clients
        self._being_made: dict[str, list[Callable[[], None]]] = {}
        """New batches, and who waits for each."""

    @property
    def is_making(self) -> bool:
        """Whether a batch is being made, which would be left half made."""
        return bool(self._being_made)

    def open(self, client: Client, number: int, request: Opening) -> None:
        """Attach a batch for this client; the task is imported first, so that nothing is made for a wrong one."""
        name = request.name
        self.check_free(name, is_shared=request.is_shared)
        if self._clients.may_join(name):
            self._check_alike(request)
            self._bind(client, request)  # Others run it: their workers serve this client as well.
            self._supervisor.after_commit(lambda: self._tell_opened(client, number, name))
            return

        def import_task() -> None:
            go_on = partial(self._go_on, client, number, request)
            with self._answering(client, number, name):
                self._supervisor.pool.add_key(request.key, request.key_spec, go_on)

        self._clients.when_put_down(name, import_task)

    def _go_on(
        self, client: Client, number: int, request: Opening, reason: str = "", *, is_new: bool = False
    ) -> None:
        """Go on when the task was imported, or cannot be for a `reason`."""
        name = request.name
        if client.is_gone:
            return
        with self._answering(client, number, name):
            if reason:
                raise TaskError(reason)
            self.check_free(name, is_shared=request.is_shared)
            if self._clients.may_join(name):
                self._check_alike(request)  # Another client was faster.
            elif name in self._supervisor.journals:  # Taken up to be changed, or left, during the import.
                self._clients.when_put_down(name, lambda: self._go_on(client, number, request))
                return
            elif self._must_be_made(request):
                self._make(client, number, request)
                return
            else:
                self.attach(request, is_new=is_new)
            self._bind(client, request)
            self._supervisor.after_commit(lambda: self._tell_opened(client, number, name))

    @contextmanager
    def _answering(self, client: Client, number: int, name: str) -> Iterator[None]:
        """Refuse the client for whatever is raised: nobody else would, and it waits for an answer."""
        try:
            yield
        except BatchdError as error:
            client.refuse(number, error)
        except Exception as error:
            log_traceback()
            log = self._supervisor.ground.folder / "supervisor.log"
            why = f"cannot open batch {name}: {type(error).__name__}: {error}; {log} says where that came from"
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
        if len(self._supervisor.journals) >= OPEN_BATCHES_MAX:
            raise SupervisorError(f"{OPEN_BATCHES_MAX} batches are open, which is the limit: wait for one to finish")

    def _check_alike(self, request: Opening) -> None:
        """Refuse a client whose jobs would silently be run by the rules of others, or go into another batch."""
        _check_same(self._supervisor.journals[request.name], request)
        batch = self._supervisor.scheduler.batches.get(request.name)
        if batch is None:
            return
        theirs, its = _rules_of(batch.options), _rules_of(request.options)
        if theirs != its:
            raise UsageError(
                f"the queue {request.name} is open with {theirs}, and this client asks for {its}: "
                "ask for the same, or for a queue of another name"
            )

    def _must_be_made(self, request: Opening) -> bool:
        return request.spec is not None and not self.folder(request.name).exists()

    def _make(self, client: Client, number: int, request: Opening) -> None:
        """Have a new batch made while the loop goes on, then go on."""
        name, spec = request.name, request.spec or {}
        if name in self._being_made:
            self._being_made[name].append(lambda: self._go_on(client, number, request))
            return
        folder = self.folder(name)
        if (free := free_bytes(folder.parent)) < DISK_RESERVE_BYTES:
            room = f"{format_size(free)} are free and {format_size(DISK_RESERVE_BYTES)} needed"
            raise JournalFull(f"the disk under {folder.parent} is nearly full: {room}. Free some, or use --journal")
        self._being_made[name] = []

        def then(raised: Exception | None) -> None:
            waiting = self._being_made.pop(name)
            try:
                with self._answering(client, number, name):
                    if raised is not None:
                        raise raised
                    self._go_on(client, number, request, is_new=True)
            finally:
                call_each(waiting)

        self._supervisor.aside.do(lambda: make_batch(folder, spec, request.key_spec.payload), then)

    def attach(self, request: Opening, *, is_new: bool = False) -> None:
        """Take a batch up that nobody runs; raises BatchNotFound or JournalError."""
        supervisor, name = self._supervisor, request.name
        folder = self.folder(name)
        if not folder.exists():
            raise BatchNotFound(f"there is no batch {name}: `batchd ls` lists them")
        journal = BatchJournal(folder, is_writer=True)
        try:
            _check_same(journal, request)
            suspects = strays.suspects(journal)
            if request.key_spec.payload and not is_new:
                journal.replace_function(tables.TASK_MARK, request.key_spec.payload)
            if made := all_interrupted(copy(journal.facts)):
                journal.commit(made)  # The machine died while the batch ran: the recorder that knew more is lost.
            usage = journal.read_usage()
            progress = journal.progress()
            # The scheduler has facts of its own, ahead of the journal's by what is not durable yet.
            live = copy(journal.facts)
        except BaseException as error:
            journal.close()  # Or it could not be opened by this process again.
            if isinstance(error, lmdb.Error):
                raise unwritten(error, folder, f"cannot write to the batch in {folder}") from None
            raise
        if suspects is not None:
            supervisor.aside.do_parts(strays.sweep(journal, suspects))
        supervisor.journals[name] = journal
        supervisor.progress[name] = progress
        supervisor.usage[name] = {**supervisor.batch_usage(name), **usage}
        supervisor.pool.take_up(name, request.key, request.key_spec)
        supervisor.emit(ev.BatchAttached(live, request.options, request.key, _new_stint()))

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
            "sequences": journal.facts.sequences,
            **self._clients.progress(name),
            **({"recorded": list(journal.snapshot().done)} if name in client.untold else {}),
        }
        client.reply(number, fields)


def _check_same(journal: BatchJournal, request: Opening) -> None:
    """Refuse a client that would go on with another batch than it had open."""
    name, created = request.name, str(journal.spec.get("created", ""))
    if request.created not in {"", created}:
        raise BatchNotFound(
            f"batch {name} of {request.created} was removed while it was in use, and another was made under its id: "
            "open that one anew, and give it what it is to have"
        )


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
