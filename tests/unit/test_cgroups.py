"""Where the tests' control groups are made, and by which files: against made-up trees of both versions."""

import os
from pathlib import Path

import pytest

from tests.cgroups import make_group

NAME = f"batchd-test-{os.getpid()}"


def machine(root: Path, membership: str, **trees: str) -> Path:
    """Write down which group this process is in; of each tree of version 2: group=controllers, handed-down ones."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for place, words in trees.items():
        folder = root / "sys/fs/cgroup" / place.replace("_", "/")
        folder.mkdir(parents=True, exist_ok=True)
        available, handed_down = words.split(">")
        (folder / "cgroup.controllers").write_text(available)
        (folder / "cgroup.subtree_control").write_text(handed_down)
    return root / "sys/fs/cgroup"


@pytest.mark.parametrize(("controller", "name"), [("pids", "pids.max"), ("memory", "memory.limit_in_bytes")])
def test_version_1_has_a_tree_for_each_controller(tmp_path: Path, controller: str, name: str) -> None:
    groups = machine(tmp_path, "2:memory:/a\n1:pids:/a\n0::/\n", unified="hugetlb>")
    (groups / controller / "a").mkdir(parents=True)
    group = make_group(controller, 10, tmp_path)
    assert (group.place, group.outside) == (groups / controller / NAME, groups / controller / "a")
    assert {file.name: file.read_text() for file in group.place.iterdir()} == {name: "10"}


@pytest.mark.parametrize(("controller", "name"), [("pids", "pids.max"), ("memory", "memory.max")])
def test_in_version_2_the_controller_is_handed_down(tmp_path: Path, controller: str, name: str) -> None:
    groups = machine(tmp_path, "0::/\n", **{"": "cpu memory pids>cpu"})
    group = make_group(controller, 10, tmp_path)
    assert (group.place, group.outside, group.handed_down) == (groups / NAME, groups, controller)
    assert {file.name: file.read_text() for file in group.place.iterdir()} == {name: "10"}
    assert (groups / "cgroup.subtree_control").read_text() == f"+{controller}"
    (group.place / name).unlink()  # The kernel's files go with their folder.
    group.remove()
    assert (groups / "cgroup.subtree_control").read_text() == f"-{controller}"


def test_what_is_handed_down_already_stays_so(tmp_path: Path) -> None:
    groups = machine(tmp_path, "0::/user_slice\n", user="pids>pids", **{"": "pids>pids"})
    group = make_group("pids", 10, tmp_path)
    (group.place / "pids.max").unlink()
    group.remove()
    assert (groups / "cgroup.subtree_control").read_text() == "pids"


def test_a_group_that_holds_processes_may_refuse_and_its_parent_is_asked(tmp_path: Path) -> None:
    groups = machine(tmp_path, "0::/user/app\n", user_app="pids>", user="pids>pids", **{"": "pids>pids"})
    (groups / "user/app/cgroup.subtree_control").unlink()
    group = make_group("pids", 10, tmp_path)
    assert (group.place, group.outside) == (groups / "user" / NAME, groups / "user/app")


def test_version_2_beside_trees_of_version_1_has_what_these_have_not(tmp_path: Path) -> None:
    groups = machine(tmp_path, "1:memory:/\n0::/../other\n", unified="pids>")
    group = make_group("pids", 10, tmp_path)
    assert (group.place, group.outside) == (groups / "unified" / NAME, groups / "unified")


def test_without_a_tree_it_is_said_which_controller_there_is_none_for(tmp_path: Path) -> None:
    machine(tmp_path, "1:memory:/\n0::/\n", unified="hugetlb>")
    with pytest.raises(OSError, match="no tree with the controller pids"):
        make_group("pids", 10, tmp_path)
