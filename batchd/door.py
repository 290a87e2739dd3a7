"""The door to a batch that an attachment keeps going: what goes in waits when too much is under way.

Intakes read input in the thread that called; only the attachment's own thread touches the session.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from batchd.client.attachment import Attachment
from batchd.client.connection import checked
from batchd.core.costs import Cost
from batchd.errors import BatchdError, SupervisorError, UsageError
from batchd.settings import SUBMIT_WINDOW_BYTES

_LOOK_S: Final = 0.1
"""Whether the attachment is over is looked at this often."""


class Adding:
    """Held by whoever adds to a batch or seals it, one thread after the other.

    For an intake counts what it was given, and a sealed batch takes nothing.
    """

    def __init__(self, batch: str) -> None:
        self._batch = batch
        self._lock = threading.Lock()
        self._thread = 0

    def __enter__(self) -> None:
        if self._thread == threading.get_ident():
            raise UsageError(
                f"batch {self._batch} cannot be added to, or sealed, by the input that is being added to it, which "
                "would wait for itself: do so when add() has returned"
            )
        self._lock.acquire()
        self._thread = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._thread = 0
        self._lock.release()


class AttachedDoor:
    """Where an intake puts jobs, from a thread that is not the session's: it waits when too much is under way."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._changed = threading.Condition()
        self._bytes = 0
        self._error: BatchdError | None = None

    @property
    def progress(self) -> dict[str, Any]:
        """What the supervisor last said of the batch."""
        return self._attachment.session.progress

    def submit(
        self,
        body: bytes,
        checkpoint: str = "",
        keys: bytes = b"",
        then: Callable[[dict[str, Any]], None] | None = None,
        costs: Sequence[Cost] = (),
    ) -> None:
        """Add jobs; see `intake.Door`."""
        with self._changed:
            while self._bytes >= SUBMIT_WINDOW_BYTES and not self._attachment.is_over:
                self._changed.wait(_LOOK_S)
            self._check()
            self._bytes += len(body)

        def answered(reply: dict[str, Any]) -> None:
            with self._changed:
                self._bytes -= len(body)
                try:
                    checked(reply)
                except BatchdError as error:
                    self._error = error
                if "refused" in reply:
                    self._error = UsageError(reply["refused"])
                self._changed.notify_all()
            if then is not None:
                then(reply)

        session = self._attachment.session
        self._attachment.post(lambda: session.submit(body, checkpoint, keys, answered, costs))

    def unseal(self) -> None:
        """Let more input come."""
        self._attachment.request("unseal").result()

    def wait(self) -> None:
        """Return when everything is on disk. Raises BatchdError."""
        with self._changed:
            while self._bytes and not self._attachment.is_over:
                self._changed.wait(_LOOK_S)
        if self._bytes or self._attachment.error or self._error:
            self._check()

    def _check(self) -> None:
        """Raise what keeps jobs from the journal."""
        error = self._attachment.error or self._error
        if error is not None:
            raise error
        if self._attachment.is_over:
            raise SupervisorError("the batch was closed before everything was added: what `size` counts is in it")
