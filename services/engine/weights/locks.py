"""A lock between processes of one host, for work that only one of them should do."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.engine.weights.progress import Progress
from services.errors import ConfigurationError

_POLL_S = 0.1


@contextmanager
def exclusive(path: Path, *, timeout_s: float, progress: Progress) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``; the kernel releases it if this process dies.

    Raises:
        ConfigurationError: another process held it for ``timeout_s`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor, path, timeout_s=timeout_s, progress=progress)
        yield
    finally:
        os.close(descriptor)  # releases the lock


def _acquire(descriptor: int, path: Path, *, timeout_s: float, progress: Progress) -> None:
    deadline = time.monotonic() + timeout_s
    has_told = False
    while not _try(descriptor):
        if not has_told:
            progress("waiting for another process that prepares the same model", None)
            has_told = True
        if time.monotonic() >= deadline:
            raise ConfigurationError(
                f"Another process has held {path} for more than {timeout_s:.0f} s. "
                "If none is preparing a model, remove that file and start again."
            )
        time.sleep(_POLL_S)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
