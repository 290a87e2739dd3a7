"""Requests of clients: to events, and answered when what the answer tells is durable.

Every request is a JSON object with "do" and "number"; its reply carries the same number. One rule per request, in
the table at the end. Nothing of the user's is unpickled here.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from batchd import __version__
from batchd.core import events as ev
from batchd.core.costs import checked_costs
from batchd.core.job import Allowances, JobState
from batchd.core.ranges import Range, RangeSet
from batchd.core.replay import all_interrupted
from batchd.core.stored import copy
from batchd.edge import strays
from batchd.edge.control import Message
from batchd.edge.folder import free_bytes
from batchd.edge.journal import BatchJournal, make_batch
from batchd.edge.outcomes import Outcomes
from batchd.edge.removal import set_aside
from batchd.edge.template import KeySpec
from batchd.errors import (
    BatchBusy,
    BatchdError,
    BatchNotFound,
    FormatError,
    JournalError,
    JournalFull,
    SupervisorError,
    TaskError,
    UsageError,
)
from batchd.formats import tables
from batchd.formats.segment import header_of
from batchd.settings import CUT_WAIT_S, DISK_RESERVE_BYTES, OPEN_BATCHES_MAX, WORKERS_MAX
from batchd.supervisor.aside import Aside
from batchd.supervisor.clients import Client, Clients, Host

_NO_KEY = KeySpec(("", ""), (), "", {}, "")


class _Opening(NamedTuple):
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

    @classmethod
    def of(cls, message: Message) -> "_Opening":
        fields = message.fields
        spec = fields.get("spec")
        if spec is not None and not isinstance(spec, dict):
            raise UsageError("malformed request: the specification of a batch is a JSON object")
        return cls(
            name=str(fields["batch"]),
            spec=spec,
            options=_options(fields["options"]),
            key=str(fields["key"]),
            key_spec=_key_spec(fields["key_spec"], bytes(message.body)),
            is_shared=bool(fields.get("is_shared")),
            follows=bool(fields.get("follows")),
            is_eager=bool(fields.get("is_eager")),
        )


class Requests:
    """The rules for what clients ask."""

    def __init__(self, supervisor: Host, clients: Clients) -> None:
        self._supervisor = supervisor
        self._clients = clients
        self._aside = Aside(supervisor.selector)
        self._being_made: dict[str, list[Callable[[], None]]] = {}
        """New batches, and who waits for each."""

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
        """Attach a batch for this client; the task is imported first, so that nothing is made for a wrong one."""
        request = _Opening.of(message)
        name = request.name
        self._check_free(name, is_shared=request.is_shared)
        if name in self._clients.shared and self._clients.owner(name) is not None:
            self._check_alike(request)
            self._bind(client, request)  # Others run it: their workers serve this client as well.
            self._supervisor.after_commit(lambda: self._tell_opened(client, number, name))
            return

        def go_on(reason: str, *, is_new: bool = False) -> None:
            if client.is_gone:
                return
            try:
                if reason:
                    raise TaskError(reason)
                self._check_free(name, is_shared=request.is_shared)
                if name in self._clients.shared and self._clients.owner(name) is not None:
                    self._check_alike(request)  # Another client was faster.
                elif name in self._supervisor.journals:  # Taken up for a moment, to be changed, during the import.
                    self._clients.when_put_down(name, lambda: go_on(""))
                    return
                elif self._must_be_made(request):
                    self._make(client, number, request, go_on)
                    return
                else:
                    self._attach(request, is_new=is_new)
                self._bind(client, request)
            except BatchdError as error:
                client.refuse(number, error)
                return
            self._supervisor.after_commit(lambda: self._tell_opened(client, number, name))

        pool = self._supervisor.pool
        self._clients.when_put_down(name, lambda: pool.add_key(request.key, request.key_spec, go_on))

    def _bind(self, client: Client, request: "_Opening") -> None:
        client.bound.add(request.name)
        if request.follows:
            client.untold[request.name] = RangeSet()
        if request.is_shared:
            self._clients.shared.add(request.name)
        if request.is_eager:
            self._clients.eager.add(request.name)

    def _check_free(self, name: str, *, is_shared: bool) -> None:
        if self._clients.refusal:
            raise SupervisorError(self._clients.refusal)
        owner = self._clients.owner(name)
        if owner is not None and not (is_shared and name in self._clients.shared):
            raise BatchBusy(f"batch {name} is being run by process {owner.line.pid}: `batchd status` shows it")
        if len(self._supervisor.journals) >= OPEN_BATCHES_MAX:
            raise SupervisorError(f"{OPEN_BATCHES_MAX} batches are open, which is the limit: wait for one to finish")

    def _check_alike(self, request: "_Opening") -> None:
        """Refuse a client whose jobs would silently be run by the rules of others."""
        batch = self._supervisor.scheduler.batches.get(request.name)
        if batch is None:
            return
        theirs, its = _rules_of(batch.options), _rules_of(request.options)
        if theirs != its:
            raise UsageError(
                f"the queue {request.name} is open with {theirs}, and this client asks for {its}: "
                "ask for the same, or for a queue of another name"
            )

    def _must_be_made(self, request: _Opening) -> bool:
        return request.spec is not None and not self._folder(request.name).exists()

    def _make(self, client: Client, number: int, request: _Opening, go_on: Callable[..., None]) -> None:
        """Have a new batch made while the loop goes on, then go on."""
        name, spec = request.name, request.spec or {}
        if name in self._being_made:
            self._being_made[name].append(lambda: go_on(""))
            return
        folder = self._folder(name)
        if free_bytes(folder.parent) < DISK_RESERVE_BYTES:
            raise JournalFull(f"the disk under {folder.parent} is nearly full: free some space, or use --journal")
        self._being_made[name] = []

        def then(raised: Exception | None) -> None:
            waiting = self._being_made.pop(name)
            if raised is None:
                go_on("", is_new=True)
            else:
                known = raised if isinstance(raised, BatchdError) else None
                client.refuse(number, known or SupervisorError(f"cannot make batch {name}: {raised!r}"))
            for call in waiting:
                call()

        self._aside.do(lambda: make_batch(folder, spec, request.key_spec.payload), then)

    def _attach(self, request: _Opening, *, is_new: bool = False) -> None:
        supervisor, name = self._supervisor, request.name
        folder = self._folder(name)
        if not folder.exists():
            raise BatchNotFound(f"there is no batch {name}: `batchd ls` lists them")
        journal = BatchJournal(folder, is_writer=True)
        try:
            if not is_new:
                strays.sweep(journal)
                if request.key_spec.payload:
                    journal.replace_function(tables.TASK_MARK, request.key_spec.payload)
            if made := all_interrupted(copy(journal.facts)):
                journal.commit(made)  # The machine died while the batch ran: the recorder that knew more is lost.
            usage = journal.read_usage()
        except BaseException as error:
            journal.close()  # Or it could not be opened by this process again.
            if isinstance(error, lmdb.Error):
                raise JournalError(f"cannot write to the batch in {folder}: {error}") from None
            raise
        supervisor.journals[name] = journal
        supervisor.progress[name] = journal.progress()
        supervisor.usage[name] = {**supervisor.batch_usage(name), **usage}
        # The scheduler has facts of its own, ahead of the journal's by what is not durable yet.
        live = copy(journal.facts)
        supervisor.emit(ev.BatchAttached(live, request.options, request.key, supervisor.ground.epoch))

    def _folder(self, name: str) -> Path:
        if not name or not all(part.isalnum() for part in name.split("-")) or len(name) > 16:
            raise UsageError(f"{name!r} cannot be a batch's id")
        return self._supervisor.ground.folder / "batches" / name

    def _tell_opened(self, client: Client, number: int, name: str) -> None:
        journal = self._supervisor.journals[name]
        fields = {
            "checkpoint": journal.facts.checkpoint,
            "sequences": journal.facts.sequences,
            **self._clients.progress(name),
            **({"recorded": list(journal.snapshot().done)} if name in client.untold else {}),
        }
        client.reply(number, fields)

    def _submit(self, client: Client, number: int, message: Message) -> None:
        name = self._bound(client, message)
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
            self._supervisor.after_commit(lambda: client.reply(number, self._submitted(name, message)))

    def _submitted(self, name: str, message: Message) -> dict[str, Any]:
        """Return how the batch stands, and where the client's last submission begins, for clients that share it."""
        sequence, first = self._supervisor.journals[name].last_of(str(message.fields["client"]))
        found = {"first": first} if sequence == message.fields["sequence"] else {}
        return {**self._clients.progress(name), **found}

    def _define(self, client: Client, number: int, message: Message) -> None:
        name, mark = self._bound(client, message), bytes.fromhex(str(message.fields["mark"]))
        if len(mark) != len(tables.TASK_MARK):
            raise ValueError("a mark that is none")
        self._supervisor.emit(ev.FunctionReceived(name, mark, message.body))
        self._supervisor.after_commit(lambda: client.reply(number, {}))

    def _trim(self, client: Client, number: int, message: Message) -> None:
        """Forget finished jobs of a batch that is not to be kept anyway."""
        name = self._bound(client, message)
        if not self._supervisor.journals[name].spec.get("is_throwaway"):
            raise UsageError(f"batch {name} is to be kept: `batchd prune` removes whole batches")
        self._supervisor.emit(ev.TrimRequested(name, _ranges(message)))
        client.reply(number, {})

    def _withdraw(self, client: Client, number: int, message: Message) -> None:
        """Cancel jobs that have not begun; answered when it is certain and durable which did not."""
        name = self._bound(client, message)
        self._supervisor.emit(ev.WithdrawRequested(name, _ranges(message)))
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
        self._supervisor.after_commit(lambda: client.reply(number, self._clients.progress(name)))

    def _detach(self, client: Client, number: int, message: Message) -> None:
        name = str(message.fields["batch"])
        if name not in self._supervisor.journals:
            client.reply(number, {})
            return
        at_once = bool(message.fields.get("at_once"))
        if name not in client.bound:
            raise SupervisorError(f"batch {name} is not open on this connection")
        self._clients.detach(client, name, at_once=at_once, then=lambda: client.reply(number, {}))

    def _accept_code(self, client: Client, number: int, message: Message) -> None:
        """Store that a batch goes on with the task's present source."""
        name = str(message.fields["batch"])
        if name in self._supervisor.journals:
            raise SupervisorError(f"batch {name} is running: its code cannot be exchanged now")
        journal = BatchJournal(self._folder(name), is_writer=True)
        try:
            journal.replace_spec({**journal.spec, "digest": str(message.fields["digest"])})
        finally:
            journal.close()
        client.reply(number, {})

    def _cancel(self, client: Client, number: int, message: Message) -> None:
        self._supervisor.use_reserve()
        self._change(client, number, message, lambda name: ev.CancelRequested(name, str(message.fields["reason"])))

    def _reopen(self, client: Client, number: int, message: Message) -> None:
        """Run jobs again, all that are in some state or those of `ranges`; tell which of these have no outcome."""
        states = {JobState(state) for state in message.fields["states"]} - {JobState.SUCCEEDED}
        asked = RangeSet(_ranges(message)) if "ranges" in message.fields else None
        is_replaced = bool(message.fields.get("is_replaced"))

        def told(name: str) -> dict[str, Any]:
            done = self._supervisor.journals[name].snapshot().done
            return {"undone": [part for start, stop in asked or () for part in done.gaps(start, stop)]}

        self._change(client, number, message, lambda name: self._reopen_event(name, states, asked, is_replaced), told)

    def _change(
        self,
        client: Client,
        number: int,
        message: Message,
        event_of: Callable[[str], ev.Event],
        told: Callable[[str], dict[str, Any]] = lambda _: {},
    ) -> None:
        """Emit an event about a batch, taking the batch up for just that when nobody runs it."""
        name = str(message.fields["batch"])
        supervisor = self._supervisor
        was_live = name in supervisor.journals
        if message.fields.get("if_idle"):
            self._check_free(name, is_shared=False)
        if not was_live:
            self._attach(_Opening(name))
        try:
            supervisor.emit(event_of(name))
        finally:  # Also when the change cannot be made: nobody said how workers of the batch would start.
            if not was_live:
                supervisor.emit(ev.DetachRequested(name))
        supervisor.after_commit(
            lambda: client.reply(number, {**self._clients.progress(name), "is_live": was_live, **told(name)})
        )

    def _reopen_event(
        self, name: str, states: set[JobState], asked: RangeSet | None, is_replaced: bool
    ) -> ev.ReopenRequested:
        journal = self._supervisor.journals[name]
        facts = journal.snapshot()
        found: dict[JobState, RangeSet] = {}
        if any(facts.count(state) for state in states):
            for span in Outcomes(journal).spans(facts.done, facts.generation):
                if span.state in states:
                    parts = [(span.start, span.stop)] if asked is None else asked.overlap(span.start, span.stop)
                    for part in parts:
                        found.setdefault(span.state, RangeSet()).add(*part)
        ranges = tuple((state, tuple(of_state)) for state, of_state in found.items())
        if asked is None and not ranges:
            ranges = ((JobState.CANCELLED, ()),)  # It takes back that the batch was cancelled, if nothing else.
        return ev.ReopenRequested(name, ranges, facts.generation, is_replaced)

    def _prune(self, client: Client, number: int, message: Message) -> None:
        """Set a batch aside that nobody runs; whoever asked deletes what then has another name."""
        name = str(message.fields["batch"])
        self._folder(name)

        def remove() -> None:
            try:
                if name in self._supervisor.journals:
                    raise SupervisorError(f"batch {name} is running: `batchd cancel {name}` ends it")
                aside = set_aside(self._supervisor.ground.folder, name)
            except BatchdError as error:
                client.refuse(number, error)
            else:
                client.reply(number, {"aside": aside.name})

        # Behind every answer that still reads the batch.
        self._supervisor.after_commit(remove)

    def _status(self, client: Client, number: int, _: Message) -> None:
        client.reply(number, self._supervisor.status())

    def _scale(self, client: Client, number: int, message: Message) -> None:
        workers = message.fields["workers"]
        before = self._supervisor.scheduler.scaled or max(
            (batch.options.workers for batch in self._supervisor.scheduler.batches.values()), default=0
        )
        if "change" in message.fields:
            workers = max(1, before + int(message.fields["change"]))
        if workers is not None and not 1 <= int(workers) <= WORKERS_MAX:
            raise UsageError(f"cannot run {workers} workers: give a number from 1 to {WORKERS_MAX}")
        self._supervisor.emit(ev.ScaleRequested(None if workers is None else int(workers)))
        client.reply(number, {"before": before, "workers": workers})

    def _bound(self, client: Client, message: Message) -> str:
        name = str(message.fields["batch"])
        if name not in client.bound:
            raise SupervisorError(f"batch {name} is not open on this connection")
        return name


def _rules_of(options: ev.Options) -> str:
    """Say how the jobs of a batch are run, as far as it shows in their outcomes."""
    allowed = options.allowances
    return f"retries={allowed.retries}, crashes_max={allowed.crashes_max}, timeout={options.timeout_s}"


def _options(fields: dict[str, Any]) -> ev.Options:
    """Return the options a client sent. What is none of them is found out here, not by the scheduler."""
    allowances = Allowances(**{name: int(value) for name, value in fields["allowances"].items()})
    options = ev.Options(**{**fields, "allowances": allowances})
    if type(options.workers) is not int or not 1 <= options.workers <= WORKERS_MAX:
        raise UsageError(f"cannot run {options.workers} workers: give a number from 1 to {WORKERS_MAX}")
    for limit in (options.timeout_s, options.memory_bytes_max, options.failures_max, options.failures_share_max):
        if limit is not None and not isinstance(limit, int | float):
            raise TypeError(f"{limit!r} is no limit")
    return options


def _ranges(message: Message) -> tuple[Range, ...]:
    ranges = tuple((int(start), int(stop)) for start, stop in message.fields["ranges"])
    if any(not 0 <= start < stop for start, stop in ranges):
        raise ValueError("a range that is none")
    return ranges


def _key_spec(fields: dict[str, Any], payload: bytes) -> KeySpec:
    """Return how workers are to be started, as a client sent it."""
    spec = KeySpec(**{**fields, "payload": payload})
    module, name = spec.task
    texts = [module, name, *spec.sys_path, spec.cwd, spec.executable, *spec.environ, *spec.environ.values()]
    if not all(isinstance(text, str) and b"\0" not in os.fsencode(text) for text in texts):
        raise TypeError("a task, path or environment that is not text")
    if any("=" in name for name in spec.environ):
        raise ValueError("a name that no environment can have")
    return spec


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
    "accept_code": Requests._accept_code,  # noqa: SLF001
    "cancel": Requests._cancel,  # noqa: SLF001
    "reopen": Requests._reopen,  # noqa: SLF001
    "prune": Requests._prune,  # noqa: SLF001
    "status": Requests._status,  # noqa: SLF001
    "scale": Requests._scale,  # noqa: SLF001
}
