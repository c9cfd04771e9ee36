"""CPU time of small pieces of work: what other processes do on the host is left out, as far as that is possible."""

import time
from collections.abc import Callable


def best_cpu_s(work: Callable[[], object], rounds: int) -> float:
    """Return the fewest seconds of this thread's CPU time that ``work`` took in ``rounds`` rounds."""
    return min(cpu_s(work) for _ in range(rounds))


def cpu_s(work: Callable[[], object]) -> float:
    """Return the seconds of this thread's CPU time that ``work`` takes."""
    began = time.thread_time()
    work()
    return time.thread_time() - began
