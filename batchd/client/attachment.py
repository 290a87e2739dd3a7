"""An attachment: a session that a thread of its own keeps going, for faces that are used from other threads.

Only that thread touches the session. Others post calls to it and wait, if they want to, for what comes of them.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, Final

from batchd.client.connection import checked
from batchd.client.session import GaveUp, Session
from batchd.errors import BatchdError, SupervisorError

_PUMP_S: Final = 5.0


class Attachment:
    """A batch that this process has open until `stop`."""

    def __init__(
        self,
        make: Callable[[], Session],
        title: str,
        *,
        opened: Callable[[], None] = lambda: None,
        turn: Callable[[], None] = lambda: None,
        ended: Callable[[BaseException | None], None] = lambda _: None,
    ) -> None:
        """Prepare; the thread calls `make` and `opened` once, `turn` at all that happens, `ended` last of all.

        All of it happens in the thread, so that nobody waits for a supervisor to start.
        """
        self.session: Session
        """Made by the thread: not there before `opened` is called."""
        self._make = make
        self.title = title
        """What people call it."""
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=f"batchd-{title}", daemon=True)
        self.end: Future[None] = Future()
        """Done when nothing more will happen. Whoever waits may be interrupted, after which `Thread.join` errs."""
        self.end.set_running_or_notify_cancel()
        self._opened, self._turn, self._ended = opened, turn, ended
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_woken = False
        self._pid = os.getpid()
        self._lock = threading.RLock()  # The collector may close what is attached wherever it strikes.
        self._is_over = False
        self._stopping: bool | None = None
        self._is_hurried = False
        self._answers: set[Future[dict[str, Any]]] = set()

    def start(self) -> None:
        """Start the thread; it opens the session first."""
        self.thread.start()

    def wake(self) -> None:
        """Have `turn` called soon."""
        with self._lock:
            if not self._is_over and not self._is_woken and self._pid == os.getpid():
                self._is_woken = True
                os.eventfd_write(self._wake_fd, 1)

    def post(self, call: Callable[[], None]) -> None:
        """Have the thread make a call soon; it is dropped when the attachment is over."""
        with self._lock:
            if self._is_over:
                return
            self._inbox.append(call)
        self.wake()

    def request(self, do: str, body: bytes = b"", /, **fields: Any) -> Future[dict[str, Any]]:
        """Post a request about the batch; the future has the reply, or the error it tells of."""
        answer: Future[dict[str, Any]] = Future()
        self.expect(answer)
        self.post(lambda: self.session.post(do, body, lambda reply: answer_with(answer, reply), **fields))
        return answer

    def expect(self, answer: Future[dict[str, Any]]) -> None:
        """Have somebody who waits for an answer told when there will be none."""
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        if self._is_over:
            self._refuse(answer)

    def stop(self, *, at_once: bool) -> None:
        """Have the batch put down and the thread end; said again, only `at_once` changes anything."""
        with self._lock:
            if self._stopping is not None and self._stopping >= at_once:
                return  # Nothing new, and `turn` may say it every time.
            self._stopping = at_once
        if at_once:
            self.hurry()
        self.wake()

    def hurry(self) -> None:
        """Have the opening of the batch not wait for a full disk: the thread ends instead, and tells of no error."""
        self._is_hurried = True
        if hasattr(self, "session"):
            self.session.hurry()

    @property
    def is_over(self) -> bool:
        """Whether nothing that is posted now will be done."""
        return self._is_over

    # --- The thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        session: Session | None = None
        try:
            session = self.session = self._make()
            if self._is_hurried:  # It may have been said when there was no session yet.
                session.hurry()
            session.open()
            self._opened()
            while self._stopping is None:
                self._go_on()
            is_urgent = self._stopping
            session.leave(at_once=is_urgent)
            while not session.is_put_down:
                if self._stopping is not is_urgent:
                    is_urgent = self._stopping
                    session.leave(at_once=is_urgent)
                self._go_on()
        except GaveUp:
            pass
        except BaseException as error:
            self.error = error
        finally:
            try:
                if session is not None:
                    session.close()
                self._end()
            finally:
                self.end.set_result(None)

    def _go_on(self) -> None:
        self.session.pump(_PUMP_S, [self._wake_fd])
        with self._lock:
            self._is_woken = False
            with suppress(BlockingIOError):  # It is what was written that counts: a forked child may have done so.
                os.eventfd_read(self._wake_fd)
        while self._inbox:
            self._inbox.popleft()()
        self._turn()

    def _end(self) -> None:
        with self._lock:
            self._is_over = True
            self._inbox.clear()
            os.close(self._wake_fd)
        self._ended(self.error)
        for answer in list(self._answers):
            self._refuse(answer)

    def _refuse(self, answer: Future[dict[str, Any]]) -> None:
        settle(answer, error=self.error or SupervisorError("the batch is not open any more"))


def settle(waiting: Future[Any], value: Any = None, *, error: BaseException | None = None) -> None:
    """Give a value or an error to whoever waits for it, unless it was given up: any thread may do so at any time.

    >>> waiting = Future()
    >>> waiting.cancel(), settle(waiting, 1), waiting.cancelled()
    (True, None, True)
    """
    with suppress(InvalidStateError):
        if error is None:
            waiting.set_result(value)
        else:
            waiting.set_exception(error)


def answer_with(waiting: Future[dict[str, Any]], reply: dict[str, Any]) -> None:
    """Give a reply, or the error it tells of, to whoever waits for it."""
    try:
        settle(waiting, checked(reply))
    except BatchdError as error:
        settle(waiting, error=error)


def in_event_loop() -> bool:
    """Whether this thread runs an event loop now, whose other tasks would have to wait for whatever it waits for."""
    events = sys.modules.get("asyncio.events")
    return events is not None and events._get_running_loop() is not None  # noqa: SLF001  (there is no other way)
