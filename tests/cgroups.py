"""Control groups of one's own, in either version of the kernel's interface.

Where a group can be made, and by which files it is limited, is found out here. In version 1 each controller has a
tree of its own. In version 2 there is one tree, a controller has to be handed down by a group's parent, and a group
that hands one down may hold no process itself; whoever is not root may make groups below one that was given to him.
So every parent is tried, the one this process is in first. What was handed down for a test is taken back.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.commands import dead, until

ROOT: Final = Path("/")
_LIMITS: Final = {
    ("pids", 1): ("pids.max",),
    ("pids", 2): ("pids.max",),
    ("memory", 1): ("memory.limit_in_bytes",),
    ("memory", 2): ("memory.max",),
}
_NO_SWAP: Final = "memory.swap.max"


class Group(NamedTuple):
    """A control group that was made."""

    place: Path
    outside: Path
    """The group this process is in: whoever leaves the made one goes there."""
    handed_down: str = ""
    """The controller that the parent hands down since then."""

    def remove(self) -> None:
        """Take it away. Nobody may be in it."""
        self.place.rmdir()
        if self.handed_down:
            (self.place.parent / "cgroup.subtree_control").write_text(f"-{self.handed_down}")


def make_group(controller: str, limit: int, root: Path = ROOT) -> Group:
    """Make a group with a limit. Raises OSError, the last of what stood in the way."""
    refusal = OSError(f"there is no tree with the controller {controller}")
    for parent, outside, version in _parents(controller, root):
        try:
            return _made(parent, outside, version, controller, limit)
        except OSError as error:
            refusal = error
    raise refusal


def _parents(controller: str, root: Path) -> Iterator[tuple[Path, Path, int]]:
    """Give each group below which one may be made, the group this process is in, and the version."""
    groups = root / "sys/fs/cgroup"
    paths: dict[str, str] = {}
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    if controller in paths:
        tree = groups / controller
        yield tree, _inside(tree, paths[controller]), 1
    for tree in (groups, groups / "unified"):
        available = tree / "cgroup.controllers"
        if available.exists() and controller in available.read_text().split():
            outside = _inside(tree, paths.get("", "/"))
            yield from ((each, outside, 2) for each in (outside, *outside.parents) if each.is_relative_to(tree))


def _inside(tree: Path, path: str) -> Path:
    """Return a group by its path, which may be as only the host sees it: then it is the tree itself."""
    place = tree / path.lstrip("/")
    return place if ".." not in place.parts and place.is_dir() else tree


def _made(parent: Path, outside: Path, version: int, controller: str, limit: int) -> Group:
    place, handed_down = parent / f"batchd-test-{os.getpid()}", ""
    control = parent / "cgroup.subtree_control"
    if version == 2 and controller not in control.read_text().split():
        control.write_text(f"+{controller}")
        handed_down = controller
    group = Group(place, outside, handed_down)
    place.mkdir()
    try:
        for name in _LIMITS[controller, version]:
            (place / name).write_text(str(limit))
        if (place / _NO_SWAP).exists():  # Or it takes long until memory is short.
            (place / _NO_SWAP).write_text("0")
    except OSError:
        group.remove()
        raise
    return group


@contextmanager
def cgroup(controller: str, limit: int) -> Iterator[Group]:
    """Have a control group with a limit for a while; everybody in it must die. Skips the test where none can be."""
    try:
        group = make_group(controller, limit)
    except OSError as error:
        pytest.skip(f"no control group with the controller {controller} can be made here: {error}")
    procs = group.place / "cgroup.procs"
    try:
        yield group
    finally:
        until(lambda: all(dead(int(pid)) for pid in procs.read_text().split()), "all are dead")
        until(lambda: not procs.read_text(), "the group is empty")
        with suppress(FileNotFoundError):
            group.remove()
