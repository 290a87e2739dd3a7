"""Where things lie in a batch's LMDB environment: the tables, their keys, and the names under `meta`.

    inputs       index of the first job (u64)                       -> one input block
    outcomes     generation (u32), index of the first job (u64)     -> outcome blocks that follow each other
    log          sequence (u64)                                     -> one entry that is neither input nor outcome
    causes       fingerprint (8 bytes)                              -> the text of a traceback
    functions    mark (8 bytes)                                     -> a pickled callable that jobs name
    keys         digest of a job's key (16 bytes)                   -> its index (u64), digest of its input (8 bytes)
    notes        index of a job (u64)                               -> the checkpoint it left last
    meta         a name                                             -> JSON

Keys are big-endian, so that their byte order is the jobs' order.
"""

import struct
from typing import Final

INPUTS: Final = b"inputs"
OUTCOMES: Final = b"outcomes"
LOG: Final = b"log"
CAUSES: Final = b"causes"
FUNCTIONS: Final = b"functions"
KEYS: Final = b"keys"
NOTES: Final = b"notes"
META: Final = b"meta"
TABLES: Final = (INPUTS, OUTCOMES, LOG, CAUSES, FUNCTIONS, KEYS, NOTES, META)

META_SPEC: Final = b"spec"
META_CHECKPOINT: Final = b"checkpoint"
META_USAGE: Final = b"usage"
META_FORMAT: Final = b"format"

INDEX: Final = struct.Struct(">Q")
OUTCOME: Final = struct.Struct(">IQ")

TASK_MARK: Final = b"the task"
"""The mark of a batch's own task, when that is a pickled callable."""
KEY_DIGEST_BYTES: Final = 16
KEY_BYTES: Final = KEY_DIGEST_BYTES + 8
"""What a submission carries for each job that has a key."""
