"""Small disks of one's own, and ways to fill them."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    """Change what such a disk allows."""
    subprocess.run(["/bin/mount", "-o", f"remount,{options}", place], check=True)


def fill(place: Path) -> Path:
    """Take every byte of a disk."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler
