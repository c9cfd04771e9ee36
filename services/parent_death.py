"""Child processes that do not outlive the process that started them, however it ends (Linux)."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG = 1
_ARM_AND_BECOME = """
import ctypes, os, sys
number, parent = int(sys.argv[1]), int(sys.argv[2])
if ctypes.CDLL(None).prctl(1, number, 0, 0, 0) != 0 or os.getppid() != parent:
    os._exit(1)
os.execv(sys.argv[3], sys.argv[3:])
"""


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


def dying_with_parent(command: Sequence[str], number: signal.Signals) -> list[str]:
    """Return a command that arms itself and becomes ``command``, whose first word is a path.

    For processes in which C libraries have threads of their own, as gRPC does: what Python runs between fork and exec
    (``preexec_fn``) may crash there.
    """
    return [sys.executable, "-ISc", _ARM_AND_BECOME, str(number.value), str(os.getpid()), *command]
