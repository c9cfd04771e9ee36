"""Child processes that do not outlive the process that started them, however it ends (Linux)."""

import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return what a child runs before its command (``preexec_fn``): the kernel sends it ``number`` at the parent's end.

    Call it in the parent: everything is looked up before the fork. The parent is the thread that forks.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arm() -> None:
        if prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)  # the parent is gone already, or nobody would tell us

    return arm
