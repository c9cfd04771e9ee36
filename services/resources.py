"""What this machine lets the process use: memory and cores under the cgroup limits, and GPUs.

Everything is read below a root folder, so that tests can hand in another ``/proc``, ``/sys`` and ``/dev``.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_ALLOCATIONS_PER_COLLECTION = 50_000
"""A step of a thousand requests makes some thousand objects, nearly all of which are gone before the next one."""


@dataclass(frozen=True)
class Cpus:
    """The cores that may be used."""

    ids: tuple[int, ...]
    """Cores of the affinity mask, ascending."""
    quota: float | None
    """Cores' worth of time per second that the cgroup grants; None without a limit."""

    @property
    def count(self) -> int:
        """Threads that can run at once: the mask, or the quota where it is smaller; at least one."""
        granted = len(self.ids) if self.quota is None else min(len(self.ids), int(self.quota))
        return max(1, granted)


def collect_garbage_seldom() -> None:
    """Leave what is loaded now out of garbage collections, and collect seldom; call it once, before serving."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS_PER_COLLECTION, *gc.get_threshold()[1:])


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Return the bytes that can still be taken: MemAvailable, or less where a cgroup's limit is nearer."""
    available = [_meminfo_available_bytes(root)]
    for folder in _cgroup_folders(root, "memory"):
        room = _cgroup_room_bytes(folder)
        if room is not None:
            available.append(room)
    return max(0, min(available))


def available_cpus(root: Path = _ROOT) -> Cpus:
    """Return the cores of the affinity mask and the tightest cgroup quota."""
    quotas = [quota for folder in _cgroup_folders(root, "cpu") if (quota := _cgroup_quota(folder)) is not None]
    return Cpus(_allowed_cores(root), min(quotas, default=None))


def available_gpus(root: Path = _ROOT, *, visible: str | None = None) -> tuple[str, ...]:
    """Return the names of the NVIDIA devices; ``visible`` is CUDA_VISIBLE_DEVICES as it was inherited."""
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    devices = [path for path in (root / "dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    return tuple(str(index) for index in range(len(devices)))


def parse_core_list(text: str) -> tuple[int, ...]:
    """Return the numbers of a kernel list such as ``0-3,8``."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cores))


def _meminfo_available_bytes(root: Path) -> int:
    fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _allowed_cores(root: Path) -> tuple[int, ...]:
    for line in (root / "proc/self/status").read_text().splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return parse_core_list(line.split(":", 1)[1])
    return (0,)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the cgroup folders that bind this process, innermost first, of version 2 and of version 1.

    In a container the path may be the host's, which is not mounted: only its ancestors exist then.
    """
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mount if not controllers else _v1_mount(mount, controllers, controller)
        folder = top / path.lstrip("/")
        while True:
            yield folder
            if folder in (top, folder.parent):
                break
            folder = folder.parent


def _v1_mount(mount: Path, controllers: str, controller: str) -> Path:
    joint = mount / controllers
    return joint if joint.exists() else mount / controller


def _cgroup_room_bytes(folder: Path) -> int | None:
    names = ("memory.max", "memory.current", "inactive_file")
    if not (folder / names[0]).exists():
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit, used = _number(folder / names[0]), _number(folder / names[1])
    if limit is None:
        return None
    return limit - (used or 0) + _statistic(folder / "memory.stat", names[2])


def _cgroup_quota(folder: Path) -> float | None:
    version_2 = next(iter(_lines(folder / "cpu.max")), "").split()
    if version_2:
        quota, period = version_2[0], version_2[-1]
        return None if quota == "max" else int(quota) / int(period)
    quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    if quota_us is None or period_us is None or quota_us <= 0:
        return None
    return quota_us / period_us


def _number(path: Path) -> int | None:
    """Return the file's number; None where there is no file or it says ``max``."""
    text = next(iter(_lines(path)), "max").strip()
    return None if text == "max" else int(text)


def _statistic(path: Path, name: str) -> int:
    """Return one line of ``memory.stat``: page cache that the kernel gives back is not really used."""
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
