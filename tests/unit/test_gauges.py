"""The gauges: the tightest level of any cgroup tree counts, and a worker that is gone has no gauge."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

import psutil
import pytest

from batchd import settings
from batchd.edge.gauges import Gauges, cpus_usable, memory_limit_bytes, parse_workers, workers_auto
from batchd.errors import UsageError

GIB = 1 << 30


@pytest.fixture(autouse=True)
def affinity_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


def machine_with(root: Path, membership: str, files: Mapping[str, str]) -> Path:
    """Write a fake /proc/self/cgroup and a fake /sys/fs/cgroup under `root`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_cgroups_the_host_and_the_affinity_count(tmp_path: Path) -> None:
    assert cpus_usable(tmp_path) == 8.0
    assert memory_limit_bytes(tmp_path) == psutil.virtual_memory().total
    assert workers_auto(tmp_path) == (8, "8 CPUs usable (affinity 8, no cgroup quota)")


@pytest.mark.covers("P23")
def test_version_2_asks_every_level(tmp_path: Path) -> None:
    root = machine_with(
        tmp_path,
        "0::/slice/job\n",
        {
            "slice/job/cpu.max": "400000 100000\n",
            "slice/cpu.max": "250000 100000\n",
            "slice/job/memory.max": "max\n",
            "slice/memory.max": f"{GIB}\n",
        },
    )
    assert cpus_usable(root) == 2.5
    assert memory_limit_bytes(root) == GIB
    assert workers_auto(root) == (2, "2.5 CPUs usable (affinity 8, cgroup quota 2.5)")


@pytest.mark.covers("P23")
def test_version_1_asks_each_controller_in_its_own_tree(tmp_path: Path) -> None:
    root = machine_with(
        tmp_path,
        "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n0::/\n",
        {
            "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000\n",
            "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            "memory/docker/abc/memory.limit_in_bytes": f"{GIB // 4}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert cpus_usable(root) == 0.5
    assert memory_limit_bytes(root) == GIB // 4
    assert workers_auto(root) == (1, "0.5 CPUs usable (affinity 8, cgroup quota 0.5)")


def test_a_path_that_only_the_host_sees_falls_back_to_the_mount(tmp_path: Path) -> None:
    root = machine_with(
        tmp_path,
        "2:memory:/docker/abc\n1:cpu:/../other\n",
        {
            "memory/memory.limit_in_bytes": f"{GIB}\n",
            "cpu/cpu.cfs_quota_us": "100000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert memory_limit_bytes(root) == GIB
    assert workers_auto(root) == (1, "1 CPU usable (affinity 8, cgroup quota 1)")


@pytest.mark.parametrize("text", ["max 100000\n", "", "garbage", "100000 0\n"])
def test_no_quota_leaves_the_affinity(tmp_path: Path, text: str) -> None:
    assert cpus_usable(machine_with(tmp_path, "0::/\n", {"cpu.max": text})) == 8.0


def test_version_1_says_minus_one_for_no_quota(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert cpus_usable(machine_with(tmp_path, "1:cpu:/\n", files)) == 8.0


def test_memory_used_leaves_out_the_page_cache(tmp_path: Path) -> None:
    stat = f"anon {GIB // 64}\nactive_file {GIB // 64}\ninactive_file {GIB // 64}\n"
    files = {
        "memory.current": f"{3 * GIB // 64}\n",
        "memory.max": f"{GIB // 32}\n",
        "memory.stat": stat,
    }
    gauge = Gauges(machine_with(tmp_path, "0::/\n", files)).machine()
    assert (gauge.memory_used_bytes, gauge.memory_limit_bytes) == (GIB // 64, GIB // 32)


def test_memory_of_version_1_counts_the_whole_tree(tmp_path: Path) -> None:
    files = {
        "memory/memory.usage_in_bytes": f"{3 * GIB // 64}\n",
        "memory/memory.limit_in_bytes": f"{GIB // 16}\n",
        "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 64}\n",
    }
    gauge = Gauges(machine_with(tmp_path, "1:memory:/\n", files)).machine()
    assert (gauge.memory_used_bytes, gauge.memory_limit_bytes) == (2 * GIB // 64, GIB // 16)


def test_the_level_with_the_least_room_is_shown(tmp_path: Path) -> None:
    files = {
        "a/memory.max": f"{GIB // 64}\n",
        "a/memory.current": "0\n",
        "memory.max": f"{GIB // 32}\n",
        "memory.current": f"{GIB // 32 - 5}\n",
    }
    gauge = Gauges(machine_with(tmp_path, "0::/a\n", files)).machine()
    assert (gauge.memory_used_bytes, gauge.memory_limit_bytes) == (GIB // 32 - 5, GIB // 32)


def test_under_a_quota_the_cgroup_tells_the_cpu_used(tmp_path: Path) -> None:
    files = {"cpu.max": "200000 100000\n", "cpu.stat": "usage_usec 1000000\n"}
    gauges = Gauges(machine_with(tmp_path, "0::/\n", files))
    assert gauges.machine().cpu_ratio == 0.0
    # A day's worth of CPU in no time: more than all of it, and still no more than 1.
    (tmp_path / "sys/fs/cgroup/cpu.stat").write_text("usage_usec 86400000000\n")
    gauge = gauges.machine()
    assert (gauge.cpu_ratio, gauge.cpus) == (1.0, 2.0)
    assert gauges.machine().cpu_ratio == 0.0


def test_version_1_counts_cpu_in_its_own_controller(tmp_path: Path) -> None:
    files = {
        "cpu/cpu.cfs_quota_us": "100000\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "cpuacct/cpuacct.usage": "1000000000\n",
    }
    gauges = Gauges(machine_with(tmp_path, "2:cpuacct:/\n1:cpu:/\n", files))
    gauges.machine()
    (tmp_path / "sys/fs/cgroup/cpuacct/cpuacct.usage").write_text("86400000000000\n")
    assert gauges.machine().cpu_ratio == 1.0


def test_the_real_machine_can_be_read() -> None:
    gauge = Gauges().machine()
    assert gauge.memory_used_bytes > 0
    assert gauge.memory_limit_bytes > 0
    assert 0.0 <= gauge.cpu_ratio <= 1.0


def test_a_living_process_has_a_gauge_and_a_dead_one_has_none() -> None:
    gauges = Gauges()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    sampled = gauges.sample([os.getpid(), child.pid])
    assert set(sampled) == {os.getpid(), child.pid}
    assert sampled[os.getpid()].memory_bytes > 0
    assert sampled[os.getpid()].cpu_s > 0

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # Dead, and not yet reaped: a zombie.
    assert set(gauges.sample([os.getpid(), child.pid])) == {os.getpid()}

    child.communicate()
    assert set(gauges.sample([os.getpid(), child.pid])) == {os.getpid()}


def test_processes_that_are_not_asked_for_are_forgotten() -> None:
    gauges = Gauges()
    gauges.sample([os.getpid()])
    gauges.sample([])
    assert gauges._processes == {}


def test_sampling_gets_rarer_when_it_is_dear() -> None:
    gauges = Gauges()
    assert gauges.interval_s() == settings.SAMPLE_S
    gauges.sample([os.getpid()])
    assert gauges.cost_s > 0
    gauges.cost_s = 0.02
    assert gauges.interval_s() == pytest.approx(0.02 / settings.SAMPLE_COST_MAX)


@pytest.mark.parametrize(
    ("text", "cpus", "count"),
    [("8", 2.0, 8), ("75%", 8.0, 6), ("10%", 2.0, 1), ("100%", 2.5, 2), ("auto", 2.5, 2), (" AUTO ", 0.5, 1)],
)
def test_workers_are_a_count_a_share_or_auto(text: str, cpus: float, count: int) -> None:
    assert parse_workers(text, cpus) == count


@pytest.mark.parametrize("text", ["0", "0%", "-1", "many", "", "150%", "1.5"])
def test_other_worker_counts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a number of workers; .* such as"):
        parse_workers(text, cpus=8)


@pytest.mark.covers("P29")
def test_a_process_that_there_is_no_descriptor_to_read_has_no_gauge_this_time() -> None:
    gauges, mine = Gauges(), os.getpid()
    soft, hard = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (0, hard))
    try:
        assert gauges.sample([mine]) == {}
    finally:
        setrlimit(RLIMIT_NOFILE, (soft, hard))
    assert list(gauges.sample([mine])) == [mine]
