"""Drafts: a batch is made in a folder of another name, and is there, whole, when the folder has its own."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import lmdb

from batchd.edge.environment import open_environment
from batchd.edge.folder import sync, unwritten
from batchd.formats import tables
from batchd.formats.joblog import LOG_NAME
from batchd.settings import FORMAT_VERSION
from batchd.worker.valuefiles import VALUES_NAME

_DRAFT_PREFIX: Final = ".new-"


def make_batch(folder: Path, spec: dict[str, Any], payload: bytes = b"") -> None:
    """Make a batch durably, whole or not at all. Raises JournalError.

    `payload` is the pickled task, when it is not one that a name stands for. Until it has its name nothing of it
    need be on the disk, so the disk is waited for at the end, and not for each table.
    """
    draft = folder.with_name(f"{_DRAFT_PREFIX}{folder.name}")
    try:
        if draft.exists():
            shutil.rmtree(draft)  # Left by a death in the middle of this function.
        draft.mkdir(0o700)
        env = open_environment(draft, sync=False)
        try:
            dbs = {name: env.open_db(name) for name in tables.TABLES}
            with env.begin(write=True, db=dbs[tables.META]) as txn:
                txn.put(tables.META_SPEC, json.dumps(spec).encode())
                found = {"format": FORMAT_VERSION, "lmdb": lmdb.version()}
                txn.put(tables.META_FORMAT, json.dumps(found).encode())
                if payload:
                    txn.put(tables.TASK_MARK, payload, db=dbs[tables.FUNCTIONS])
            env.sync(True)
        finally:
            env.close()
        # Made now, for a batch's folder tells by its time when it was made.
        (draft / LOG_NAME).touch(0o600)
        (draft / VALUES_NAME).mkdir(0o700)
        sync(draft)
        draft.rename(folder)
        sync(folder.parent)
    except (lmdb.Error, OSError) as error:
        raise unwritten(error, folder.parent, f"cannot make a batch in {folder.parent}") from None


def remove_drafts(batches: Path) -> None:
    """Remove what deaths in the middle of `make_batch` left. Only while nobody makes one."""
    for draft in batches.glob(f"{_DRAFT_PREFIX}*"):
        shutil.rmtree(draft, ignore_errors=True)  # One that stays only takes space.
