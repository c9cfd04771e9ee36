"""Child processes that do not outlive the process that started them, however it ends (Linux)."""

import os
import shutil
import signal
import sys
from collections.abc import Collection, Sequence

_ARM_AND_BECOME = """
import ctypes, os, sys
number, parent, cores = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if ctypes.CDLL(None).prctl(1, number, 0, 0, 0) != 0 or os.getppid() != parent:
    os._exit(1)
if cores:
    os.sched_setaffinity(0, map(int, cores.split(",")))
os.execv(sys.argv[4], sys.argv[4:])
"""


def dying_with_parent(
    command: Sequence[str], number: signal.Signals, *, cores: Collection[int] = (), path: str | None = None
) -> list[str]:
    """Return a command that arms itself, stays on ``cores`` if there are any, and becomes ``command``.

    ``path`` is where the command is looked for; the PATH of this process if it is None.

    The kernel sends it ``number`` when the thread that starts it ends. What Python would run between fork and exec
    instead (``preexec_fn``) may deadlock or crash in a process with threads, as gRPC has its own.

    Raises:
        FileNotFoundError: there is no such command there.
    """
    program = shutil.which(command[0], path=path)
    if program is None:
        raise FileNotFoundError(f"{command[0]}: no such command")
    where = ",".join(map(str, cores))
    return [sys.executable, "-ISc", _ARM_AND_BECOME, str(number.value), str(os.getpid()), where, program, *command[1:]]
