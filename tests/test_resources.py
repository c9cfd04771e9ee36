"""Memory, cores and GPUs as faked ``/proc``, ``/sys`` and ``/dev`` show them."""

import gc
from pathlib import Path

import pytest

from services.resources import (
    Cpus,
    available_cpus,
    available_gpus,
    available_memory_bytes,
    collect_garbage_seldom,
    parse_core_list,
)

GIB = 2**30


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "proc/meminfo", f"MemTotal: {32 * GIB // 1024} kB\nMemAvailable: {16 * GIB // 1024} kB")
    put(tmp_path, "proc/self/status", "Name:\tx\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3")
    return tmp_path


def test_without_cgroups_the_machine_is_the_limit(root: Path) -> None:
    assert available_memory_bytes(root) == 16 * GIB
    assert available_cpus(root) == Cpus((0, 1, 2, 3), None)
    assert available_cpus(root).count == 4


def test_the_tightest_ancestor_of_a_version_2_cgroup_binds(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/outer/inner")
    put(root, "sys/fs/cgroup/outer/inner/memory.max", "max")
    put(root, "sys/fs/cgroup/outer/inner/cpu.max", "max 100000")
    put(root, "sys/fs/cgroup/outer/memory.max", str(4 * GIB))
    put(root, "sys/fs/cgroup/outer/memory.current", str(3 * GIB))
    put(root, "sys/fs/cgroup/outer/memory.stat", f"anon 5\ninactive_file {GIB}")
    put(root, "sys/fs/cgroup/outer/cpu.max", "250000 100000")
    assert available_memory_bytes(root) == 2 * GIB
    assert available_cpus(root) == Cpus((0, 1, 2, 3), 2.5)
    assert available_cpus(root).count == 2


def test_a_container_sees_its_own_limit_at_the_mount(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/system.slice/docker-0123.scope")
    put(root, "sys/fs/cgroup/memory.max", str(GIB))
    put(root, "sys/fs/cgroup/memory.current", str(GIB // 4))
    put(root, "sys/fs/cgroup/cpu.max", "50000 100000")
    assert available_memory_bytes(root) == GIB * 3 // 4
    assert available_cpus(root).count == 1


def test_version_1_limits_bind(root: Path) -> None:
    put(root, "proc/self/cgroup", "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1")
    put(root, "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", str(2 * GIB))
    put(root, "sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", str(GIB))
    put(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    put(root, "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us", "300000")
    put(root, "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us", "100000")
    put(root, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1")
    put(root, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    assert available_memory_bytes(root) == GIB
    assert available_cpus(root).quota == 3.0


def test_an_exhausted_cgroup_leaves_nothing_rather_than_less(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/")
    put(root, "sys/fs/cgroup/memory.max", str(GIB))
    put(root, "sys/fs/cgroup/memory.current", str(2 * GIB))
    assert available_memory_bytes(root) == 0


def test_gpus_are_counted_by_device_unless_the_environment_names_them(root: Path) -> None:
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        put(root, f"dev/{name}", "")
    assert available_gpus(root) == ("0", "1")
    assert available_gpus(root, visible="GPU-5, GPU-7") == ("GPU-5", "GPU-7")
    assert available_gpus(root, visible="") == ()


def test_core_lists_are_read_as_the_kernel_writes_them() -> None:
    assert parse_core_list("0-2,5, 7-7") == (0, 1, 2, 5, 7)
    assert parse_core_list("") == ()


def test_this_machine_can_be_read() -> None:
    assert available_memory_bytes() > 0
    assert available_cpus().count >= 1


def test_what_is_loaded_before_serving_is_left_out_of_garbage_collections() -> None:
    threshold = gc.get_threshold()
    try:
        collect_garbage_seldom()

        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] > threshold[0]
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
