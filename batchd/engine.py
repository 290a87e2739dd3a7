"""The engine of an executor: gathers calls into segments, and gives outcomes to futures.

One thread per executor does all of it. Submitting appends to a list and wakes the thread; whatever has gathered by
then travels together, so that a commit is shared by all calls that came while the last one was under way.
"""

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from time import monotonic
from traceback import format_exception
from typing import Any, ClassVar, Final

from batchd.client.attachment import Attachment, answer_with, in_event_loop, settle
from batchd.client.reading import error_at, unreadable
from batchd.client.session import Session, batch_id
from batchd.client.trimming import Trimming
from batchd.client.world import check_python, library_folder, library_key, library_spec, modules_of, name_of, warn
from batchd.core.events import Options
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes, Span
from batchd.edge.shelf import open_batch
from batchd.errors import BatchdError, ClientClosed
from batchd.formats.reference import Buffer, Reference
from batchd.formats.segment import nbytes_of
from batchd.formats.values import load
from batchd.joberrors import JobFailed, RemoteTraceback
from batchd.packing import Calling, Packer
from batchd.worker.calls import CALLS, Bundle, pack_bundle

_CALLS_MAX: Final = 8_192
"""Calls that travel together."""
_CANCEL_WAIT_S: Final = 5.0


class JobFuture(futures.Future[Any]):
    """The future of one call. `index` is the job's number in the batch, None until it was sent."""

    def __init__(self, engine: "Engine") -> None:
        super().__init__()
        self.engine = engine
        self.index: int | None = None
        self.is_taken = False
        """Whether it is not in the engine's queue any more."""
        self.accepted: futures.Future[int] | None = None
        """Of those who want to know: done, with the index, when the job is in the journal."""
        self.mark = b""
        """Of its function, if that is to be forgotten when nobody calls it any more."""

    @property
    def batch(self) -> str:
        """The id of the batch the job belongs to."""
        return self.engine.batch

    def cancel(self) -> bool:
        """Cancel the call if it has not begun, which the supervisor says; return whether it will never run.

        In a coroutine nothing is waited for, and it may yet turn out to be cancelled.
        """
        if not self.done():
            self.engine.withdraw([self])
        return self.cancelled()

    def running(self) -> bool:
        """Whether a worker runs the call now. Asks the supervisor."""
        return not self.done() and self.index is not None and self.index in self.engine.running()

    @staticmethod
    def cancel_all(waiting: "Iterable[futures.Future[Any]]") -> None:
        """Cancel many calls of one executor at the price of one."""
        mine = [future for future in waiting if isinstance(future, JobFuture) and not future.done()]
        if mine:
            mine[0].engine.withdraw(mine)

    def give_up(self) -> None:
        """Let everybody know that the call will never run."""
        if not self.done() and super().cancel():
            self.set_running_or_notify_cancel()


class Engine:
    """What an executor is when nobody looks: calls not sent yet, and futures of those that were."""

    _living: ClassVar["weakref.WeakSet[Engine]"] = weakref.WeakSet()

    def __init__(
        self,
        options: Options,
        journal: str | os.PathLike[str] | None,
        name: str | None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        is_queue: bool = False,
    ) -> None:
        """A queue is a batch that several processes hand jobs to, and whose jobs outlive them."""
        kind = "queue" if is_queue else "executor"
        self.batch = batch_id([kind, name] if name else [kind, os.urandom(16).hex()])
        self._options = options
        self._place = journal, name
        self._title = f"{kind} {name or self.batch}"
        self._prepare = initializer, initargs
        self._is_queue = is_queue
        self.pid = os.getpid()
        self._lock = threading.RLock()  # The collector may close an executor wherever its thread allocates.
        self._queue: deque[Calling] = deque()
        self._futures: dict[int, JobFuture] = {}
        """By index: sent and not done."""
        self._unaccepted: list[JobFuture] = []
        """Taken to be sent, whose index is not known yet: a queue tells where they stand in it."""
        self._size = 0
        """How many jobs the batch has, with those under way to the supervisor."""
        self._packer = Packer()
        self._attachment: Attachment | None = None
        self._journal: BatchJournal | None = None
        self._outcomes: Outcomes | None = None
        self._is_throwaway = False
        self._is_closing = self._is_urgent = False
        self._is_settled = threading.Event()
        """Nothing is queued and everything sent was answered."""
        self._broken: BaseException | None = None
        self._trimming = Trimming()

    @classmethod
    def living(cls) -> "list[Engine]":
        """Return the engines of this process that have a thread, whose calls are done before it ends.

        What a queue has is on disk: a client that is never closed lets go of it at once.
        """
        return [engine for engine in cls._living if engine.pid == os.getpid()]

    # --- From any thread ---------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> JobFuture:
        """Queue a call. Raises RuntimeError after `close`, BrokenProcessPool (a queue: its own) if nothing runs."""
        self._check_process()
        future = JobFuture(self)
        if self._is_queue:
            future.accepted = futures.Future()
        with self._lock:
            if self._broken is not None:
                known = type(self._broken) if self._is_queue and isinstance(self._broken, BatchdError) else None
                raise (known or BrokenProcessPool)(str(self._broken)) from self._broken
            if self._is_closing:
                at_exit = not threading.main_thread().is_alive()
                raise RuntimeError(f"cannot schedule new futures after {'interpreter ' * at_exit}shutdown")
            self._queue.append(Calling(future, fn, args, kwargs))
            self._is_settled.clear()
            attachment = self._attachment or self._attach(fn)
        attachment.wake()
        return future

    def withdraw(self, waiting: list[JobFuture]) -> None:
        """Cancel those of the calls that have not begun; return when their futures say so."""
        self._check_process()
        with self._lock:
            unsent = [future for future in waiting if not future.is_taken]
            for future in unsent:
                future.is_taken = True  # The thread skips it.
        for future in unsent:  # Without the lock: a callback may submit another call.
            future.give_up()
        attachment = self._attachment
        if attachment is None or all(future.done() for future in waiting):
            return
        answer: futures.Future[dict[str, Any]] = futures.Future()
        attachment.expect(answer)
        if threading.current_thread() is attachment.thread:  # In a callback of a future.
            self._ask_to_withdraw(waiting, answer)
            until = monotonic() + _CANCEL_WAIT_S
            while not answer.done() and monotonic() < until:
                self._session.pump(_CANCEL_WAIT_S)
            return
        attachment.post(lambda: self._ask_to_withdraw(waiting, answer))
        if not in_event_loop():
            futures.wait([answer], _CANCEL_WAIT_S)  # The futures tell what became of it.

    def _ask_to_withdraw(self, waiting: list[JobFuture], answer: "futures.Future[dict[str, Any]]") -> None:
        indices = RangeSet((f.index, f.index + 1) for f in waiting if f.index is not None and not f.done())
        if not indices:
            settle(answer, {})
            return

        def then(reply: dict[str, Any]) -> None:
            self._resolve()  # The news that some are cancelled came before this reply.
            answer_with(answer, reply)

        self._session.post("withdraw", b"", then, ranges=list(indices))

    def running(self) -> set[int]:
        """Return which jobs workers are at."""
        attachment = self._attachment
        if attachment is None or self.pid != os.getpid() or threading.current_thread() is attachment.thread:
            return set()
        try:
            return set(attachment.request("running").result(_CANCEL_WAIT_S)["running"])
        except Exception:
            return set()

    def flush(self, timeout: float | None) -> None:
        """Wait until nothing is queued or unanswered."""
        self._check_process()
        if self._attachment is not None and not self._is_settled.wait(timeout):
            raise TimeoutError("the journal has not taken everything yet")
        if self._broken is not None:
            raise BrokenProcessPool(str(self._broken)) from self._broken

    def take_up(self) -> None:
        """Have what is in a queue already run."""
        with self._lock:
            if self._attachment is None:
                self._attach(None)

    def close(self, *, cancel: bool = False, at_once: bool = False) -> None:
        """Take no more calls; the thread ends when those it has are done. `at_once`: what a queue runs is cut off."""
        if self.pid != os.getpid():  # Its parent goes on, and may have held the lock when this process was forked.
            return
        with self._lock:
            self._is_closing, self._is_urgent = True, self._is_urgent or at_once
            waiting = [call.future for call in self._queue] + list(self._futures.values()) if cancel else []
        if waiting:
            self.withdraw(waiting)
        if self._attachment is not None:
            if at_once:
                self._attachment.hurry()
            self._attachment.wake()

    def kill(self) -> None:
        """Take no more calls and end those that run: whatever is not done by then fails with BrokenProcessPool."""
        self._check_process()
        with self._lock:
            self._is_closing = True
            self._broken = self._broken or BrokenProcessPool("the workers were killed, as they were asked to be")
            unsent = [call.future for call in self._queue if not call.future.is_taken]
            for future in unsent:
                future.is_taken = True  # Nobody else gives it up.
            self._queue.clear()
        for future in unsent:
            future.give_up()
        if self._attachment is not None:
            self._attachment.stop(at_once=True)

    def join(self) -> None:
        """Wait for the thread's end."""
        if self._attachment is not None and self.pid == os.getpid():
            self._attachment.thread.join()

    def let_go(self, at_once: bool) -> list[Attachment]:
        """Close it; return what is to end then: client/leaving.py."""
        self.close(at_once=at_once)
        return [self._attachment] if self._attachment is not None and self.pid == os.getpid() else []

    def _check_process(self) -> None:
        if self.pid != os.getpid():
            kind = "Client" if self._is_queue else "Executor"
            raise RuntimeError(
                f"this {kind} belongs to process {self.pid}, from which this process ({os.getpid()}) was forked: "
                "make one here"
            )

    def _attach(self, fn: Callable[..., Any] | None) -> Attachment:
        made = Attachment(
            lambda: self._make_session(fn), self._title, opened=self._on_opened, turn=self._turn, ended=self._on_ended
        )
        if not self._is_queue:
            self._living.add(self)
        self._attachment = made  # Before it starts: the supervisor may be there, and the thread faster.
        made.start()
        return made

    # --- The thread --------------------------------------------------------------------------------------------

    def _make_session(self, fn: Callable[..., Any] | None) -> Session:
        journal, name = self._place
        folder, self._is_throwaway = library_folder(journal, name)
        spec = library_spec(
            name or f"executor of {name_of(fn or len)}",
            is_named=name is not None,
            task="(calls)",
            call=CALLS,
            kind="queue" if self._is_queue else "calls",
            digest="",
            is_throwaway=self._is_throwaway,
        )
        if (folder / "batches" / self.batch).exists():
            known = open_batch(folder / "batches" / self.batch)
            known.close()
            check_python(known.spec, self.batch)
        return Session(
            folder,
            self.batch,
            spec=spec,
            options=self._options,
            key_spec=library_key(pack_bundle(Bundle(None, *self._prepare, preload=modules_of(fn)))),
            digest="",
            note=warn,
            is_shared=self._is_queue,
            follows=True,
            is_eager=True,
        )

    @property
    def _session(self) -> Session:
        assert self._attachment is not None
        return self._attachment.session

    def _on_opened(self) -> None:
        session = self._session
        session.unseal()
        self._size = session.progress["size"]
        self._journal = BatchJournal(session.folder / "batches" / session.batch)
        self._outcomes = Outcomes(self._journal)

    def _turn(self) -> None:
        session = self._session
        self._send()
        self._resolve()
        self._trim()
        if session.progress["state"] in {"stopped", "cancelled"}:
            raise BrokenProcessPool(f"the batch was {session.progress['state']}: {session.progress['reason']}")
        with self._lock:
            if not self._queue and session.is_answered:
                self._is_settled.set()
            is_idle = session.is_answered if self._is_queue else not self._futures
            # On a full disk what was sent may never be answered.
            is_stuck = self._is_queue and self._is_urgent and session.is_paused
            is_over = self._is_closing and (is_stuck or (not self._queue and is_idle))
        if is_over and self._attachment is not None:
            if not (self._is_throwaway or self._is_queue or session.progress["is_sealed"]):
                session.post("seal", b"", None)
            self._attachment.stop(at_once=self._is_throwaway or self._is_urgent)

    def _send(self) -> None:
        session = self._session
        # Where the jobs of a shared batch begin, the reply tells, and only that of the last submission can be asked
        # for again: one is under way at a time.
        while self._queue and (session.is_answered if self._is_queue else session.has_room):
            before = self._packer.nbytes_defined
            calls = self._take_calls()
            self._unaccepted = [call.future for call in calls]
            sent, blocks = self._packer.pack(calls, session.define, _fail, self._keep)
            self._unaccepted = sent
            if not sent:
                continue
            if self._is_queue:
                session.submit(b"".join(blocks), then=partial(self._on_accepted, sent))
            else:
                self._number(sent, self._size)
                nbytes = sum(map(nbytes_of, blocks)) + self._packer.nbytes_defined - before
                self._trimming.sent(len(sent), nbytes)
                session.submit_blocks(blocks)

    def _keep(self, parts: Sequence[Buffer]) -> Reference | None:
        assert self._journal is not None
        return self._journal.keep(parts)

    def _number(self, sent: list[JobFuture], first: int) -> None:
        with self._lock:
            for index, future in enumerate(sent, first):
                future.index = index
                self._futures[index] = future
            self._size = first + len(sent)
            self._unaccepted = []

    def _on_accepted(self, sent: list[JobFuture], reply: dict[str, Any]) -> None:
        """The jobs of a submission to a queue are in the journal."""
        if "first" not in reply:
            why = reply.get("refused") or reply.get("message", reply)
            raise BatchdError(f"the queue {self.batch} did not take what was submitted: {why}")
        assert self._journal is not None
        self._number(sent, reply["first"])
        for future in sent:
            if future.accepted is not None:
                settle(future.accepted, future.index)
        # After a supervisor's death they may have been done, and told, before this reply.
        done = self._journal.refresh().done if self._session.restarts else RangeSet()
        for start, stop in done.overlap(reply["first"], reply["first"] + len(sent)):
            self._session.recorded.add(start, stop)

    def _take_calls(self) -> list[Calling]:
        with self._lock:
            popped = [self._queue.popleft() for _ in range(min(len(self._queue), _CALLS_MAX))]
            calls = [call for call in popped if not call.future.is_taken]  # The others were cancelled meanwhile.
            for call in calls:
                call.future.is_taken = True
        return calls

    def _resolve(self) -> None:
        session = self._session
        if not session.recorded or self._outcomes is None:
            return
        told, session.recorded = session.recorded, RangeSet()
        with self._lock:
            mine = RangeSet(part for start, stop in told for part in self._mine(start, stop))
        for span in self._outcomes.spans(mine, session.progress["generation"]):
            self._take_in(span)

    def _mine(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the parts of [start, stop) that somebody waits for."""
        if stop - start <= 2 * len(self._futures):
            return list(RangeSet((index, index + 1) for index in range(start, stop) if index in self._futures))
        return list(RangeSet((index, index + 1) for index in self._futures if start <= index < stop))

    def _take_in(self, span: Span) -> None:
        if span.state is not JobState.SUCCEEDED:
            self._take_failures(span)
        elif span.block.is_separate:
            for index, payload in enumerate(span.separate(), span.start):
                future = self._pop(index)
                try:
                    value = load(payload)
                except Exception as error:
                    settle(future, error=unreadable(self.batch, index, error))
                else:
                    settle(future, value)
        else:
            for index, value in enumerate(span.values(), span.start):
                settle(self._pop(index), value)
        self._trimming.add(span.start, span.stop, span.block.nbytes)

    def _pop(self, index: int) -> JobFuture:
        future = self._futures.pop(index)
        if future.mark:
            self._packer.over(future.mark)
        return future

    def _take_failures(self, span: Span) -> None:
        assert self._outcomes is not None
        assert self._journal is not None
        for index, failure in span.failures():
            future = self._pop(index)
            if span.state is JobState.CANCELLED:
                future.give_up()
                continue
            told = error_at(self._journal, self._outcomes, index, span.state, failure)
            original = told.__cause__ if isinstance(told, JobFailed) else None
            settle(future, error=told if original is None or isinstance(original, RemoteTraceback) else original)

    def _left(self, future: JobFuture) -> ClientClosed:
        """Return what those are told who wait for a job of a queue that stays in the journal."""
        job = f"job {self.batch}:{future.index}" if future.index is not None else "the job"
        return ClientClosed(
            f"the client was closed before {job} had an outcome: it is in the journal, where the next client of this "
            f"queue runs it, and Client.job() tells its outcome"
        )

    def _trim(self) -> None:
        """Have the journal forget what was read, when it is thrown away anyway."""
        if self._is_throwaway and (ranges := self._trimming.due(is_full=self._session.is_paused)):
            self._session.trim(ranges, self._packer.forget_unused())

    def _on_ended(self, error: BaseException | None) -> None:
        with self._lock:
            self._broken = error = error or self._broken
            self._is_closing = True
            waiting = [call.future for call in self._queue if not call.future.is_taken] + list(self._futures.values())
            waiting += self._unaccepted
            self._queue.clear()
            self._futures.clear()
        self._is_settled.set()
        self._living.discard(self)
        untaken = f"the client was closed before the journal was known to have the job: queue {self.batch}"
        refusal = error or ClientClosed(untaken)
        for future in waiting:
            if future.accepted is not None:
                settle(future.accepted, error=refusal)
            if error is not None:  # One each, for whoever raises it adds its frames.
                broken = error if isinstance(error, BrokenProcessPool) else BrokenProcessPool(str(error))
                broken.__cause__ = error if broken is not error else None
                settle(future, error=broken)
            elif self._is_queue:
                settle(future, error=self._left(future))
        if self._journal is not None:
            self._journal.close()


def _fail(future: JobFuture, error: BaseException, where: str) -> None:
    error.add_note(where)
    text = "".join(format_exception(error))
    # Its frames would keep the arguments of the calls beside it alive.
    error.__traceback__ = error.__context__ = None
    error.__cause__ = RemoteTraceback(text)
    for waiting in filter(None, (future, future.accepted)):
        settle(waiting, error=error)
