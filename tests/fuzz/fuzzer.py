"""A small coverage-guided fuzzer: bytes are changed at random, and changes that reach new lines are built upon.

Nothing here knows what it fuzzes; targets.py does. The one idea: everything is drawn from one seed and counted, not
timed, so that the same seed and count do the same on every machine, and a finding is its bytes and nothing else.
"""

import json
import random
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

from batchd.errors import BatchdError

PACKAGE: Final = str(Path(__file__).resolve().parents[2] / "batchd")
INPUT_BYTES_MAX: Final = 4096
MEMORY_BYTES_MIN: Final = 1 << 20
MEMORY_RATIO_MAX: Final = 256
"""One execution may take so many bytes for each byte of its input, beside MEMORY_BYTES_MIN."""
LINES_MAX: Final = 200_000
"""One execution may run so many lines: what runs more does not end in any useful time."""
_MEMORY_EVERY: Final = 16
_JSON_SHARE: Final = 0.9
"""Of changes to what is JSON, so many keep it that: few bytes of a text can change without an end to its grammar."""
_NUMBERS: Final = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    127,
    128,
    255,
    256,
    65_535,
    65_536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 2, 1.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, -(2**63)),
    *("", "1", "a", "a=b", "\0", "\ud800", "é", "x" * 300, [], {}, [[]], [1, 2], ["a", "b"], {"": 1}, {"a": "b"}),
)


class Endless(Exception):
    """An execution ran more lines than any input of its size can need."""


class TooMuchMemory(Exception):
    """An execution took more memory than any input of its size can need."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is fuzzed: any bytes must give a value, or one of the errors that are told on purpose."""

    name: str
    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    allowed: tuple[type[BaseException], ...] = (BatchdError,)
    words: Sequence[bytes] = ()
    """Pieces of bytes worth inserting."""
    is_bounded: bool = True
    """Whether it may take no more memory than its input explains."""


class Finding(NamedTuple):
    """One way in which a target broke its word, with the shortest input that was found for it."""

    target: str
    error: str
    place: str
    data: bytes

    def __str__(self) -> str:
        return f"{self.target}: {self.error} at {self.place}\n    bytes.fromhex({self.data.hex()!r})"


@dataclass(slots=True)
class Outcome:
    """What came of fuzzing one target."""

    target: str
    executions: int = 0
    edges: int = 0
    corpus: int = 0
    elapsed_s: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.executions / self.elapsed_s if self.elapsed_s else 0.0
        return (
            f"{self.target:<10} {self.executions:>9,} executions {rate:>8,.0f}/s  {self.edges:>4} edges  "
            f"{self.corpus:>4} inputs  {len(self.findings)} findings"
        )


class Coverage:
    """Which line of the code below a folder followed which."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.edges: set[tuple[CodeType, int, int]] = set()
        self._is_ours: dict[CodeType, bool] = {}
        self._before = self._lines = 0

    def watch(self, call: Callable[[], object]) -> int:
        """Call, and return how many edges were new."""
        known, before_all = len(self.edges), sys.gettrace()
        self._before = self._lines = 0
        sys.settrace(self._on_call)
        try:
            call()
        finally:
            sys.settrace(before_all)
        return len(self.edges) - known

    def _on_call(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        code = frame.f_code
        is_ours = self._is_ours.get(code)
        if is_ours is None:
            is_ours = self._is_ours[code] = code.co_filename.startswith(self._root)
        return self._on_line if is_ours else None

    def _on_line(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            line = frame.f_lineno
            self.edges.add((frame.f_code, self._before, line))
            self._before = line
            self._lines += 1
            if self._lines > LINES_MAX:
                raise Endless(f"more than {LINES_MAX:,} lines")
        return self._on_line


class Fuzzer:
    """Fuzzes one target."""

    def __init__(self, target: Target, seed: int, root: str = PACKAGE) -> None:
        self.target = target
        self._dice = random.Random(f"{seed}:{target.name}")
        self._coverage = Coverage(root)
        self._corpus: list[bytes] = []
        self._found: set[tuple[str, str]] = set()
        self.outcome = Outcome(target.name)

    def run(self, *, count: int = sys.maxsize, seconds: float = float("inf")) -> Outcome:
        """Fuzz for so many executions, or so long; seeds count too."""
        outcome, began_at = self.outcome, perf_counter()
        for data in self.target.seeds:
            self._try(data)
            self._corpus.append(data)
        while outcome.executions < count and perf_counter() - began_at < seconds:
            data = self._mutated(self._dice.choice(self._corpus))
            if self._try(data):
                self._corpus.append(data)
        outcome.edges, outcome.corpus = len(self._coverage.edges), len(self._corpus)
        outcome.elapsed_s += perf_counter() - began_at
        return outcome

    def _try(self, data: bytes) -> bool:
        """Execute once; return whether something new was reached."""
        self.outcome.executions += 1
        known = len(self._coverage.edges)
        broken = self._broken(data)
        if broken is not None and broken not in self._found:
            self._found.add(broken)
            short = self._shortened(data, broken)
            self.outcome.findings.append(Finding(self.target.name, *broken, short))
        is_new = len(self._coverage.edges) > known
        return is_new and broken is None

    def _broken(self, data: bytes) -> tuple[str, str] | None:
        """Return what was broken and where, None when the target kept its word."""
        try:
            known = self._coverage.watch(lambda: self.target.run(data))
            if not self.target.is_bounded:
                return None
            if known or self.outcome.executions % _MEMORY_EVERY == 0:
                self._measure(data)
        except self.target.allowed:
            return None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            # Numbers in a message differ from input to input, a broken assertion is known by its words.
            words = f": {error}"[:200] if isinstance(error, AssertionError) else ""
            return f"{type(error).__name__}{words}", place_of(error.__cause__ or error)
        return None

    def _measure(self, data: bytes) -> None:
        limit = MEMORY_BYTES_MIN + MEMORY_RATIO_MAX * len(data)
        tracemalloc.start()
        try:
            self.target.run(data)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            if peak > limit:
                raise TooMuchMemory(f"{peak:,} bytes for {len(data):,}")

    def _shortened(self, data: bytes, broken: tuple[str, str]) -> bytes:
        """Return the input without what the finding does not need."""
        size = max(1, len(data) // 2)
        while size:
            at = 0
            while at < len(data):
                shorter = data[:at] + data[at + size :]
                if self._broken(shorter) == broken:
                    data = shorter
                else:
                    at += size
            size //= 2
        return data

    # --- Changing inputs ---------------------------------------------------------------------------------------

    def _mutated(self, data: bytes) -> bytes:
        dice = self._dice
        for _ in range(1 << dice.randrange(4)):
            if dice.random() < _JSON_SHARE and (changed := self._mutated_json(data)) is not None:
                data = changed
            else:
                data = dice.choice(_CHANGES)(self, data, dice.randrange(len(data) + 1))
        return data[:INPUT_BYTES_MAX]

    def _flip(self, data: bytes, at: int) -> bytes:
        return data[:at] + bytes(byte ^ (1 << self._dice.randrange(8)) for byte in data[at : at + 1]) + data[at + 1 :]

    def _set(self, data: bytes, at: int) -> bytes:
        return data[:at] + bytes([self._dice.randrange(256)]) + data[at + 1 :]

    def _cut(self, data: bytes, at: int) -> bytes:
        return data[:at] + data[at + 1 + self._dice.randrange(16) :]

    def _double(self, data: bytes, at: int) -> bytes:
        piece = data[at : at + 1 + self._dice.randrange(32)]
        return data[:at] + piece * self._dice.randrange(2, 5) + data[at + len(piece) :]

    def _number(self, data: bytes, at: int) -> bytes:
        size = self._dice.choice((1, 2, 4, 8))
        number = self._dice.choice((*_NUMBERS, len(data), len(data) - at)) % (1 << (8 * size))
        return data[:at] + number.to_bytes(size, "little") + data[at + size :]

    def _insert(self, data: bytes, at: int) -> bytes:
        word = self._dice.choice(self.target.words) if self.target.words else self._dice.randbytes(3)
        return data[:at] + word + data[at + self._dice.choice((0, len(word))) :]

    def _splice(self, data: bytes, at: int) -> bytes:
        other = self._dice.choice(self._corpus)
        return data[:at] + other[self._dice.randrange(len(other) + 1) :]

    def _mutated_json(self, data: bytes) -> bytes | None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return None
        places: list[tuple[Any, Any]] = []
        _collect(value, places)
        if not places:
            return json.dumps(self._dice.choice(_VALUES)).encode()
        box, key = self._dice.choice(places)
        old = box[key]
        match self._dice.randrange(5):
            case 0:
                del box[key]
            case 1 if isinstance(box, dict):
                box[self._dice.choice(("", "a", "a=b", "number", str(key) * 2))] = old
            case 2:
                box[key] = [old, self._dice.choice(_VALUES)]
            case 3:  # Much like it, and of another type.
                box[key] = self._dice.choice((str(old), [old], {"a": old}, bool(old), float(len(str(old))) + 0.5))
            case _:
                box[key] = self._dice.choice(_VALUES)
        return json.dumps(value).encode()


_CHANGES: Final[tuple[Callable[[Fuzzer, bytes, int], bytes], ...]] = (
    *(Fuzzer._flip, Fuzzer._set, Fuzzer._cut, Fuzzer._double, Fuzzer._number, Fuzzer._insert, Fuzzer._splice),
)


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    """Gather every place inside a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        places.append((value, key))
        _collect(inner, places)


def place_of(error: BaseException) -> str:
    """Return `file:line` of the innermost line of the package that the error went through."""
    place, trace = "?", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name.startswith(PACKAGE):
            place = f"{name[len(PACKAGE) + 1 :]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
