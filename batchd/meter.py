"""Progress of a map: drawn on a terminal, given to tqdm, or told to a function.

Only how it is shown is decided here; the live line itself is that of `batchd run` (view.py).
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from batchd.errors import UsageError
from batchd.view import NotesView, ProgressNews, SilentView, View, make_view


def make_meter(progress: Any, title: str) -> View:
    """Return the view for `progress`: "auto", True, "tqdm", tqdm itself or a bar of it, or a function of a dict.

    Raises UsageError for anything else.
    """
    if progress is None or (isinstance(progress, int | str) and not progress):
        return SilentView()
    if progress is True or (isinstance(progress, str) and progress == "auto"):  # A bar compares with bars only.
        quiet = progress is not True and not (sys.stderr and sys.stderr.isatty())
        return make_view(quiet=quiet, as_json=False, title=title, total=None)
    if isinstance(progress, str) and progress == "tqdm":
        from tqdm.auto import tqdm  # noqa: PLC0415  (the user's own, asked for by name)

        progress = tqdm
    if _is_of_tqdm(progress):
        return _of_tqdm(progress, title)
    if callable(progress):
        return ToldView(progress)
    raise UsageError(f'progress={progress!r}: it is "auto", True, False, "tqdm", tqdm.tqdm or a function')


def _is_of_tqdm(progress: Any) -> bool:
    """Whether it is tqdm, in one of its many forms, or one of its bars, or what makes one."""
    made = progress.func if isinstance(progress, partial) else progress
    return hasattr(made, "update") and hasattr(made, "set_postfix")


def _of_tqdm(progress: Any, title: str) -> View:
    if not isinstance(progress, type | partial):
        return TqdmView(progress, is_own=False)
    given = progress.keywords if isinstance(progress, partial) else {}
    own = {name: value for name, value in (("desc", title), ("unit", "job")) if name not in given}
    return TqdmView(progress(**own), is_own=True)


class TqdmView(NotesView):
    """A bar of tqdm's, which draws as the user has set it up. One that the user made is left open."""

    def __init__(self, bar: Any, *, is_own: bool) -> None:
        super().__init__(sys.stderr)
        self._bar = bar
        self._is_own = is_own
        self._done: int | None = None
        """How many the bar was told of; None before the first news."""

    def update(self, progress: ProgressNews) -> None:
        """Move the bar."""
        bar = self._bar
        if self._done is None:
            self._done = progress.done if self._is_own else 0
            if self._done:  # By an earlier call: it says nothing about the rate of this one.
                bar.initial = bar.n = bar.last_print_n = self._done
        if progress.failed:
            bar.set_postfix(failed=progress.failed, refresh=False)
        bar.update(progress.done - self._done)
        self._done = progress.done
        if progress.is_sealed and bar.total != progress.size and (self._is_own or bar.total is None):
            bar.total = progress.size
            bar.refresh()

    def note(self, text: str) -> None:
        """Write above the bar, where it is drawn."""
        self._bar.write(f"batchd: {text}", file=getattr(self._bar, "fp", sys.stderr))

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._is_own:
            self._bar.close()
        else:
            self._bar.refresh()


class ToldView(NotesView):
    """Tells a function: done, size (None while it is not known), failed, state."""

    def __init__(self, tell: Callable[[dict[str, Any]], object]) -> None:
        super().__init__(sys.stderr)
        self._tell = tell
        self._last: dict[str, Any] = {}

    def update(self, progress: ProgressNews) -> None:
        """Call it, when something changed."""
        size = progress.size if progress.is_sealed else None
        now = {"done": progress.done, "size": size, "failed": progress.failed, "state": progress.state}
        if now != self._last:
            self._last = now
            self._tell(now)
