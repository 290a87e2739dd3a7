"""A batch in the foreground: `run` and `retry` bring it to its end, draw it, write its results, and heed signals."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from batchd.cli import summary
from batchd.cli.results import ResultStream, Unwritable, earlier_target, extend_path, not_replaced
from batchd.client import Session
from batchd.core.events import Options
from batchd.core.job import JobState
from batchd.edge.journal import BatchJournal
from batchd.edge.template import KeySpec
from batchd.errors import BatchdError
from batchd.sources import Block, Checkpoint, Source
from batchd.units import counted
from batchd.view import ProgressNews, View, make_view
from batchd.worker.valuefiles import ValueFiles

_PUMP_S = 0.25


class Runner:
    """One batch in the foreground: its session, what is drawn, what is written."""

    def __init__(
        self, folder: Path, batch: str, args: argparse.Namespace, options: Options, key_spec: KeySpec
    ) -> None:
        self._folder, self._batch, self._args = folder, batch, args
        self._options, self._key_spec = options, key_spec
        self._view: View | None = None
        self._signals = 0
        self._started = time.monotonic()
        self._is_opening = False
        self._stream: ResultStream | None = None
        self._is_cut_short = False
        """Whether the results file could not be finished before a signal came."""

    def _open_stream(self) -> None:
        """Find out now whether results can be written, but only when it is sure that something will be."""
        if self._args.out:
            self._stream = ResultStream(self._args.out, self._folder / "batches" / self._batch)

    def note(self, text: str) -> None:
        """Say something that stays."""
        if self._view is not None:
            self._view.note(text)
        elif not self._args.quiet:
            print(f"batchd: {text}", file=sys.stderr)

    def run(
        self,
        spec: dict[str, Any],
        blocks: Iterator[Block] | None,
        *,
        already_done: int,
        source: Source | None = None,
        behind: str = "",
    ) -> int:
        """Run the batch to its end, or to an interruption; return the exit code. `blocks` begin `behind` that."""
        self._open_stream()
        is_synced = spec.get("durability") != "process"
        files = ValueFiles(self._folder / "batches" / self._batch, is_synced=is_synced)
        session = Session(
            self._folder,
            self._batch,
            spec=spec,
            options=self._options,
            key_spec=self._key_spec,
            digest=spec["digest"],
            note=self.note,
        )
        try:
            with self._watch_signals() as wake_fd:
                self._is_opening = True
                session.open()
                self._is_opening = False
                used_before = dict(session.progress["usage"])
                title = spec.get("name") or self._batch
                total = session.progress["size"] if blocks is None else None
                self._view = make_view(quiet=self._args.quiet, as_json=self._args.json, title=title, total=total)
                if source is not None and blocks is not None:
                    now = session.progress["checkpoint"]
                    if now != behind:  # A command that was killed had more on its way than could be seen until now.
                        blocks = source.blocks(checkpoint_of(now))
                    session.feed(blocks, files.keep)
                self._follow(session, wake_fd)
        except BaseException:
            self._keep_partial()
            raise
        finally:
            session.close()
            files.close()
            if self._view is not None:
                self._view.close()
                self._view = None
        if source is not None and source.skipped:
            self.note(skipped_text(source))
        return self._finish(session, already_done, used_before)

    def report_over(self, size: int, *, is_interrupted: bool = False) -> int:
        """Say how the batch stands, of which nothing is to run; still write the results."""
        self._open_stream()
        return self._conclude({}, ran=0, already_done=size, is_interrupted=is_interrupted)

    def _follow(self, session: Session, wake_fd: int) -> None:
        heard, is_leaving, more = 0, False, False
        while True:
            session.pump(0.0 if more else _PUMP_S, [wake_fd])
            drain_pipe(wake_fd)
            progress = session.progress
            if self._view is not None:
                self._view.update(ProgressNews.from_fields(progress))
            more = self._stream is not None and self._stream.advance(progress["prefix"], progress["generation"])
            if session.is_put_down:
                return
            if self._signals > heard:
                heard, is_leaving = self._signals, True
                self.note(
                    "stopping: running jobs may finish; again to end them" if heard == 1 else "ending running jobs"
                )
                if heard > 2 or (heard > 1 and progress["trouble"]):
                    return  # It cannot be put down now, because the disk is full or somebody is stuck.
                session.leave(at_once=heard > 1)
            elif not is_leaving and (session.is_over or session.input_error is not None):
                is_leaving = True
                session.leave(at_once=False)

    @contextmanager
    def _watch_signals(self) -> Iterator[int]:
        wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup, `&`
        before = {number: signal.signal(number, self._on_signal) for number in heeded}
        previous_fd = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        try:
            yield wake
        finally:
            signal.set_wakeup_fd(previous_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(wake)
            os.close(wake_write)

    def _on_signal(self, *_: object) -> None:
        self._signals += 1
        if self._is_opening:  # Nothing runs yet, and what is being waited for may take long.
            raise KeyboardInterrupt

    def _finish(self, session: Session, already_done: int, used_before: dict[str, float]) -> int:
        error = session.input_error
        if error is not None:
            self._keep_partial()
            if isinstance(error, BatchdError) and session.progress["size"]:
                raise type(error)(f"{error} (what was read before it is kept: {self._batch} can be continued)")
            raise error
        progress = session.progress
        is_left = progress["done"] < progress["size"] or session.has_input
        is_interrupted = progress["state"] == "sealed" or (progress["state"] == "open" and is_left)
        ran = max(0, progress["done"] - already_done)
        usage = summary.usage_since(used_before, progress["usage"])
        return self._conclude(usage, ran, already_done, is_interrupted)

    def _conclude(self, usage: dict[str, float], ran: int, already_done: int, is_interrupted: bool) -> int:
        elapsed_s = time.monotonic() - self._started
        partial = self._write_results(is_interrupted)
        journal = BatchJournal(self._folder / "batches" / self._batch)
        try:
            extend_path(journal.spec)
            facts = journal.facts
            state = "interrupted" if is_interrupted else facts.state.value
            told: dict[str, Any] = {
                "elapsed_s": elapsed_s,
                "ran": ran,
                "already_done": already_done,
                "usage": usage,
                "state": state,
            }
            if self._args.json:
                print(json.dumps(summary.summary_fields(journal, **told)), flush=True)
            if not self._args.quiet and not self._args.json:
                print("\n".join(summary.summarise(journal, **told)), file=sys.stderr)
            failed = facts.done.size - facts.count(JobState.SUCCEEDED)
            self._tell_file(journal, partial, is_stale=ran > 0)
        finally:
            journal.close()
        unwritable = self._tell_unwritable()
        if is_interrupted or self._is_cut_short:
            return 130 if self._signals > 1 else 4
        return unwritable or int(failed > 0 or state not in {"finished", "open"})

    def _write_results(self, is_interrupted: bool) -> str:
        """Finish the results file; return the name of the partial one when it must stay that."""
        if self._stream is None:
            return ""
        self._stream.release()
        journal = BatchJournal(self._folder / "batches" / self._batch)
        made = journal.progress()
        journal.close()
        if is_interrupted or made.prefix < made.size:
            return self._keep_partial()
        heard = self._signals
        with self._watch_signals():
            is_whole = self._stream.finish(made.prefix, made.generation, lambda: self._signals > heard)
        self._is_cut_short = not is_whole
        return self._stream.kept if is_whole else self._keep_partial()

    def _tell_file(self, journal: BatchJournal, partial: str, *, is_stale: bool) -> None:
        """Say what the results file lacks, and what writes it."""
        if self._is_cut_short and self._stream is not None:
            write = summary.command(journal, "results", "-o", self._args.out)
            of = f"{self._stream.written:,} of {journal.facts.size:,} lines"
            is_file = partial != self._args.out
            self.note(f"stopped after {of}" + f", which are in {partial}; all of them: {write}" * is_file)
        elif self._stream is not None and self._stream.kept:
            self.note(not_replaced(self._args.out, partial))
        elif partial:
            self.note(f"results so far are in {partial}")
        elif is_stale and not self._args.out and (earlier := earlier_target(journal.spec)):
            write = summary.command(journal, "results", "-o", summary.typed(earlier))
            self.note(f"{earlier.name} is as it was before this; to write it again: {write}")

    def _keep_partial(self) -> str:
        return self._stream.abandon() if self._stream is not None else ""

    def _tell_unwritable(self) -> int:
        """Say which results could not be written; return the exit code for that."""
        unwritable = self._stream.unwritable if self._stream is not None else Unwritable()
        for line in unwritable.told(self._batch):
            self.note(line)
        return unwritable.exit_code


def skipped_text(source: Source) -> str:
    """Return what was left out of the input, in words."""
    places = ", ".join(source.skipped_places)
    more = source.skipped - len(source.skipped_places)
    rest = f" and {more:,} more" if more > 0 else ""
    what = f"{counted(source.skipped, 'piece')} of the input could not be read, and left out"
    return f"{what} (--skip-bad-input): {places}{rest}"


def checkpoint_of(text: str) -> Checkpoint | None:
    """Return a reader checkpoint as the journal has it, None when nothing was read yet."""
    return Checkpoint.from_json(json.loads(text)) if text else None


def drain_pipe(fd: int) -> None:
    """Empty a wake-up pipe."""
    try:
        os.read(fd, 512)
    except BlockingIOError:
        pass
