"""A copy of a whole journal, also while it is written: a journal of its own, which every command can use.

Each batch is copied as it was at one moment, by LMDB and in a child that may die of a damaged file; then the copy is
read back, record by record. The one idea: a copy is no journal until all of it is on the disk, and then it has an id
of its own, so that a supervisor of the copy never takes the original's processes for its own.
"""

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from batchd.edge.damage import judge, open_file
from batchd.edge.environment import DATA_NAME, LOCK_NAME, open_environment
from batchd.edge.folder import BATCHES_NAME, begin_copy, disk_bytes, finish_copy, sync
from batchd.edge.isolation import Isolated, Tell
from batchd.edge.shelf import batch_folders
from batchd.edge.survey import Survey
from batchd.errors import BatchdError, JournalError, JournalFull, UsageError
from batchd.formats import tables
from batchd.settings import FORMAT_VERSION
from batchd.worker.valuefiles import VALUES_NAME, is_value


class Copied(NamedTuple):
    """One batch of a backup."""

    batch: str
    disk_bytes: int
    trouble: str
    """What is wrong with it, there as here; '' when it reads back."""


def back_up(folder: Path, target: Path) -> Generator[Copied, None, None]:
    """Copy the journal in `folder` to `target`, new or empty; give each batch when its copy is on the disk.

    Only when all were given it is a journal. Raises UsageError, JournalError.
    """
    if target.absolute().resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{target} lies in the journal itself; name a folder outside of {folder}")
    real = begin_copy(target)
    try:
        for place in batch_folders(folder):
            copied = _copy_batch(place, real / BATCHES_NAME)
            if copied is not None:
                yield copied
        sync(real / BATCHES_NAME)
    except OSError as error:
        kind = JournalFull if error.errno in {errno.ENOSPC, errno.EDQUOT} else JournalError
        raise kind(
            f"{target} cannot hold the copy: {error.strerror}; it is not finished and can be deleted"
        ) from None
    finish_copy(real, folder)


def _copy_batch(place: Path, batches: Path) -> Copied | None:
    """Copy one batch; return None for one that was removed meanwhile."""
    draft = batches / f".new-{place.name}"
    draft.mkdir(0o700)
    try:
        trouble = _copy_data(place, draft)
        for file in place.iterdir():
            if file.name not in {DATA_NAME, LOCK_NAME} and file.is_file():
                shutil.copyfile(file, draft / file.name)
        _copy_values(place, draft)
    except FileNotFoundError:
        if place.exists():
            raise
        shutil.rmtree(draft)
        return None
    (draft / LOCK_NAME).touch(0o600)  # Made by the first to open it, it would make the folder look newer.
    for file in draft.iterdir():
        if file.is_file():
            file.chmod(0o600)
            sync(file)
        if (place / file.name).exists():
            _keep_time(place / file.name, file)
    trouble = trouble or _read_back(draft)
    _keep_time(place, draft)
    sync(draft)
    draft.rename(batches / place.name)
    return Copied(place.name, disk_bytes(batches / place.name), trouble)


def _copy_values(place: Path, draft: Path) -> None:
    """Copy the large values: after the records that name them. Others may be written or trimmed at this moment."""
    target = draft / VALUES_NAME
    target.mkdir(0o700)
    with suppress(FileNotFoundError):  # A batch may have none.
        for file in (place / VALUES_NAME).iterdir():
            if not is_value(file.name):
                continue
            with suppress(FileNotFoundError):
                shutil.copyfile(file, target / file.name, follow_symlinks=False)
                (target / file.name).chmod(0o600)
                sync(target / file.name)
    sync(target)


def _copy_data(place: Path, draft: Path) -> str:
    """Copy a batch's environment as it is at one moment; return why that was not possible."""
    if not (place / DATA_NAME).exists():
        if not place.exists():
            raise FileNotFoundError(errno.ENOENT, "it was removed")
        return f"there is no {DATA_NAME} in {place}"

    def work(tell: Tell) -> None:
        with closing(open_environment(place, readonly=True)) as env:
            env.copy(str(draft), compact=True)  # Without `compact` it would wait for whoever writes.
        tell({"is_done": True})

    with Isolated(work) as child:
        told = list(child.told(silence_s=_COPY_S_MAX))
    if any("is_done" in fields for fields in told):
        return ""
    why = child.death or next((str(fields["error"]) for fields in told if "error" in fields), "nothing was said")
    if "No space left" in why or "quota" in why:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (draft / DATA_NAME).unlink(missing_ok=True)
    shutil.copyfile(place / DATA_NAME, draft / DATA_NAME)  # As it is: also what is damaged can be salvaged.
    return f"LMDB cannot copy it, the file was copied as it is: {why}"


_COPY_S_MAX: Final = 6 * 3600.0
"""A copy says nothing until it is done."""


def _read_back(draft: Path) -> str:
    """Return what is damaged in a copy."""
    try:
        with closing(open_file(draft)) as file:
            survey = Survey(draft.name.removeprefix(".new-"), file)
            survey.read()
            judge(survey)
    except BatchdError as error:
        return str(error)
    told = survey.meta.get(tables.META_FORMAT, {}).get("format")
    if isinstance(told, int) and told > FORMAT_VERSION:
        return ""  # Of a newer batchd, which knows what it should be like.
    more = f", and {len(survey.findings) - 1:,} more" if len(survey.findings) > 1 else ""
    return f"{survey.findings[0]}{more}" if survey.findings else ""


def _keep_time(original: Path, made: Path) -> None:
    """Have the copy as old as the original: batches are listed and pruned by that."""
    stat = original.stat()
    os.utime(made, ns=(stat.st_atime_ns, stat.st_mtime_ns))
