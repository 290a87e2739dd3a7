"""Where a peer's process and the applications its workers load find each other: in a folder of the environment."""

import os
from pathlib import Path
from typing import Final

FOLDER: Final = "BENCHMARKS_PEER"
"""The variable. It also marks every process that was started for a peer."""
ANSWER: Final = "answer"
"""The file with what came out."""


def folder() -> Path:
    """The folder of this request."""
    return Path(os.environ[FOLDER])
