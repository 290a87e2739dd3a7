"""Disks of one's own, and ways to fill and to break them."""

import fcntl
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.commands import until

_IMAGE_BYTES: Final = 100 << 20
_EXT4_IOC_SHUTDOWN: Final = 0x8004587D
_NOLOGFLUSH: Final = 2
"""Of that call: not even what the file system has written down for itself reaches the disk."""


@contextmanager
def mounted(place: Path, options: str) -> Iterator[str]:
    """Mount a disk in memory for a while; give why it cannot be done, or ''."""
    place.mkdir(exist_ok=True)
    command = ["/bin/mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    made = subprocess.run(command, capture_output=True, check=False)
    yield made.stderr.decode().strip()
    if made.returncode == 0:
        subprocess.run(["/bin/umount", "--lazy", place], check=True)


def remount(place: Path, options: str) -> None:
    """Change what such a disk allows, as soon as that is possible: who died on it lets go of it a little later."""
    command = ["/bin/mount", "-o", f"remount,{options}", str(place)]
    until(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, f"{place}: {options}")


def full_disk(journal: Path) -> re.Pattern[str]:
    """Return what is told of a full disk under a journal, however much its commit needs."""
    return re.compile(rf"disk full: paused until {re.escape(str(journal))} has \d[\d.]*[MG] free")


def fill(place: Path) -> Path:
    """Take every byte of a disk, also when some were given back since the last time."""
    filler = place / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


@contextmanager
def formatted(image: Path, place: Path, *, is_new: bool = True) -> Iterator[str]:
    """Mount a real file system (ext4, in a file) for a while; give why it cannot be done, or ''.

    It becomes read-only by itself when it finds something wrong, as most root file systems do.
    """
    place.mkdir(exist_ok=True)
    commands = [["/bin/mount", "-o", "loop,errors=remount-ro", str(image), str(place)]]
    if is_new:
        with image.open("wb") as file:
            file.truncate(_IMAGE_BYTES)
        commands.insert(0, ["/sbin/mkfs.ext4", "-q", "-F", str(image)])
    try:
        for command in commands:
            subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        yield f"{error} {getattr(error, 'stderr', b'').decode()}"
        return
    try:
        yield ""
    finally:
        until(lambda: take_off(place), "nobody has anything open on the disk")
        # A test beside this one may have copied the mount into a namespace: mounted again, it would be the same disk.
        until(lambda: not is_attached(image), "the disk is gone")


def is_attached(image: Path) -> bool:
    """Whether some loop device still stands for a file."""
    return bool(subprocess.run(["/sbin/losetup", "-j", image], capture_output=True, check=True).stdout)


def take_off(place: Path) -> bool:
    """Unmount a disk, unless it is still in use: who was killed on it lets go of it a little later."""
    return subprocess.run(["/bin/umount", place], capture_output=True, check=False).returncode == 0


def break_down(place: Path) -> None:
    """Make a formatted disk find something wrong with itself: it is read-only at once, whoever is writing."""
    source = subprocess.run(
        ["/bin/findmnt", "-no", "SOURCE", place], capture_output=True, text=True, check=True
    ).stdout
    (Path("/sys/fs/ext4") / Path(source.strip()).name / "trigger_fs_error").write_text("a test")


def cut_power(place: Path) -> None:
    """Take the power from a formatted disk: what is not on it by now is lost, and nothing gets on it any more."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("=I", _NOLOGFLUSH))
    finally:
        os.close(fd)
