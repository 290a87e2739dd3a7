"""Where things lie in a batch's LMDB environment: the tables, their keys, and the names under `meta`.

    inputs       index of the first job (u64)                       -> one input block
    outcomes     generation (u32), index of the first job (u64)     -> outcome blocks that follow each other
    log          sequence (u64)                                     -> one entry that is neither input nor outcome
    causes       fingerprint (8 bytes)                              -> the text of a traceback
    meta         a name                                             -> JSON

Keys are big-endian, so that their byte order is the jobs' order.
"""

import struct
from typing import Final

INPUTS: Final = b"inputs"
OUTCOMES: Final = b"outcomes"
LOG: Final = b"log"
CAUSES: Final = b"causes"
META: Final = b"meta"
TABLES: Final = (INPUTS, OUTCOMES, LOG, CAUSES, META)

META_SPEC: Final = b"spec"
META_CHECKPOINT: Final = b"checkpoint"
META_USAGE: Final = b"usage"
META_FORMAT: Final = b"format"

INDEX: Final = struct.Struct(">Q")
OUTCOME: Final = struct.Struct(">IQ")
