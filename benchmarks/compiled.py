"""What a compiled worker loop would win: compiled_loop.c, built by the machine's own compiler and timed on one job.

Nothing of batchd uses it. It is here so that "Python is the limit" is a figure and not an excuse.
"""

import importlib.util
import mmap
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from time import thread_time
from typing import Any, Final

_SOURCE: Final = Path(__file__).with_name("compiled_loop.c")
_NEVER_NS: Final = 10**15
_TRIES: Final = 20


def loop_s(scratch: Path, task: Callable[[Any], Any], items: Sequence[Any]) -> float | None:
    """CPU seconds of the compiled loop over `items`, at its best, or None where nothing can be compiled.

    Raises CalledProcessError with the compiler's words when it refuses the source.
    """
    compiler = shutil.which("cc")
    headers = sysconfig.get_paths()["include"]
    if compiler is None or not (Path(headers) / "Python.h").exists():
        return None
    library = scratch / "compiled_loop.so"
    command = [compiler, "-O2", "-shared", "-fPIC", f"-I{headers}", str(_SOURCE), "-o", str(library)]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("compiled_loop", library)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = mmap.mmap(-1, mmap.PAGESIZE)
    memoryview(words).cast("I")[1] = len(items)
    best_s = float("inf")
    for _ in range(_TRIES):
        values: list[Any] = []
        since = thread_time()
        done = module.run(items, task, values, words, _NEVER_NS)
        best_s = min(best_s, thread_time() - since)
        assert done == len(values) == len(items), "the compiled loop left jobs out"
    return best_s
