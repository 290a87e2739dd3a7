"""How arrays travel to workers: a large one is written to a file once, and each worker maps that file.

Arrays that are mapped already go by the name of their file, so that what a worker writes into one is seen by all, as
under joblib's own backends. The one idea: a file is there for as long as its array lives here or a call that was
given it is under way. numpy is used where it is loaded, and never loaded from here.
"""

import io
import mmap
import os
import sys
import tempfile
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Any, Final

from batchd.formats import byvalue

_PREFIX: Final = "batchd-{}-{}-joblib-"
"""With user and process, so that what a killed process leaves is swept like other folders of batchd."""


class _File:
    """The file of one array."""

    def __init__(self, path: Path, array: Any, died: Any) -> None:
        self.path = path
        self.users = 0
        """Calls under way that were given it."""
        self.array = weakref.ref(array, died)


class SharedArrays:
    """The arrays that the calls of one backend share.

    >>> import pickle
    >>> shared = SharedArrays(None, bytes_min=1_000_000, mode="r")
    >>> payload, files = shared.pickled({"no": "arrays"})
    >>> pickle.loads(payload), files
    ({'no': 'arrays'}, [])
    >>> shared.close()
    """

    def __init__(self, folder: str | None, *, bytes_min: int | None, mode: str | None) -> None:
        """Share what is larger than `bytes_min` through files in a new folder in `folder`; None: share nothing."""
        self._place = folder or os.environ.get("JOBLIB_TEMP_FOLDER") or None
        self._bytes_min = bytes_min
        self.mode = "r+" if mode == "w+" else mode
        self._lock = threading.RLock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: dict[int, _File] = {}
        """By the array's id, for as long as it lives."""
        self._dead: deque[int] = deque()
        """Ids of arrays that died. A weak reference's callback may do no more: it can come at any moment."""
        self._released: deque[_File] = deque()
        """Once for each user that is no more. Whoever says so must not wait for one who waits for it."""
        self._count = 0

    def pickled(self, call: Any) -> tuple[bytes, list[_File]]:
        """Return the pickle of a call, and the files it names for `release`. Raises what pickling raises."""
        buffer = io.BytesIO()
        with self._lock:
            self._clean()
            pickler = _Pickler(buffer, self)
            try:
                pickler.dump(call)
            finally:
                # Its memo would keep alive what has just died.
                pickler.clear_memo()
            for file in pickler.files:
                file.users += 1
        return buffer.getvalue(), pickler.files

    def release(self, files: list[_File]) -> None:
        """A call is done: its files may go when they are looked at again."""
        self._released.extend(files)

    def close(self) -> None:
        """Delete all files. What has mapped one keeps it."""
        with self._lock:
            self._files.clear()
            folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    def is_shared(self, array: Any) -> bool:
        """Whether an array is to go through a file."""
        return (
            self._bytes_min is not None
            and self.mode is not None
            and array.nbytes > self._bytes_min
            and not array.dtype.hasobject
        )

    def file_of(self, array: Any) -> _File:
        """Return the file of an array, which is written when it is asked for first."""
        known = self._files.get(id(array))
        if known is not None and known.array() is array:
            return known
        if self._folder is None:
            prefix = _PREFIX.format(os.geteuid(), os.getpid())
            self._folder = tempfile.TemporaryDirectory(prefix=prefix, dir=self._place)
        self._count += 1
        path = Path(self._folder.name, f"{self._count}.npy")
        sys.modules["numpy"].save(path, array, allow_pickle=False)
        number = id(array)
        made = self._files[number] = _File(path, array, lambda _: self._dead.append(number))
        return made

    def _clean(self) -> None:
        while self._released:
            file = self._released.popleft()
            file.users -= 1
            if file.users == 0 and file.array() is None:
                file.path.unlink(missing_ok=True)
        while self._dead:
            number = self._dead.popleft()
            found = self._files.get(number)
            if found is None or found.array() is not None:
                continue  # Another array lives at that address by now.
            del self._files[number]
            if found.users == 0:
                found.path.unlink(missing_ok=True)


class _Pickler(byvalue.Pickler):
    """Pickles arrays by the names of files, and all else by value."""

    def __init__(self, buffer: io.BytesIO, shared: SharedArrays) -> None:
        super().__init__(buffer, 5)
        self.files: list[_File] = []
        self._shared = shared
        self._numpy = sys.modules.get("numpy")

    def reducer_override(self, obj: Any) -> Any:
        numpy = self._numpy
        if numpy is not None and (type(obj) is numpy.ndarray or type(obj) is numpy.memmap):
            backing = _backing(obj)
            if backing is not None:
                return _reduced_mapped(obj, backing)
            if self._shared.is_shared(obj):
                file = self._shared.file_of(obj)
                if file not in self.files:
                    self.files.append(file)
                return load_shared, (str(file.path), self._shared.mode)
        return super().reducer_override(obj)


def load_shared(path: str, mode: Any) -> Any:
    """Map the file of an array, in a worker."""
    import numpy as np  # noqa: PLC0415  (its threads are settled by then)

    # A plain array: what a job returns of it then travels as one, too.
    return np.asarray(np.load(path, mmap_mode=mode))


def _backing(array: Any) -> Any:
    """Return the mapping that an array is a view of, if others can map the same and see the same."""
    memmap = sys.modules["numpy"].memmap
    while array is not None and not isinstance(getattr(array, "base", None), mmap.mmap):
        array = getattr(array, "base", None)
    # A private copy (mode "c") may differ from its file.
    is_common = isinstance(array, memmap) and array.filename and array.mode != "c" and not array.dtype.hasobject
    return array if is_common else None


def _reduced_mapped(array: Any, backing: Any) -> Any:
    numpy = sys.modules["numpy"]
    bounds = (numpy if numpy.__version__ < "2" else numpy.lib.array_utils).byte_bounds
    low, high = bounds(array)
    start = array.__array_interface__["data"][0]
    at = backing.offset + low - bounds(backing)[0]
    mode = "r+" if backing.mode == "w+" else backing.mode
    span = at, high - low, start - low
    return map_again, (str(backing.filename), mode, span, array.dtype, array.shape, array.strides)


def map_again(
    filename: str, mode: Any, span: tuple[int, int, int], dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Any:
    """Map the part of a file that an array of another process is a view of.

    `span` is where its bytes begin in the file, how many they are, and where among them the first item lies.
    """
    import numpy as np  # noqa: PLC0415

    at, size, first = span
    if not size:
        return np.empty(shape, dtype)
    item = np.memmap(filename, np.uint8, mode, at, size)[first : first + dtype.itemsize].view(dtype)
    return np.lib.stride_tricks.as_strided(item, shape, strides, subok=True)
