"""A lock on a directory that lives as long as any process that holds it, however that process ends."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from services.errors import ConfigurationError
from services.telemetry.clock import Clock

_POLL_S = 0.05


class DirectoryLock:
    """An flock on a file; a child that inherits ``descriptor`` keeps it held. A pid left in the file means nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    async def acquire(self, clock: Clock, *, wait_s: float) -> None:
        """Take the lock, waiting for a holder that is just ending.

        Raises:
            ConfigurationError: somebody holds it for longer than ``wait_s``.
        """
        deadline_s = clock.now() + wait_s
        while not self._try():
            if clock.now() >= deadline_s:
                raise ConfigurationError(
                    f"{self._path.parent} is in use by another server (pid {self._pid()}). Stop it, or use another "
                    "data directory."
                )
            await clock.sleep(_POLL_S)
        os.ftruncate(self.descriptor, 0)

    def write_pid(self, pid: int) -> None:
        """Tell others who holds the lock; once, after ``acquire``."""
        os.pwrite(self.descriptor, str(pid).encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

    def _try(self) -> bool:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _pid(self) -> str:
        return os.pread(self.descriptor, 32, 0).decode(errors="replace") or "unknown"
