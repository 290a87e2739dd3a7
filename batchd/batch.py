"""`Batch`: a durable batch as an application holds it, while it runs and after.

Input goes in through an intake (intake.py), what is done is read from the journal. A batch that this process runs is
kept going by a thread of its own (client/attachment.py); one that it only looks at costs a file.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic
from time import sleep as pause
from typing import Any, Final, NamedTuple

from batchd.client.attachment import Attachment
from batchd.client.connection import checked, request
from batchd.client.reading import check_on_error, values_of
from batchd.client.session import Session
from batchd.client.world import check_python, stored_key
from batchd.core.events import Options
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.failures import FailureGroup, group_failures
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.errors import BatchBusy, BatchdError, SupervisorError, UsageError
from batchd.intake import PULL_MAX, InputRaised, KeyedInput, PlainInput
from batchd.mapping import Key, key_function
from batchd.settings import SUBMIT_WINDOW_BYTES

_LOOK_S: Final = 0.1
"""A batch that another process runs is looked at this often."""


class Standing(NamedTuple):
    """How a batch stands: jobs given and done, and what became of those."""

    size: int
    done: int
    succeeded: int
    failed: int
    """With the quarantined."""
    cancelled: int
    state: str
    """open, sealed, stopped, finished or cancelled."""
    reason: str
    """Why it stopped or was cancelled."""


class Batch:
    """One durable batch. Made by `Client.submit_batch` or found by `Client.batch`; any thread may use it.

    >>> import tempfile, batchd
    >>> with tempfile.TemporaryDirectory() as folder, batchd.Client(folder, workers=1) as client:
    ...     batch = client.submit_batch(int, ["1", "2"], name="numbers", seal=False, keep_going=True)
    ...     added = batch.add(["3", "many"])
    ...     batch.seal()
    ...     standing = batch.wait()
    ...     results = list(batch.results(on_error="skip"))
    ...     kinds = [group.type for group in batch.failures()]
    >>> added, standing.succeeded, standing.failed, results, kinds
    (2, 3, 1, [1, 2, 3], ['ValueError'])
    """

    def __init__(self, folder: Path, batch: str, options: Options) -> None:
        self.id = batch
        self.added = 0
        """Jobs that were added through this object."""
        self.skipped = 0
        """Items that were given and not added, because the batch has their jobs already."""
        self._folder = folder
        self._options = options
        self._attachment: Attachment | None = None
        self._intake: PlainInput | KeyedInput | None = None
        self._source: BatchJournal | None = None
        """What the intake holds its input against."""
        self._changed = threading.Condition()
        self._adding = threading.Lock()
        """One thread after the other: an intake counts what it was given."""
        self._running = threading.RLock()
        """Held while this object takes the batch up."""
        self._done = RangeSet()
        self._turns = 0
        """How often something happened."""
        self._generation = 0
        self._is_opened = False
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<Batch {self.id} in {self._folder}>"

    @property
    def name(self) -> str:
        """What the batch was called."""
        return str(self._read(lambda journal: journal.spec["name"]))

    # --- Giving ------------------------------------------------------------------------------------------------

    def add(self, items: Iterable[Any], *, key: Key | None = None) -> int:
        """Add a job per item and return how many were added, when they are on disk.

        The batch stays open, or is opened again. Raises BatchdError, and what iterating raises: what was added
        before that stays added.
        """
        with self._adding:
            return self._add(items, key)

    def _add(self, items: Iterable[Any], key: Key | None) -> int:
        door = _Door(self._run())
        if self._intake is None:
            key_of = key_function(key)
            self._begin(KeyedInput(door, key_of) if key_of else PlainInput(door), is_handle=True)
        intake = self._intake
        assert intake is not None
        intake.door = door
        before, skipped = self._jobs_known(), intake.skipped
        intake.items, intake.is_over = iter(items), False
        try:
            while not intake.is_over:
                intake.pull(PULL_MAX)
        except InputRaised as raised:
            raise raised.error from None
        finally:
            door.wait()
        self.skipped += intake.skipped - skipped
        added = self._jobs_known() - before
        self.added += added
        return added

    def seal(self) -> None:
        """Say that no more jobs will come; return when that is on disk."""
        self._check_process()
        if self.progress().state != "finished":
            self._run().request("seal").result()

    # --- Following ---------------------------------------------------------------------------------------------

    def progress(self) -> Standing:
        """Return how the batch stands now."""
        self._check_process()
        if self._is_live and self._attachment is not None:
            fields = self._attachment.session.progress
            counts = {JobState(int(state)): count for state, count in fields["counts"].items()}
            return _standing(fields["size"], fields["done"], counts, fields["state"], fields["reason"])
        made = self._read(lambda journal: journal.progress())
        return _standing(made.size, made.done, made.counts, made.state, made.reason)

    def wait(self, timeout: float | None = None) -> Standing:
        """Return how the batch stands when every job given so far is done or cancelled, or the batch was stopped.

        Runs the batch if nobody does. Raises TimeoutError after `timeout` seconds, BatchdError.
        """
        self._check_process()
        deadline = None if timeout is None else monotonic() + timeout
        while (standing := self.progress()).done < standing.size:
            left_s = None if deadline is None else max(0.0, deadline - monotonic())
            try:
                attachment = self._run()
            except BatchBusy:  # Another process runs it.
                pause(_LOOK_S if left_s is None else min(_LOOK_S, left_s))
            else:
                with self._changed:
                    self._changed.wait_for(self._is_over, left_s)
                if attachment.error is not None:
                    raise attachment.error
                if self._is_over():
                    break
            if left_s == 0.0:
                raise TimeoutError(f"batch {self.id} is not done after {timeout} s")
        return self.progress()

    def results(self, *, ordered: bool = True, on_error: str = "raise") -> Iterator[Any]:
        """Give the results of the jobs given so far, as they come if this process runs the batch.

        Of a batch that this process does not run: of the jobs that are done. `on_error` as in `batchd.map`.
        Raises JobError, BatchdError.
        """
        check_on_error(on_error)
        self._check_process()
        self._read(lambda journal: check_python(journal.spec, self.id))
        return self._results(ordered, on_error)

    def _results(self, ordered: bool, on_error: str) -> Iterator[Any]:
        attachment = self._attachment
        journal = BatchJournal(self._folder / "batches" / self.id)
        try:
            outcomes = Outcomes(journal)
            given = RangeSet()
            while True:
                turns, is_over = (
                    self._turns,
                    self._is_over(),
                )  # Before what is done is looked at, or it would be missed.
                done = journal.refresh().done if is_over else self._done_now()
                size = self.progress().size
                for start, stop in self._due(done, given, size, ordered=ordered and not is_over):
                    given.add(start, stop)
                    for span in outcomes.spans(
                        RangeSet([(start, stop)]), max(journal.facts.generation, self._generation)
                    ):
                        yield from values_of(span, journal, outcomes, on_error)
                if is_over and attachment is not None and attachment.error is not None:
                    raise attachment.error
                if is_over:
                    return
                with self._changed:
                    while self._turns == turns and not self._is_over():
                        self._changed.wait()
        finally:
            journal.close()

    def failures(self) -> list[FailureGroup]:
        """Return what failed, jobs that failed in the same way together, the most frequent first."""
        return list(self._read(lambda journal: group_failures(journal, Outcomes(journal))))

    # --- Steering ----------------------------------------------------------------------------------------------

    def retry(self, *, failed: bool = True, quarantined: bool = True, cancelled: bool = False) -> int:
        """Run jobs again that did not succeed; return how many."""
        self._check_process()
        wanted = {JobState.FAILED: failed, JobState.QUARANTINED: quarantined, JobState.CANCELLED: cancelled}
        states = [state for state, is_wanted in wanted.items() if is_wanted]
        jobs = int(self._read(lambda journal: sum(journal.facts.count(state) for state in states)))
        if jobs:
            self._ask("reopen", states=[int(state) for state in states])
            self._run()
        return jobs

    def cancel(self, reason: str = "cancelled") -> None:
        """Give the batch up: what runs is ended, what has no outcome is cancelled."""
        self._ask("cancel", reason=reason or "cancelled")

    def close(self, *, at_once: bool = False) -> None:
        """Let go of the batch. What runs may finish, unless `at_once`; the rest stays in the journal."""
        if self._pid != os.getpid():
            return
        if self._attachment is not None:
            self._attachment.stop(at_once=at_once)
            self._attachment.thread.join()
        if self._source is not None:
            self._source.close()
            self._source = self._intake = None

    # --- What it stands on -------------------------------------------------------------------------------------

    def open(self, make: Callable[[], Session], begin: Callable[["_Door"], PlainInput | KeyedInput]) -> None:
        """Run the batch from here. For `Client`. Raises BatchdError."""
        attachment = self._attach(make)
        self._begin(begin(_Door(attachment)), is_handle=False)

    def _begin(self, intake: PlainInput | KeyedInput, *, is_handle: bool) -> None:
        self._intake = intake
        journal = BatchJournal(self._folder / "batches" / self.id)
        if is_handle and (journal.spec["input"]["kind"] == "keyed") != isinstance(intake, KeyedInput):
            journal.close()
            self._intake = None
            raise UsageError(f"batch {self.id} tells its jobs by a key: give key=, and to no other batch")
        intake.begin(journal, is_known=is_handle)
        self._source = journal

    def _attach(self, make: Callable[[], Session]) -> Attachment:
        made = self._attachment = Attachment(
            make, self.id, opened=self._on_opened, turn=self._on_turn, ended=lambda _: self._on_turn()
        )
        made.start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_opened or made.is_over)
        if made.error is not None:
            self._attachment = None
            raise made.error
        return made

    def _run(self) -> Attachment:
        """Have the batch run by this process, as its journal says. Raises BatchBusy when another does."""
        self._check_process()
        with self._running:
            if self._is_live and self._attachment is not None:
                return self._attachment
            self._is_opened = False
            return self._attach(self._session)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"this Batch belongs to process {self._pid}, from which this process ({os.getpid()}) was forked: "
                "find it with a Client made here"
            )

    def _session(self) -> Session:
        key_spec, spec = self._read(lambda journal: (stored_key(journal), journal.spec))
        check_python(spec, self.id)
        return Session(
            self._folder,
            self.id,
            spec=None,
            options=self._options,
            key_spec=key_spec,
            digest=spec["digest"],
            note=lambda _: None,
            is_shared=spec["input"].get("kind") == "queue",
            follows=True,
        )

    @property
    def _is_live(self) -> bool:
        return self._attachment is not None and self._is_opened and not self._attachment.is_over

    def _on_opened(self) -> None:
        self._is_opened = True
        self._on_turn()

    def _on_turn(self) -> None:
        with self._changed:
            self._turns += 1
            if self._is_opened and self._attachment is not None:
                self._done = self._told(self._attachment.session)
            self._changed.notify_all()

    def _done_now(self) -> RangeSet:
        """Return which jobs are done, as far as that is sure: what was reopened is seen by the next turn."""
        with self._changed:
            attachment = self._attachment
            is_sure = attachment is not None and attachment.session.progress["generation"] == self._generation
            return self._done if is_sure else RangeSet()

    def _told(self, session: Session) -> RangeSet:
        """Return which jobs are done, as far as the session was told."""
        generation = session.progress["generation"]
        if generation != self._generation:  # What was done has been reopened.
            self._generation = generation
            session.recorded = self._read(lambda journal: journal.facts.done)
        return session.recorded.copy()

    def _is_over(self) -> bool:
        if not self._is_live:
            return True
        standing = self.progress()
        return standing.state == "stopped" or standing.done == standing.size

    def _jobs_known(self) -> int:
        return int(self._read(lambda journal: journal.facts.size))

    @staticmethod
    def _due(done: RangeSet, given: RangeSet, size: int, *, ordered: bool) -> Iterator[tuple[int, int]]:
        """Give the jobs that are done and not given: those before the first gap, or all."""
        for start, stop in list(given.gaps(0, size)):
            at = start
            for low, high in done.overlap(start, stop):
                if ordered and low > at:
                    return
                yield low, high
                at = high
            if ordered and at < stop:
                return

    def _ask(self, do: str, **fields: Any) -> dict[str, Any]:
        self._check_process()
        if self._is_live and self._attachment is not None:
            return self._attachment.request(do, **fields).result()
        return request(self._folder, do, batch=self.id, **fields)

    def _read(self, look: Callable[[BatchJournal], Any]) -> Any:
        journal = BatchJournal(self._folder / "batches" / self.id)
        try:
            return look(journal)
        finally:
            journal.close()


class _Door:
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
                self._changed.notify_all()
            if then is not None:
                then(reply)

        session = self._attachment.session
        self._attachment.post(lambda: session.submit(body, checkpoint, keys, answered))

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


def _standing(size: int, done: int, counts: dict[JobState, int], state: str, reason: str) -> Standing:
    return Standing(
        size=size,
        done=done,
        succeeded=counts.get(JobState.SUCCEEDED, 0),
        failed=counts.get(JobState.FAILED, 0) + counts.get(JobState.QUARANTINED, 0),
        cancelled=counts.get(JobState.CANCELLED, 0),
        state=state,
        reason=reason,
    )
