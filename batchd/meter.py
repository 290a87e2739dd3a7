"""Progress of a map: drawn on a terminal, given to tqdm, or told to a function.

Only how it is shown is decided here; the live line itself is that of `batchd run` (view.py).
"""

import sys
from collections.abc import Callable
from typing import Any

from batchd.errors import UsageError
from batchd.view import NotesView, ProgressNews, SilentView, View, make_view


def make_meter(progress: Any, title: str) -> View:
    """Return the view for `progress`: "auto", True, "tqdm" or tqdm itself, or a function of a dict.

    Raises UsageError for anything else.
    """
    if progress == "auto":
        return make_view(quiet=not sys.stderr.isatty(), as_json=False, title=title, total=None)
    if progress is True:
        return make_view(quiet=False, as_json=False, title=title, total=None)
    if progress == "tqdm":
        from tqdm.auto import tqdm  # noqa: PLC0415  (the user's own, asked for by name)

        progress = tqdm
    if isinstance(progress, type) and hasattr(progress, "update") and hasattr(progress, "set_postfix"):
        return TqdmView(progress(desc=title, unit="job"))
    if callable(progress):
        return ToldView(progress)
    if not progress:
        return SilentView()
    raise UsageError(f'progress={progress!r}: it is "auto", True, False, "tqdm", tqdm.tqdm or a function')


class TqdmView(NotesView):
    """A bar of tqdm's, which draws as the user has set it up."""

    def __init__(self, bar: Any) -> None:
        super().__init__(sys.stderr)
        self._bar = bar

    def update(self, progress: ProgressNews) -> None:
        """Move the bar."""
        if progress.is_sealed:
            self._bar.total = progress.size
        if progress.failed:
            self._bar.set_postfix(failed=progress.failed, refresh=False)
        self._bar.update(progress.done - self._bar.n)

    def note(self, text: str) -> None:
        """Write above the bar."""
        self._bar.write(f"batchd: {text}", file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


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
