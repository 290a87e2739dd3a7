"""The journal's folder: where it is, whether it is safe to use, and which journal it holds.

    FOLDER/journal.json   what this folder is: the format's version, the journal's id, the epoch
    FOLDER/batches/       one LMDB environment per batch; nothing here opens them

The one idea: whoever can write this folder can run code as its owner, and LMDB maps its files into memory. So the
folder must belong to the user alone and lie on a local disk, or it is refused before anything is written into it.
Changes to journal.json are made under a lock on the folder itself and by renaming a finished file into place.
"""

import contextlib
import errno
import fcntl
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from batchd import settings
from batchd.errors import JournalError, JournalFull, JournalNewer, JournalUnsafe, NotAJournal, UsageError

META_NAME: Final = "journal.json"
BATCHES_NAME: Final = "batches"
_FORMAT_KEY: Final = "batchd_journal"
_META_BYTES_MAX: Final = 1 << 16
_TEMP_PREFIX: Final = f".{META_NAME}."
_COPY_NAME: Final = f"{_TEMP_PREFIX}copy"
"""Stands in a copy that is not finished; writing journal.json removes it."""
_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  (the file in it is opened with O_EXCL and O_NOFOLLOW, mode 0600)
_REMOTE_FILE_SYSTEMS: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
    | {"ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "wekafs"}
)


def journal_folder(explicit: str | None, environ: Mapping[str, str]) -> Path:
    """Return the journal's absolute folder: `explicit`, else BATCHD_JOURNAL, else the user's state folder.

    >>> journal_folder(None, {"HOME": "/home/ann"})
    PosixPath('/home/ann/.local/state/batchd')
    """
    if explicit == "":
        raise UsageError('The journal\'s folder is empty text; name a folder, such as "--journal ./journal".')
    named = explicit or environ.get("BATCHD_JOURNAL")
    if named:
        in_home = named == "~" or named.startswith("~/")
        return (_home(environ) / named[2:] if in_home else Path(named)).absolute()
    state = Path(environ.get("XDG_STATE_HOME", ""))
    # The XDG specification has relative paths ignored.
    return (state if state.is_absolute() else _home(environ) / ".local/state") / "batchd"


def open_folder(path: Path, *, create: bool = True, mountinfo: Path = _MOUNTINFO) -> Path:
    """Return the real path of the journal at `path`, found safe; a missing one is made if `create` is set."""
    with _reported(path):
        real = _resolved(path)
        _refuse_remote(real, mountinfo)
        if create:
            _make_folder(real)
        with _locked(real) as folder_fd:
            _settle(real, folder_fd, create=create)
    return real


def journal_id(path: Path) -> str:
    """Return the id that the journal at `path` was given when it was made."""
    with _reported(path), _locked(path) as folder_fd:
        return str(_read_meta(path, folder_fd)["id"])


def raise_epoch(path: Path) -> int:
    """Add one to the epoch of the journal at `path`, and return it once it is on disk."""
    with _reported(path), _locked(path) as folder_fd:
        meta = _read_meta(path, folder_fd)
        meta["epoch"] += 1
        _write_meta(folder_fd, meta)
        return int(meta["epoch"])


def recorder_path(folder: Path, name: str) -> Path:
    """Return where the flight recorder of a journal lies: in memory, or in the folder where there is no tmpfs."""
    if _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK):
        return _SHARED_MEMORY / f"batchd-{os.geteuid()}-{name}"
    return folder / "recorder"


def remove_journal(folder: Path) -> None:
    """Delete a journal that no supervisor holds, and the flight recorder that a killed one left, if it can."""
    with contextlib.suppress(JournalError, OSError):
        recorder_path(folder, journal_id(folder)).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def begin_copy(path: Path) -> Path:
    """Make the folder that a copy of a journal is to go into, new or empty, and return its real path.

    Until `finish_copy` it is no journal. One that was begun and not finished is begun again.
    """
    with _reported(path):
        real = _resolved(path)
        _refuse_remote(real, _MOUNTINFO)
        _make_folder(real)
        with _locked(real) as folder_fd:
            names = _names_in(folder_fd)
            _refuse_foreign(real, folder_fd)
            if META_NAME in names:
                raise UsageError(f"{path} holds a journal already; name a new or an empty folder for the copy.")
            _refuse_used(real, names - ({_COPY_NAME, BATCHES_NAME} if _COPY_NAME in names else set()))
            _refuse_writable(real, folder_fd)
            os.close(os.open(_COPY_NAME, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder_fd))
            if BATCHES_NAME in names:
                shutil.rmtree(real / BATCHES_NAME)
            os.mkdir(BATCHES_NAME, 0o700, dir_fd=folder_fd)
    return real


def finish_copy(path: Path, source: Path) -> None:
    """Make the copy at `path` a journal with an id of its own: processes and recorders are known by that."""
    with _reported(source), _locked(source) as source_fd:
        meta = _read_meta(source, source_fd)
    with _reported(path), _locked(path) as folder_fd:
        os.fsync(folder_fd)
        _write_meta(folder_fd, {**meta, "id": secrets.token_hex(8), "copy_of": meta["id"]})


def free_bytes(path: Path) -> int:
    """Return how much a user who is not root may still write to the file system of `path`."""
    usage = os.statvfs(path)
    return usage.f_bavail * usage.f_frsize


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether a failed write means that the disk is full. LMDB reports a short write as EIO: the disk is asked."""
    text = str(error)
    if os.strerror(errno.ENOSPC) in text or os.strerror(errno.EDQUOT) in text:
        return True
    return os.strerror(errno.EIO) in text and free_bytes(folder) < settings.DISK_RESERVE_BYTES


def unwritten(error: BaseException, folder: Path, what: str) -> JournalError:
    """Return the error for what was not written below `folder`: that the disk is full, if that is why."""
    if is_full(error, folder):
        return JournalFull(f"{what}: the disk under {folder} is full: free some space there")
    return JournalError(f"{what}: {error}")


def sync(path: str | Path) -> None:
    """Have what is in a file, or what names are in a folder, on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def disk_bytes(folder: Path) -> int:
    """Return what the files below `folder` occupy. It may be changed meanwhile."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118  (there may be many)
    return found


def _home(environ: Mapping[str, str]) -> Path:
    home = Path(environ.get("HOME", ""))
    if home.is_absolute():
        return home
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:  # A container may run under a number that has no user.
        raise UsageError("There is no home folder to keep the journal in; set BATCHD_JOURNAL or --journal.") from None


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn what the operating system says about `path` into an error with a sentence."""
    try:
        yield
    except FileNotFoundError:
        raise _missing(path) from None
    except NotADirectoryError:
        raise NotAJournal(f"{path} is not a folder; name a folder for the journal.") from None
    except OSError as error:
        why = f"The journal's folder {path} cannot be used: {error.strerror}"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise JournalFull(f"{why}. Free some space there: `batchd prune` needs none for that.") from error
        raise JournalError(f"{why}.") from error


def _missing(path: Path) -> JournalError:
    return JournalError(f"There is no journal at {path}; it is created by the first `batchd run`.")


def _resolved(path: Path) -> Path:
    """Return `path` without symbolic links. One at its end must be the user's own, or root's."""
    if path.is_symlink() and (owner := path.lstat().st_uid) not in {0, os.geteuid()}:
        raise JournalUnsafe(f"{path} is a symbolic link of {_user(owner)}; name the folder itself instead.")
    return Path(os.path.realpath(path))


def _make_folder(path: Path) -> None:
    """Make `path` and the folders above it that are missing, for the user alone, and make that durable."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:  # Another batchd may be making it at this moment.
            pass
        except FileNotFoundError:
            raise JournalError(
                f"The journal's folder {path} cannot be made: nothing can be made in {folder.parent}."
            ) from None
        sync(folder.parent)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Yield a descriptor of the folder at `path` while no other process changes its journal.json."""
    folder_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(folder_fd, fcntl.LOCK_EX)  # Held for a few file operations, and let go by close.
        yield folder_fd
    finally:
        os.close(folder_fd)


def _settle(path: Path, folder_fd: int, *, create: bool) -> None:
    """Find the folder safe and ours, or make it a journal. Refusals come first, and leave it as it was."""
    names = _names_in(folder_fd)
    _refuse_foreign(path, folder_fd)
    if META_NAME not in names:
        _refuse_used(path, names)  # Before any advice to change the mode of a folder that is not ours.
    _refuse_writable(path, folder_fd)
    if META_NAME in names:
        _read_meta(path, folder_fd)
    elif create:
        _write_meta(folder_fd, {_FORMAT_KEY: settings.FORMAT_VERSION, "id": secrets.token_hex(8), "epoch": 0})
    else:
        raise _missing(path)
    if BATCHES_NAME not in names:  # Last: it stands for itself in a folder that is already known as a journal.
        os.mkdir(BATCHES_NAME, 0o700, dir_fd=folder_fd)
        os.fsync(folder_fd)


def _names_in(folder_fd: int) -> set[str]:
    return set(os.listdir(folder_fd))


def _refuse_remote(path: Path, mountinfo: Path) -> None:
    """Refuse a file system that is shared between machines or served by a process: LMDB must not lie there."""
    kind = _file_system(path, mountinfo)
    if kind in _REMOTE_FILE_SYSTEMS or kind.startswith("fuse"):
        raise JournalUnsafe(
            f"{path} lies on a network or FUSE file system ({kind}), where the journal could be damaged; "
            "name a folder on a local disk with --journal or BATCHD_JOURNAL."
        )


def _file_system(path: Path, mountinfo: Path) -> str:
    """Return the type of the file system that holds `path`, or "" where the mounts cannot be read."""
    try:
        lines = mountinfo.read_bytes().splitlines()
    except OSError:
        return ""
    depth, kind = 0, ""
    for line in lines:
        mount, _, source = line.partition(b" - ")
        # Fields: id, parent, device, root, mount point; after the dash the type. Spaces are written as \040.
        point = Path(os.fsdecode(re.sub(rb"\\([0-7]{3})", _unescape, mount.split()[4])))
        if path.is_relative_to(point) and len(point.parts) >= depth:  # The later of two mounts hides the earlier.
            depth, kind = len(point.parts), os.fsdecode(source.split()[0])
    return kind


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])


def _refuse_foreign(path: Path, folder_fd: int) -> None:
    owner = os.fstat(folder_fd).st_uid
    if owner != os.geteuid():
        raise JournalUnsafe(
            f"{path} belongs to {_user(owner)}, who could run code through it as {_user(os.geteuid())}; "
            "name a folder of your own with --journal or BATCHD_JOURNAL."
        )


def _refuse_used(path: Path, names: set[str]) -> None:
    """Refuse a folder that holds something else. What a mount or a start that was cut off leaves does not count."""
    others = sorted(name for name in names - {"lost+found"} if not name.startswith(_TEMP_PREFIX))
    if others:
        raise NotAJournal(
            f"{path} is not a journal: it holds {others[0]!r} and no {META_NAME}; name an empty folder."
        )


def _refuse_writable(path: Path, folder_fd: int) -> None:
    if os.fstat(folder_fd).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise JournalUnsafe(
            f"Other users may write to {path}, and could run code as you through it; "
            f"run `chmod 700 {shlex.quote(str(path))}`, or name another folder with --journal."
        )


def _read_meta(path: Path, folder_fd: int) -> dict[str, Any]:
    """Return journal.json, once its version and then its shape are known to be ours."""
    try:
        meta_fd = os.open(META_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder_fd)
        with open(meta_fd, "rb") as file:
            meta = json.loads(file.read(_META_BYTES_MAX))
        version = meta[_FORMAT_KEY]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path) from error
    if type(version) is int and version > settings.FORMAT_VERSION:
        raise JournalNewer(
            f"The journal at {path} was written by a newer batchd: its format is {version}, and this batchd reads "
            f"formats up to {settings.FORMAT_VERSION}; upgrade batchd, or name another folder with --journal."
        )
    types = {_FORMAT_KEY: int, "id": str, "epoch": int}
    # Exact types, because JSON's true would pass for a number.
    if any(type(meta.get(key)) is not kind for key, kind in types.items()) or version < 1 or meta["epoch"] < 0:
        raise _unreadable(path)
    return dict(meta)


def _unreadable(path: Path) -> NotAJournal:
    return NotAJournal(
        f"{path} is not a journal that batchd can read: its {META_NAME} is damaged or not batchd's; "
        "put the file back as it was, or name another folder with --journal."
    )


def _write_meta(folder_fd: int, meta: dict[str, Any]) -> None:
    """Replace journal.json in one step that survives a power loss. The folder's lock is held."""
    for name in os.listdir(folder_fd):
        if name.startswith(_TEMP_PREFIX):  # Left by a start that was cut off: the lock is ours, so nobody writes it.
            os.unlink(name, dir_fd=folder_fd)
    temp_name = _TEMP_PREFIX + secrets.token_hex(8)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(temp_name, flags, 0o600, dir_fd=folder_fd), "wb") as file:
        file.write(json.dumps(meta).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(temp_name, META_NAME, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    os.fsync(folder_fd)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
