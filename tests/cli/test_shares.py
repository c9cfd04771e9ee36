"""How a machine is divided between workers."""

import pytest

from services.cli.shares import MIN_KV_BYTES, CoreShare, divide, share_cores, share_gpus, share_kv_memory
from services.resources import Cpus


def test_two_cores_and_two_workers_get_one_each() -> None:
    assert share_cores(Cpus((0, 1), None), 2, pin=True) == [CoreShare((0,), 1), CoreShare((1,), 1)]


def test_uneven_cores_go_to_the_first_workers() -> None:
    shares = share_cores(Cpus((2, 3, 5, 7, 8), None), 2, pin=True)
    assert shares == [CoreShare((2, 3, 5), 3), CoreShare((7, 8), 2)]


@pytest.mark.parametrize(
    ("cpus", "num_workers", "pin", "threads"),
    [
        (Cpus((0,), None), 2, True, 1),
        (Cpus((0, 1, 2, 3), 2.0), 2, True, 1),
        (Cpus((0, 1, 2, 3), None), 2, False, 2),
    ],
)
def test_workers_float_without_enough_cores_under_a_quota_or_when_told(
    cpus: Cpus, num_workers: int, pin: bool, threads: int
) -> None:
    assert share_cores(cpus, num_workers, pin=pin) == [CoreShare((), threads)] * num_workers


def test_gpus_are_split_or_shared() -> None:
    assert share_gpus(("0", "1", "2", "3"), 2) == [("0", "1"), ("2", "3")]
    assert share_gpus(("0",), 2) == [("0",), ("0",)]
    assert share_gpus(("0", "1"), 3) == [("0",), ("1",), ("0",)]
    assert share_gpus((), 2) == [(), ()]


def test_kv_memory_is_divided_but_never_useless() -> None:
    assert share_kv_memory(8 * 2**30, 0.5, 2) == 2 * 2**30
    assert share_kv_memory(0, 0.5, 2) == MIN_KV_BYTES


def test_groups_hold_every_item_once() -> None:
    assert [list(group) for group in divide(range(7), 3)] == [[0, 1, 2], [3, 4], [5, 6]]
