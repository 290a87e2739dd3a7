"""File names as items: what `--paths 'GLOB'` matches, as absolute names of files, each once.

Names are listed, files never opened. The one idea: the order is fixed (the patterns as given, names sorted
within each), so that a batch goes on when files were added behind the last one it read, and notices every other
change.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from typing import Any

from batchd.errors import InputChanged, InputError
from batchd.sources.source import Block, Checkpoint, block_limits, new_hash


class PathSource:
    """The files that patterns match when the source is made."""

    def __init__(self, patterns: Sequence[str]) -> None:
        absolute = [os.path.abspath(os.path.expanduser(pattern)) for pattern in patterns]  # noqa: PTH100, PTH111 (a Path would drop what a pattern means)
        self.skipped = 0
        self.skipped_places = ()
        self.spec: dict[str, Any] = {"kind": "paths", "patterns": absolute}
        self._names = list(dict.fromkeys(name for pattern in absolute for name in _files(pattern)))

    def count(self) -> int:
        """How many files matched."""
        return len(self._names)

    def blocks(self, start: Checkpoint | None = None) -> Iterator[Block]:
        """The names behind `start`."""
        given = 0 if start is None else start.items
        digest = new_hash()
        _feed(digest, self._names[:given])
        if start is not None and given:
            self._verify(start, digest.hexdigest())
        for limit in block_limits():
            items = self._names[given : given + limit]
            if not items:
                return
            given += len(items)
            _feed(digest, items)
            yield Block(items, Checkpoint(items=given, offset=given, digest=digest.hexdigest()))

    def _verify(self, start: Checkpoint, digest: str) -> None:
        patterns = " ".join(self.spec["patterns"])
        if start.items > len(self._names):
            raise InputChanged(
                f"{patterns} matches {len(self._names)} files, but this batch has already read "
                f"{start.items}. Put the missing files back, or pass --new to start a new batch."
            )
        if start.digest != digest:
            raise InputChanged(
                f"{patterns} no longer begins with the same {start.items} files this batch has read: some "
                "were added, renamed or removed among them. Pass --new to start a new batch."
            )


def _files(pattern: str) -> list[str]:
    # A name that exists is meant literally, even with [ or * in it: a shell may have expanded the pattern.
    matches = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)  # noqa: PTH110, PTH207 (a million names: str is a fifth of a Path)
    files = sorted(name for name in matches if os.path.isfile(name))  # noqa: PTH113
    if files:
        return files
    if matches:
        raise InputError(f"{pattern} matches folders but no file. To take the files below them, write {pattern}/**.")
    raise InputError(f"{pattern} matches no file. Check the pattern; names that begin with a dot need one in it.")


def _feed(digest: Any, names: list[str]) -> None:
    # NUL cannot stand in a name, so no two lists of names feed the same bytes.
    digest.update(b"".join(os.fsencode(name) + b"\0" for name in names))
