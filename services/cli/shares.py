"""Divides a machine between workers: cores, memory, GPUs. Arithmetic only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.resources import Cpus

MIN_KV_BYTES = 64 * 2**20

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class CoreShare:
    """What one worker gets of the cores."""

    cores: tuple[int, ...]
    """Cores to stay on; empty means wherever the system puts it."""
    threads: int


def share_cores(cpus: Cpus, num_workers: int, *, pin: bool) -> list[CoreShare]:
    """Return each worker's share; earlier workers get the cores that cannot be divided evenly.

    Workers float when there are fewer cores than workers, and under a cgroup quota below the affinity
    mask: the quota counts time, wherever it is spent, so a fixed core would only forbid free ones.
    """
    is_quota_smaller = cpus.count < len(cpus.ids)
    if not pin or is_quota_smaller or len(cpus.ids) < num_workers:
        return [CoreShare((), max(1, cpus.count // num_workers))] * num_workers
    return [CoreShare(tuple(cores), len(cores)) for cores in divide(cpus.ids, num_workers)]


def share_gpus(gpus: Sequence[str], num_workers: int) -> list[tuple[str, ...]]:
    """Return each worker's GPUs: an equal number of its own, or one that it shares."""
    if not gpus:
        return [()] * num_workers
    if len(gpus) < num_workers:
        return [(gpus[index % len(gpus)],) for index in range(num_workers)]
    return [tuple(group) for group in divide(gpus, num_workers)]


def share_kv_memory(available_bytes: int, share: float, num_workers: int) -> int:
    """Return the bytes of one worker's KV pool."""
    return max(MIN_KV_BYTES, int(available_bytes * share) // num_workers)


def divide(items: Sequence[_Item], num_groups: int) -> list[Sequence[_Item]]:
    """Return neighbouring groups whose sizes differ by at most one, larger ones first."""
    size, rest = divmod(len(items), num_groups)
    groups, start = [], 0
    for index in range(num_groups):
        end = start + size + (1 if index < rest else 0)
        groups.append(items[start:end])
        start = end
    return groups
