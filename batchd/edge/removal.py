"""Taking a batch out of a journal, so that no death in between leaves half of it.

    batches/<id>         a batch
    batches/.old-<id>    one that is on its way out: no listing shows it, and it is deleted at leisure

The one idea: the rename is the removal, in one step and durable, made by the supervisor or while none can start;
deleting what then has another name disturbs nobody, may be cut off anywhere, and is finished by the next prune.
"""

import errno
import os
import shutil
from itertools import count
from pathlib import Path
from typing import Final

from batchd.edge.folder import BATCHES_NAME, sync
from batchd.errors import BatchNotFound, JournalError

_PREFIX: Final = ".old-"


def set_aside(folder: Path, batch: str) -> Path:
    """Rename the batch durably and return its new place. Only for who writes the journal in `folder`."""
    batches = folder / BATCHES_NAME
    for number in count():
        aside = batches / f"{_PREFIX}{batch}{f'.{number}' if number else ''}"
        if aside.exists():
            continue  # Left by a prune that was cut off, and the batch was made again since.
        try:
            (batches / batch).rename(aside)
            sync(batches)
        except FileNotFoundError:
            raise BatchNotFound(f"there is no batch {batch}: `batchd ls` lists them") from None
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                continue
            raise JournalError(f"{batches / batch} cannot be removed: {error.strerror}") from None
        return aside
    raise AssertionError  # count() has no end.


def left_aside(folder: Path) -> list[Path]:
    """Return what is on its way out."""
    try:
        with os.scandir(folder / BATCHES_NAME) as entries:
            return sorted(Path(entry) for entry in entries if entry.name.startswith(_PREFIX))
    except FileNotFoundError:
        return []


def sweep(folder: Path) -> list[str]:
    """Delete what was set aside; return a sentence for each that could not be deleted."""
    complaints = []
    for aside in left_aside(folder):
        try:
            if aside.is_symlink():
                target = aside.resolve()
                aside.unlink()
                complaints.append(
                    f"{target} was linked into the journal from elsewhere and is still there: delete it"
                )
            else:
                shutil.rmtree(aside)
        except FileNotFoundError:
            continue  # Another prune is deleting it too.
        except OSError as error:
            complaints.append(f"{aside} cannot be deleted: {error}; the next `batchd prune` tries again")
    return complaints
