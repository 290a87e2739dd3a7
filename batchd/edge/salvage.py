"""What can still be had of a batch, however damaged: outcomes, the inputs of jobs without one, and what is lost.

Nothing is written or unpickled here. The one idea: a record is believed for its own checksum, not for the way that
leads to it. So after the trees have been walked, the pages that no tree leads to any more are looked through as well,
and what is found there fills gaps, and only gaps.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from batchd.core.job import JobState
from batchd.core.ranges import RangeSet
from batchd.edge.damage import is_throwaway, judge, open_file
from batchd.edge.datafile import Found
from batchd.edge.environment import DATA_NAME
from batchd.edge.outcomes import Span
from batchd.edge.survey import JOBS_MAX, ROOT, Finding, Piece, Survey, blocks_in
from batchd.edge.watch import Watch
from batchd.errors import FormatError, JournalError
from batchd.formats import tables
from batchd.formats.segment import HEADER_BYTES, INPUT_STATE, Block, unpack
from batchd.worker.valuefiles import read_value

ANY: Final = -1
"""The generation of an outcome whose key is lost."""


class Share(NamedTuple):
    """The jobs [start, stop) of a piece."""

    start: int
    stop: int
    piece: Piece


class Salvage:
    """One batch's remains. Close it afterwards: until then, a batch that is being written is held still."""

    def __init__(self, folder: Path) -> None:
        """Read all of it. Raises JournalError when there is nothing to read."""
        self.batch = folder.name
        self.size = 0
        """Jobs, as far as they are known."""
        self.outcomes: list[Share] = []
        """Of every job the outcome that counts, in order."""
        self.doubtful: list[Share] = []
        """Of jobs without such an outcome: what may have become of them, unless they were retried since."""
        self.inputs: list[Share] = []
        """Of every job without such an outcome, in order."""
        self.lost_outcomes = RangeSet()
        """Jobs that are done and whose outcome cannot be read."""
        self.lost_inputs = RangeSet()
        """Jobs of which neither outcome nor input can be read."""
        self._finished = RangeSet()
        self._given = RangeSet()
        self._suspect = RangeSet()
        """Jobs whose last outcome may be damaged: a failure of an earlier generation says nothing of them."""
        if not (folder / DATA_NAME).is_file():
            raise JournalError(f"there is no {DATA_NAME} in {folder}: nothing can be brought out")
        with ExitStack() as stack:
            watch = stack.enter_context(Watch(folder))
            self._file = open_file(folder)
            stack.callback(self._file.close)
            self._survey = Survey(folder.name, self._file, watch.header)
            self._survey.read()
            judge(self._survey)
            self._settle()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the batch."""
        self._stack.close()

    @property
    def spec(self) -> dict[str, Any]:
        """What the batch was made with, {} when that is lost."""
        return dict(self._survey.meta.get(tables.META_SPEC, {}))

    @property
    def findings(self) -> list[Finding]:
        """What is damaged."""
        return self._survey.findings

    @property
    def unplaced(self) -> list[Piece]:
        """Inputs that read back, of jobs whose numbers are not known."""
        return self._survey.unplaced

    def block(self, piece: Piece) -> Block:
        """Read a piece again. Raises FormatError."""
        found = Found(b"", piece.offset, piece.length, 0, is_extent=False)
        return next(unpack(self._file.value(found)[0], partial(read_value, self._file.folder)))

    def outcome(self, share: Share) -> Span:
        """Return the outcomes of a share. Raises FormatError."""
        return Span(share.start, share.stop, self.block(share.piece))

    def records(self, table: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Give (key, value) of a table without checksums: causes, functions, notes."""
        for found in self._survey.others.get(table, ()):
            try:
                yield found.key, self._file.value(found)[0]
            except FormatError:
                continue  # It stands among the findings.

    # --- What belongs where ------------------------------------------------------------------------------------

    def _settle(self) -> None:
        survey, facts = self._survey, self._survey.facts
        if not survey.is_known:
            self._suspect.add(0, JOBS_MAX)
        for finding in self.findings:
            if finding.table in {tables.OUTCOMES.decode(), tables.META.decode(), ROOT}:
                self._suspect.add(finding.start or 0, finding.stop or JOBS_MAX)
        for piece in sorted(survey.outcomes, key=lambda piece: -piece.generation):
            self._take_outcome(piece)
        for piece in survey.inputs:
            self._take_input(piece)
        self.size = max([facts.size, *(piece.stop for piece in (*survey.inputs, *survey.outcomes))])
        is_whole = not self.findings
        if not is_whole:
            self._search()
        self.inputs = [
            Share(start, stop, share.piece)
            for share in sorted(self.inputs)
            for start, stop in self._finished.gaps(share.start, min(share.stop, self.size))
        ]
        self.outcomes.sort()
        self.doubtful = self._unsettled()
        if is_whole and is_throwaway(survey):
            return  # What is missing was forgotten on purpose.
        self.lost_outcomes = RangeSet(gap for done in self._done for gap in self._finished.gaps(*done))
        unfinished = list(self._finished.gaps(0, self.size))
        self.lost_inputs = RangeSet(gap for part in unfinished for gap in self._given.gaps(*part))

    def _unsettled(self) -> list[Share]:
        """Of every doubtful job the outcome of the highest generation."""
        told = RangeSet()
        kept = []
        for share in sorted(self.doubtful, key=lambda share: -share.piece.generation):
            for part in list(told.gaps(share.start, min(share.stop, self.size))):
                kept += [Share(start, stop, share.piece) for start, stop in self._finished.gaps(*part)]
                told.add(*part)
        return sorted(kept)

    @property
    def _done(self) -> RangeSet:
        """Jobs of which the checkpoint says that they have an outcome, of whatever generation."""
        return self._survey.facts.done

    def _take_outcome(self, piece: Piece) -> None:
        """Use an outcome for its jobs, where no other was found and it is certain that none came later."""
        survey, whole = self._survey, (piece.first, piece.stop)
        parts = [whole]
        if piece.state != JobState.SUCCEEDED:  # Nothing ever follows a success.
            is_current = survey.is_known and max(piece.generation, 0) == survey.facts.generation
            settled = list(survey.facts.done.overlap(*whole)) if survey.is_known else []
            parts = parts if is_current else [gap for part in settled for gap in self._suspect.gaps(*part)]
            certain = RangeSet(parts)
            for gap in certain.gaps(*whole):
                self.doubtful += [Share(start, stop, piece) for start, stop in self._suspect.overlap(*gap)]
        for start, stop in parts:
            for low, high in list(self._finished.gaps(start, stop)):
                self.outcomes.append(Share(low, high, piece))
                self._finished.add(low, high)

    def _take_input(self, piece: Piece) -> None:
        if not self._given.overlaps(piece.first, piece.stop):
            self.inputs.append(Share(piece.first, piece.stop, piece))
            self._given.add(piece.first, piece.stop)

    def _search(self) -> None:
        """Fill gaps with what lies in pages that no tree leads to."""
        outcomes: list[Piece] = []
        inputs: list[Piece] = []
        unplaced: list[Piece] = []
        for found in self._file.loose():
            if len(found.key) not in {0, tables.INDEX.size, tables.OUTCOME.size}:
                continue
            for piece in self._pieces_in(found):
                if piece.state != INPUT_STATE:
                    outcomes.append(piece)
                elif found.key:
                    inputs.append(piece)
                else:
                    unplaced.append(piece)
        if not self._survey.is_known:
            self.size = max([self.size, *(piece.stop for piece in (*outcomes, *inputs))])
        self._suspect.add(0, JOBS_MAX)
        for piece in sorted(outcomes, key=lambda piece: (-piece.generation, piece.first)):
            if piece.stop <= self.size:
                self._take_outcome(piece)
        for piece in inputs:
            if piece.stop <= self.size:
                self._take_input(piece)
        if any(True for _ in self._given.gaps(0, self.size)):
            placed = {piece.offset for piece in (*self._survey.inputs, *inputs)}
            self._survey.unplaced += [piece for piece in unplaced if piece.offset not in placed]

    def _pieces_in(self, found: Found) -> Iterator[Piece]:
        generation, first = ANY, 0
        if len(found.key) == tables.OUTCOME.size:
            generation = tables.OUTCOME.unpack(found.key)[0]
        elif found.key:
            first = tables.INDEX.unpack(found.key)[0]
        try:
            value, _ = self._file.value(found)
        except FormatError:
            return
        for at, block in blocks_in(value):
            if isinstance(block, str) or self._survey.file_complaint(block):
                return
            offset, length = found.offset + at, HEADER_BYTES + len(block.body)
            if block.state == INPUT_STATE:
                yield Piece(0, first, first + block.count, INPUT_STATE, offset, length)
                return
            yield Piece(generation, block.first, block.first + block.count, block.state, offset, length)
