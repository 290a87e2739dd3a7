"""`Batch`: a durable batch as an application holds it, while it runs and after.

Input goes in through an intake (intake.py), what is done is read from the journal. A batch that this process runs is
kept going by a thread of its own (client/attachment.py); one that it only looks at costs a file.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from time import monotonic
from time import sleep as pause
from typing import Any, Final

from batchd.client.attachment import Attachment
from batchd.client.connection import request
from batchd.client.costing import Costing, CostOf
from batchd.client.leaving import leave
from batchd.client.reading import check_on_error, values_of
from batchd.client.session import Session
from batchd.client.world import check_python, stored_key, warn
from batchd.core.events import Options
from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.door import Adding, AttachedDoor
from batchd.edge.failures import FailureGroup, group_failures
from batchd.edge.journal import BatchJournal
from batchd.edge.outcomes import Outcomes
from batchd.errors import BatchBusy, ClientClosed, UsageError
from batchd.flow import FAILED
from batchd.intake import PULL_MAX, InputRaised, KeyedInput, PlainInput, as_items
from batchd.mapping import Key, costing_of, key_function
from batchd.standing import NOTHING_YET, Standing, due, only_results, standing_of

_LOOK_S: Final = 0.1
"""A batch that another process runs is looked at this often."""


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
        self.replaced = 0
        """Of the jobs that were added, those that took the place of one that had not succeeded: its item changed."""
        self._folder = folder
        self._options = options
        self._attachment: Attachment | None = None
        self._intake: PlainInput | KeyedInput | None = None
        self._key: Key | None = None
        """What the intake tells jobs by."""
        self._source: BatchJournal | None = None
        """What the intake holds its input against."""
        self._changed = threading.Condition()
        self._adding = Adding(batch)
        self._running = threading.RLock()
        """Held while this object takes the batch up."""
        self._users = 0
        """How many calls ask something of the attachment: it does not leave meanwhile."""
        self._is_leaving = False
        self._done = RangeSet()
        self._turns = 0
        """How often something happened."""
        self._generation = 0
        self._created = ""
        """When the batch was made that this object had open: it goes on with no other."""
        self._is_opened = False
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<Batch {self.id} in {self._folder}>"

    @property
    def name(self) -> str:
        """What the batch was called; after its function, if it was given no name.

        >>> client.submit_batch(abs, [-1]).name
        'abs'
        """
        return str(self._read(lambda journal: journal.spec["name"]))

    # --- Giving ------------------------------------------------------------------------------------------------

    def add(self, items: Iterable[Any], *, key: Key | None = None, cost: CostOf | None = None) -> int:
        """Add a job per item and return how many were added, when they are on disk.

        The batch stays open, or is opened again. `key` is needed for a batch that was made with one and found by
        `Client.batch`; `cost` stays as it was unless it is given. Raises BatchdError, and what iterating raises: what
        was added before that stays added.

        >>> batch = client.submit_batch(abs, [-1, -2], seal=False)
        >>> batch.add(range(-5, 0)), batch.progress().size
        (5, 7)
        """
        with self._adding, self._kept():
            return self._add(items, key, cost)

    def _add(self, items: Iterable[Any], key: Key | None, cost: CostOf | None) -> int:
        door = AttachedDoor(self._run())
        if self._intake is None:
            self._key = key if key is not None else self._key
            key_of = key_function(self._key)
            self._begin(KeyedInput(door, key_of) if key_of else PlainInput(door), is_handle=True)
        intake = self._intake
        assert intake is not None
        intake.door, intake.costing = door, costing_of(cost) or intake.costing
        before, skipped = self._jobs_known(), intake.skipped
        intake.items, intake.is_over = as_items(items), False
        try:
            while not intake.is_over:
                intake.pull(PULL_MAX)
        except InputRaised as raised:
            raise raised.error from None
        finally:
            door.wait()
        self.replaced += self._put_away(intake)
        self.skipped += intake.skipped - skipped
        added = self._jobs_known() - before
        self.added += added
        return added

    def _put_away(self, intake: PlainInput | KeyedInput) -> int:
        """Have jobs that were replaced neither run nor count as failed; return how many were."""
        if not isinstance(intake, KeyedInput):
            return 0
        if unwanted := intake.take_unwanted():
            self._run().request("withdraw", ranges=unwanted).result()
        if failed := intake.take_failed():
            states = [int(state) for state in FAILED]
            self._run().request("reopen", states=states, ranges=failed, is_replaced=True).result()
        return sum(stop - start for start, stop in (*unwanted, *failed))

    def seal(self) -> None:
        """Say, behind what is being added, that no more will come; return when that is on disk. Raises BatchdError.

        >>> batch = client.submit_batch(abs, [-1], seal=False)
        >>> batch.seal()
        >>> batch.wait().state  # With the last outcome; it would have stayed "open".
        'finished'
        """
        self._check_process()
        with self._adding, self._kept():
            if self.progress().state != "finished":
                self._run().request("seal").result()

    # --- Following ---------------------------------------------------------------------------------------------

    def progress(self) -> Standing:
        """Return how the batch stands now. Runs nothing.

        >>> batch = client.submit_batch(abs, range(-100, 0))
        >>> batch.progress().size
        100
        """
        self._check_process()
        if self._is_live and self._attachment is not None:
            fields = self._attachment.session.progress
            counts = {JobState(int(state)): count for state, count in fields["counts"].items()}
            return standing_of(fields["size"], fields["done"], counts, fields["state"], fields["reason"])
        made = self._read(lambda journal: journal.progress())
        return standing_of(made.size, made.done, made.counts, made.state, made.reason)

    def wait(self, timeout: float | None = None) -> Standing:
        """Return how the batch stands when every job given so far is done or cancelled, or the batch was stopped.

        Runs the batch if nobody does. A job that failed is counted, not raised: `results` and `failures` tell of
        it. Raises TimeoutError after `timeout` seconds, BatchdError.

        >>> standing = client.submit_batch(abs, range(-100, 0)).wait(timeout=60)
        >>> standing.done, standing.succeeded, standing.state
        (100, 100, 'finished')
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

        >>> batch = client.submit_batch(int, ["1", "many", "3"], keep_going=True)
        >>> list(batch.results(on_error="skip"))
        [1, 3]
        >>> [type(result).__name__ for result in batch.results(on_error="return")]
        ['int', 'JobFailed', 'int']
        """
        return only_results(self.steps(ordered=ordered, on_error=on_error))

    def steps(self, *, ordered: bool, on_error: str, patience_s: float | None = None) -> Iterator[Any]:
        """Give results as `results` does, and NOTHING_YET whenever `patience_s` went by without one: for AsyncBatch.

        >>> batch = client.submit_batch(abs, [-1], seal=False)
        >>> [value for value in batch.steps(ordered=True, on_error="raise") if value is not NOTHING_YET]
        [1]
        """
        check_on_error(on_error)
        self._check_process()
        self._read(lambda journal: check_python(journal.spec, self.id))
        return self._steps(ordered, on_error, patience_s)

    def _steps(self, ordered: bool, on_error: str, patience_s: float | None) -> Iterator[Any]:
        attachment = self._attachment
        journal = BatchJournal(self._folder / "batches" / self.id)
        try:
            outcomes = Outcomes(journal)
            given = RangeSet()
            while True:
                # Before what is done is looked at, or it would be missed.
                turns, is_over = self._turns, self._is_over()
                done = journal.refresh().done if is_over else self._done_now()
                size = self.progress().size
                for start, stop in due(done, given, size, ordered=ordered and not is_over):
                    given.add(start, stop)
                    generation = max(journal.facts.generation, self._generation)
                    for span in outcomes.spans(RangeSet([(start, stop)]), generation):
                        yield from values_of(span, journal, outcomes, on_error)
                if is_over and attachment is not None and attachment.error is not None:
                    raise attachment.error
                if is_over:
                    return
                with self._changed:
                    self._changed.wait_for(lambda: self._turns != turns or self._is_over(), patience_s)  # noqa: B023
                yield NOTHING_YET
        finally:
            journal.close()

    def failures(self) -> list[FailureGroup]:
        """Return what failed, jobs that failed in the same way together, the most frequent first. Raises BatchdError.

        >>> batch = client.submit_batch(int, ["1", "many", "none"], keep_going=True)
        >>> standing = batch.wait()
        >>> [(group.type, group.count) for group in batch.failures()]
        [('ValueError', 2)]
        """
        return list(self._read(lambda journal: group_failures(journal, Outcomes(journal))))

    # --- Steering ----------------------------------------------------------------------------------------------

    def retry(self, *, failed: bool = True, quarantined: bool = True, cancelled: bool = False) -> int:
        """Run jobs again that did not succeed; return how many. Raises BatchdError.

        `failed` raised, took too long or too much memory; `quarantined` took their workers with them. With
        `cancelled` a cancelled batch takes jobs again.

        >>> import os
        >>> batch = client.submit_batch(os.mkdir, [f"{folder}/new/mine"])
        >>> batch.wait().failed
        1
        >>> os.mkdir(f"{folder}/new")
        >>> batch.retry(), batch.wait().failed
        (1, 0)
        """
        self._check_process()
        wanted = {JobState.FAILED: failed, JobState.QUARANTINED: quarantined, JobState.CANCELLED: cancelled}
        states = [state for state, is_wanted in wanted.items() if is_wanted]
        facts = self._read(lambda journal: journal.facts)
        jobs = sum(int(facts.count(state)) for state in states)
        if jobs or (cancelled and facts.cancelled):  # That it takes no more jobs is taken back as well.
            with self._kept():
                self._ask("reopen", states=[int(state) for state in states])
                with suppress(BatchBusy):  # Another process runs it.
                    self._run()
        return jobs

    def cancel(self, reason: str = "cancelled") -> None:
        """Give the batch up: what runs is ended, what has no outcome is cancelled. Raises BatchdError.

        >>> import time
        >>> batch = client.submit_batch(time.sleep, [60] * 10)
        >>> batch.cancel("there is a better one")
        >>> standing = batch.wait()
        >>> standing.cancelled, standing.state, standing.reason
        (10, 'cancelled', 'there is a better one')
        """
        with self._kept():
            self._ask("cancel", reason=reason or "cancelled")

    def close(self, *, at_once: bool = False) -> None:
        """Let go of the batch. What runs may finish, unless `at_once` or interrupted; the rest stays in the journal.

        `Client.close` does so for all of its batches. `wait` takes the batch up again.

        >>> batch = client.submit_batch(abs, range(-1_000, 0), name="let go")
        >>> batch.close()
        >>> client.batch("let go").wait().succeeded
        1000
        """
        try:
            leave(self.let_go, at_once=at_once)
        finally:
            self.release()

    def let_go(self, at_once: bool) -> list[Attachment]:
        """Have it put down; return what is to end then: client/leaving.py."""
        attachment = self._attachment  # Forgotten by whoever opens the batch, where that comes to nothing.
        if self._pid != os.getpid() or attachment is None:
            return []
        attachment.stop(at_once=at_once)
        return [attachment]

    def release(self) -> None:
        """Close what its input was held against."""
        if self._pid == os.getpid() and self._source is not None:
            self._source.close()
            self._source = self._intake = None

    # --- What it stands on -------------------------------------------------------------------------------------

    def open(
        self,
        make: Callable[[], Session],
        key: Key | None,
        costing: Costing | None,
        items: Iterable[Any],
        *,
        seal: bool,
    ) -> None:
        """Run the batch from here, with these items. For `Client`. Raises BatchdError."""
        self._key, key_of = key, key_function(key)
        with self._kept():
            door = AttachedDoor(self._attach(make))
            intake = KeyedInput(door, key_of) if key_of else PlainInput(door)
            intake.costing = costing
            self._begin(intake, is_handle=False)
            self.add(items)
            if seal:
                self.seal()

    def _begin(self, intake: PlainInput | KeyedInput, *, is_handle: bool) -> None:
        self._intake = intake
        journal = BatchJournal(self._folder / "batches" / self.id)
        if is_handle and (journal.spec["input"]["kind"] == "keyed") != isinstance(intake, KeyedInput):
            journal.close()
            self._intake = None
            raise UsageError(f"batch {self.id} tells its jobs by a key: give key=, and to no other batch")
        intake.begin(journal, is_known=is_handle)
        self._source = journal

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Have the batch not left while a call asks something of it; where it is being left, wait for that."""
        self._check_process()
        with self._changed:
            self._changed.wait_for(lambda: not self._is_leaving)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                if self._attachment is not None and not self._users:
                    self._attachment.wake()  # It may leave now.
                    if self._attachment.is_over:
                        self.release()

    def _leave_when_done(self, progress: dict[str, Any]) -> None:
        """Let go of a batch that has come to its end, or clients with many would keep a thread and files for each."""
        attachment = self._attachment
        is_needed = self._users or self._is_leaving or attachment is None or attachment.is_over
        if attachment is not None and progress["state"] == "finished" and not is_needed:
            self._is_leaving = True
            attachment.stop(at_once=False)

    def _on_ended(self, _: BaseException | None) -> None:
        with self._changed:
            self._is_leaving = False
            if not self._users:
                self.release()
        self._on_turn()

    def _attach(self, make: Callable[[], Session]) -> Attachment:
        made = self._attachment = Attachment(
            make, f"batch {self.id}", opened=self._on_opened, turn=self._on_turn, ended=self._on_ended
        )
        made.start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_opened or made.is_over)
        if made.error is not None or not self._is_opened:
            self._attachment = None
            full = f"batch {self.id} was closed before the full disk let it be opened: make space and submit it again"
            raise made.error or ClientClosed(full)
        self._created = made.session.created
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
            note=warn,
            is_shared=spec["input"].get("kind") == "queue",
            follows=True,
            created=self._created,
        )

    @property
    def _is_live(self) -> bool:
        return self._attachment is not None and self._is_opened and not (self._is_leaving or self._attachment.is_over)

    def _on_opened(self) -> None:
        self._is_opened = True
        self._on_turn()

    def _on_turn(self) -> None:
        with self._changed:
            self._turns += 1
            if self._is_opened and self._attachment is not None:
                self._done = self._told(self._attachment.session)
                self._leave_when_done(self._attachment.session.progress)
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

    def _ask(self, do: str, **fields: Any) -> dict[str, Any]:
        self._check_process()
        if self._is_live and self._attachment is not None:
            return self._attachment.request(do, **fields).result()
        return request(self._folder, do, note=warn, batch=self.id, **fields)

    def _read(self, look: Callable[[BatchJournal], Any]) -> Any:
        with closing(BatchJournal(self._folder / "batches" / self.id)) as journal:
            return look(journal)
