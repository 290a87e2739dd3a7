"""Clients: requests in, events out, answers when what they tell is durable.

Every request is a JSON object with "do" and "number"; its reply carries the same number. Clients are watched by
pidfd, not only by end of file: a child the client forked may hold the connection open.
"""

import os
from collections.abc import Callable
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from typing import Any, Protocol

from batchd import __version__
from batchd.core import events as ev
from batchd.core.job import Allowances, JobState
from batchd.core.ranges import RangeSet
from batchd.core.replay import all_interrupted
from batchd.core.scheduler import Scheduler
from batchd.edge.control import NEWS, REPLY, Line, Message, listen
from batchd.edge.folder import free_bytes
from batchd.edge.journal import BatchJournal, Progress, copy
from batchd.edge.outcomes import Outcomes
from batchd.edge.pool import Pool
from batchd.edge.template import KeySpec
from batchd.errors import BatchdError, BatchNotFound, FormatError, JournalFull, SupervisorError, TaskError, UsageError
from batchd.formats.segment import header_of
from batchd.settings import DISK_RESERVE_BYTES, OPEN_BATCHES_MAX, WORKERS_MAX
from batchd.supervisor.recovery import Ground


class Host(Protocol):
    """What requests need of the supervisor's loop."""

    ground: Ground
    selector: BaseSelector
    scheduler: Scheduler
    pool: Pool
    journals: dict[str, BatchJournal]
    progress: dict[str, Progress]
    usage: dict[str, dict[str, float]]
    trouble: str

    def emit(self, event: ev.Event) -> None:
        """Tell the scheduler something at the next step."""

    def after_commit(self, call: Callable[[], None]) -> None:
        """Call back when everything that was emitted so far is durable."""

    def batch_usage(self, batch: str) -> dict[str, float]:
        """Return the running sums of a batch."""

    def status(self) -> dict[str, Any]:
        """Return what everybody is doing."""


class Client:
    """One connected client."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.pidfd = os.pidfd_open(line.pid)
        self.bound: set[str] = set()
        """Batches that stop when this client goes."""
        self.is_gone = False

    def reply(self, number: int, fields: dict[str, Any]) -> None:
        """Answer a request."""
        if not self.is_gone:
            self.line.send(REPLY, {"number": number, **fields})

    def refuse(self, number: int, error: BatchdError) -> None:
        """Answer that it cannot be done."""
        self.reply(number, {"error": type(error).__name__, "message": str(error)})


class Clients:
    """All clients of one supervisor."""

    def __init__(self, supervisor: Host) -> None:
        self._supervisor = supervisor
        self._door = listen(supervisor.ground.folder)
        self._clients: list[Client] = []
        self._news: set[str] = set()
        self._put_down: dict[str, list[Callable[[], None]]] = {}
        """What waits for a batch to be put down."""
        self._refusal = ""
        self._told = 0
        """Numbers what is told of progress: a client that reads a reply before older news can tell."""
        self.is_news_urgent = False
        supervisor.selector.register(self._door, EVENT_READ, self._on_door)

    @property
    def is_any(self) -> bool:
        """Whether somebody is connected."""
        return bool(self._clients)

    @property
    def is_news_waiting(self) -> bool:
        """Whether there is progress that was not told yet."""
        return bool(self._news)

    def mark_news(self, batch: str) -> None:
        """Have the batch's clients told of its progress; at once when it ended or stopped."""
        self._news.add(batch)
        made = self._supervisor.progress.get(batch)
        if made is not None and made.state not in {"open", "sealed"}:
            self.is_news_urgent = True

    def tell_news(self) -> None:
        """Tell every client the progress of its batches."""
        news, self._news, self.is_news_urgent = self._news, set(), False
        for client in self._clients:
            if (
                client.line.has_unsent
            ):  # It does not read: what it has not got yet is enough, and later news are newer.
                self._news |= client.bound & news
                continue
            for batch in client.bound & news:
                client.line.send(NEWS, self._progress(batch))
                self._watch_unsent(client)

    def refuse_new(self, reason: str) -> None:
        """Answer every further open with this."""
        self._refusal = reason

    def on_put_down(self, batch: str) -> None:
        """The batch is durably detached: tell its client how it stands at the end."""
        for client in self._clients:
            if batch in client.bound:
                client.bound.discard(batch)
                client.line.send(NEWS, {**self._progress(batch), "is_put_down": True})
                self._watch_unsent(client)

    def go_on_without(self, batch: str) -> None:
        """Serve those who waited until the batch was put down."""
        for call in self._put_down.pop(batch, ()):
            call()

    def close(self) -> None:
        """Hang up on everybody."""
        for client in list(self._clients):
            self._drop(client)
        self._supervisor.selector.unregister(self._door)
        self._door.close()

    # --- Connections -------------------------------------------------------------------------------------------

    def _on_door(self) -> None:
        try:
            line, _ = self._door.accept()
        except OSError:
            return
        try:
            client = Client(Line(line))
        except (BatchdError, OSError):
            line.close()  # Another user, or gone already.
            return
        self._clients.append(client)
        selector = self._supervisor.selector
        selector.register(line, EVENT_READ, lambda: self._on_line(client))
        selector.register(client.pidfd, EVENT_READ, lambda: self._drop(client))

    def _on_line(self, client: Client) -> None:
        if client.is_gone:
            return
        try:
            messages = client.line.read()
        except FormatError:
            messages = None
        if messages is None:
            self._drop(client)
            return
        for message in messages:
            self._on_message(client, message)
        client.line.flush()
        self._watch_unsent(client)

    def _watch_unsent(self, client: Client) -> None:
        wanted = EVENT_READ | (EVENT_WRITE if client.line.has_unsent else 0)
        if not client.is_gone:
            self._supervisor.selector.modify(client.line.socket, wanted, lambda: self._on_line(client))

    def _drop(self, client: Client) -> None:
        if client.is_gone:
            return
        client.is_gone = True
        self._clients.remove(client)
        for source in (client.line.socket, client.pidfd):
            self._supervisor.selector.unregister(source)
        client.line.close()
        os.close(client.pidfd)
        for batch in client.bound:  # Nobody waits for what runs: it is cut off and uncharged.
            self._supervisor.emit(ev.DetachRequested(batch, at_once=True))

    def _on_message(self, client: Client, message: Message) -> None:
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

    # --- Requests ----------------------------------------------------------------------------------------------

    def _hello(self, client: Client, number: int, _: Message) -> None:
        ground = self._supervisor.ground
        client.reply(number, {"version": __version__, "pid": os.getpid(), "epoch": ground.epoch})

    def _open(self, client: Client, number: int, message: Message) -> None:
        """Attach a batch for this client; the task is imported first, so that nothing is made for a wrong one."""
        fields = message.fields
        name, spec = str(fields["batch"]), fields.get("spec")
        key, key_spec = str(fields["key"]), _key_spec(fields["key_spec"])
        options = _options(fields["options"])
        self._check_free(name)

        def go_on(reason: str) -> None:
            if client.is_gone:
                return
            try:
                if reason:
                    raise TaskError(reason)
                self._check_free(name)
                if name in self._supervisor.journals:  # Taken up for a moment, to be changed, during the import.
                    self._when_put_down(name, lambda: go_on(""))
                    return
                self._attach(client, name, spec, options, key)
            except BatchdError as error:
                client.refuse(number, error)
                return
            self._supervisor.after_commit(lambda: self._tell_opened(client, number, name))

        self._when_put_down(name, lambda: self._supervisor.pool.add_key(key, key_spec, go_on))

    def _check_free(self, name: str) -> None:
        if self._refusal:
            raise SupervisorError(self._refusal)
        owner = next((other for other in self._clients if name in other.bound), None)
        if owner is not None:
            raise SupervisorError(f"batch {name} is being run by process {owner.line.pid}: `batchd status` shows it")
        if len(self._supervisor.journals) >= OPEN_BATCHES_MAX:
            raise SupervisorError(f"{OPEN_BATCHES_MAX} batches are open, which is the limit: wait for one to finish")

    def _when_put_down(self, name: str, call: Callable[[], None]) -> None:
        if name in self._supervisor.journals:
            self._put_down.setdefault(name, []).append(call)
        else:
            call()

    def _attach(
        self, client: Client | None, name: str, spec: dict[str, Any] | None, options: ev.Options, key: str
    ) -> None:
        supervisor = self._supervisor
        folder = self._folder(name)
        if folder.exists():
            journal = BatchJournal(folder, is_writer=True)
        elif spec is None:
            raise BatchNotFound(f"there is no batch {name}: `batchd ls` lists them")
        else:
            if free_bytes(folder.parent) < DISK_RESERVE_BYTES:
                raise JournalFull(f"the disk under {folder.parent} is nearly full: free some space, or use --journal")
            journal = BatchJournal.create(folder, spec)
        made = all_interrupted(copy(journal.facts))
        if made:  # The machine died while the batch ran: the recorder that knew more is lost.
            journal.commit(made)
        supervisor.journals[name] = journal
        supervisor.progress[name] = journal.progress()
        supervisor.usage[name] = {**supervisor.batch_usage(name), **journal.read_usage()}
        # The scheduler has facts of its own, ahead of the journal's by what is not durable yet.
        live = copy(journal.facts)
        supervisor.emit(ev.BatchAttached(live, options, key, supervisor.ground.epoch))
        if client is not None:
            client.bound.add(name)

    def _folder(self, name: str) -> Path:
        if not name or not all(part.isalnum() for part in name.split("-")) or len(name) > 16:
            raise UsageError(f"{name!r} cannot be a batch's id")
        return self._supervisor.ground.folder / "batches" / name

    def _tell_opened(self, client: Client, number: int, name: str) -> None:
        journal = self._supervisor.journals[name]
        fields = {
            "checkpoint": journal.facts.checkpoint,
            "sequences": journal.facts.sequences,
            **self._progress(name),
        }
        client.reply(number, fields)

    def _submit(self, client: Client, number: int, message: Message) -> None:
        name = self._bound(client, message)
        segments: list[bytes] = []
        view, at, jobs = memoryview(message.body), 0, 0
        while at < len(view):
            _, count, _, length = header_of(view, at)
            segments.append(bytes(view[at : at + length]))
            jobs, at = jobs + count, at + length
        if at != len(view):
            raise FormatError("the last segment was cut off")
        self._supervisor.emit(
            ev.SegmentsReceived(
                batch=name,
                count=jobs,
                segments=tuple(segments),
                client=str(message.fields["client"]),
                sequence=int(message.fields["sequence"]),
                checkpoint=str(message.fields["checkpoint"]),
            )
        )
        self._supervisor.after_commit(lambda: client.reply(number, {}))

    def _seal(self, client: Client, number: int, message: Message) -> None:
        name = self._bound(client, message)
        self._supervisor.emit(ev.SealRequested(name))
        self._supervisor.after_commit(lambda: client.reply(number, self._progress(name)))

    def _unseal(self, client: Client, number: int, message: Message) -> None:
        name = self._bound(client, message)
        self._supervisor.emit(ev.UnsealRequested(name))
        self._supervisor.after_commit(lambda: client.reply(number, self._progress(name)))

    def _detach(self, client: Client, number: int, message: Message) -> None:
        name = str(message.fields["batch"])
        if name not in self._supervisor.journals:
            client.reply(number, {})
            return
        at_once = bool(message.fields.get("at_once"))
        self._put_down.setdefault(name, []).append(lambda: client.reply(number, {}))
        self._supervisor.emit(ev.DetachRequested(name, at_once=at_once))

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
        self._change(client, number, message, lambda name: ev.CancelRequested(name, str(message.fields["reason"])))

    def _reopen(self, client: Client, number: int, message: Message) -> None:
        states = {JobState(state) for state in message.fields["states"]} - {JobState.SUCCEEDED}
        self._change(client, number, message, lambda name: self._reopen_event(name, states))

    def _change(self, client: Client, number: int, message: Message, event_of: Callable[[str], ev.Event]) -> None:
        """Emit an event about a batch, taking the batch up for just that when nobody runs it."""
        name = str(message.fields["batch"])
        supervisor = self._supervisor
        was_live = name in supervisor.journals
        if not was_live:
            self._attach(None, name, None, ev.Options(), "")
        supervisor.emit(event_of(name))
        if not was_live:
            supervisor.emit(ev.DetachRequested(name))
        supervisor.after_commit(lambda: client.reply(number, {**self._progress(name), "is_live": was_live}))

    def _reopen_event(self, name: str, states: set[JobState]) -> ev.ReopenRequested:
        journal = self._supervisor.journals[name]
        facts = journal.snapshot()
        found: dict[JobState, RangeSet] = {}
        if any(facts.count(state) for state in states):
            for span in Outcomes(journal).spans(facts.done, facts.generation):
                if span.state in states:
                    found.setdefault(span.state, RangeSet()).add(span.start, span.stop)
        ranges = tuple((state, tuple(of_state)) for state, of_state in found.items())
        return ev.ReopenRequested(name, ranges, facts.generation)

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

    def _progress(self, batch: str) -> dict[str, Any]:
        supervisor = self._supervisor
        made = supervisor.progress.get(batch) or self._progress_on_disk(batch)
        live = supervisor.scheduler.batches.get(batch)
        self._told += 1
        return {
            "told": self._told,
            "batch": batch,
            **made._asdict(),
            "workers": len(supervisor.pool.workers),
            "busy": len(live.workers) if live else 0,
            "trouble": supervisor.trouble,
            "usage": supervisor.usage.get(batch, {}),
        }

    def _progress_on_disk(self, batch: str) -> Progress:
        """Of a batch that was put down between a request about it and the reply."""
        journal = BatchJournal(self._folder(batch))
        journal.close()
        return journal.progress()


def _options(fields: dict[str, Any]) -> ev.Options:
    """Return the options a client sent. What is none of them is found out here, not by the scheduler."""
    allowances = Allowances(**{name: int(value) for name, value in fields["allowances"].items()})
    options = ev.Options(**{**fields, "allowances": allowances})
    if not 1 <= int(options.workers) <= WORKERS_MAX:
        raise UsageError(f"cannot run {options.workers} workers: give a number from 1 to {WORKERS_MAX}")
    for limit in (options.timeout_s, options.memory_bytes_max, options.failures_max, options.failures_share_max):
        if limit is not None and not isinstance(limit, int | float):
            raise TypeError(f"{limit!r} is no limit")
    return options


def _key_spec(fields: dict[str, Any]) -> KeySpec:
    """Return how workers are to be started, as a client sent it."""
    spec = KeySpec(**fields)
    module, name = spec.task
    texts = [module, name, *spec.sys_path, spec.cwd, spec.executable, *spec.environ, *spec.environ.values()]
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise TypeError("a task, path or environment that is not text")
    return spec


_RULES: dict[str, Callable[[Clients, Client, int, Message], None]] = {
    "hello": Clients._hello,  # noqa: SLF001  (the table of the class above)
    "open": Clients._open,  # noqa: SLF001
    "submit": Clients._submit,  # noqa: SLF001
    "seal": Clients._seal,  # noqa: SLF001
    "unseal": Clients._unseal,  # noqa: SLF001
    "detach": Clients._detach,  # noqa: SLF001
    "accept_code": Clients._accept_code,  # noqa: SLF001
    "cancel": Clients._cancel,  # noqa: SLF001
    "reopen": Clients._reopen,  # noqa: SLF001
    "status": Clients._status,  # noqa: SLF001
    "scale": Clients._scale,  # noqa: SLF001
}
