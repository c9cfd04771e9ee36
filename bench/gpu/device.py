"""What the device can do by itself: how fast it copies, and how fast it multiplies."""

import time
from collections.abc import Callable

import torch


def best_s(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the fewest seconds until the device had done ``work``, after one round that does not count."""
    times = []
    for _ in range(rounds + 1):
        _synchronize(device)
        began = time.perf_counter()
        work()
        _synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def copy_bytes_per_s(device: torch.device, *, num_bytes: int, rounds: int = 10) -> float:
    """Return bytes read and written per second by a copy of ``num_bytes``."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / best_s(lambda: target.copy_(source), device, rounds)


def matrix_flops_per_s(device: torch.device, dtype: torch.dtype, *, size: int, rounds: int = 10) -> float:
    """Return operations per second of a product of two square matrices."""
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    product = torch.empty(size, size, device=device, dtype=dtype)
    return 2.0 * size**3 / best_s(lambda: torch.matmul(left, right, out=product), device, rounds)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
