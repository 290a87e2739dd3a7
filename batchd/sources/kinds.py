"""What is said of files whose names promise more than lines of text. None of them is read here, or otherwise.

The one idea: such a file is taken by the shell or by Python, which know it better; what it takes is said where it is
given.
"""

from collections.abc import Iterable, Iterator
from typing import Final

_UNPACKED_BY: Final = {".bz2": "bzcat", ".xz": "xzcat", ".zst": "zstdcat"}
_FROM_PYTHON: Final = (".parquet", ".feather", ".arrow", ".xlsx", ".npy", ".pkl", ".zip")


def hints(names: Iterable[str]) -> Iterator[str]:
    """Say what becomes of each input that is read by lines and may not be meant so.

    >>> list(hints(["rows.json", "names.txt"]))
    ["rows.json: each line is a job, as text. For a job a value: jq -c '.[]' rows.json > rows.jsonl, and rows.jsonl"]
    """
    for name in names:
        if name.lower().endswith(".json"):
            yield f"{name}: each line is a job, as text. For a job a value: jq -c '.[]' {name} > {name}l, and {name}l"


def remedy(name: str, otherwise: str) -> str:
    """Say how the lines of a file can be had that is no text: by its kind, or `otherwise`.

    >>> remedy("logs.bz2", "")
    'Unpack it on the way: bzcat logs.bz2 | batchd run TASK -.'
    """
    lower = name.lower()
    for suffix, command in _UNPACKED_BY.items():
        if lower.endswith(suffix):
            return f"Unpack it on the way: {command} {name} | batchd run TASK -."
    if lower.endswith(_FROM_PYTHON):
        return "Read it in Python, and give its rows to batchd.map."
    return otherwise
