"""One child process: started with its cores, read line by line, ended by a deadline; it dies with its parent."""

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from services.errors import Unavailable
from services.parent_death import dying_with_parent

_READ_BYTES = 65_536
_LAST_WORDS_S = 2.0
"""How long the output of a dead process is read on, should somebody else hold it open."""


@dataclass(frozen=True)
class ProcessSpec:
    """What to run."""

    name: str
    """Stands in the log; unique within the cluster."""
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """The child's whole environment."""
    cores: tuple[int, ...] = ()
    """Cores to stay on; empty means those of this process."""
    stop_timeout_s: float = 10.0
    """Seconds between SIGTERM and SIGKILL."""


class ChildProcess:
    """Starts, watches and stops one process; may be started again after it ended."""

    def __init__(self, spec: ProcessSpec, write_line: Callable[[str, str], None]) -> None:
        self.name = spec.name
        self._spec = spec
        self._write_line = write_line
        self._process: Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id, also that of its process group; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the process.

        Raises:
            Unavailable: the system cannot run the command.
        """
        read_end, write_end = os.pipe()
        try:
            self._process = await self._spawn(write_end)
        except OSError as error:
            os.close(read_end)
            raise Unavailable(f"{self.name} cannot be started: {error}") from error
        finally:
            os.close(write_end)
        self._reader = asyncio.create_task(self._copy_output(read_end))

    async def wait_exit(self) -> int:
        """Return the exit status (negative: the signal) once the process ended and its output is written.

        Raises:
            Unavailable: it was never started.
        """
        if self._process is None or self._reader is None:
            raise Unavailable(f"{self.name} was not started")
        status = await self._process.wait()
        kill_group(self._process.pid)  # nobody else would end its own children
        await asyncio.wait([self._reader], timeout=_LAST_WORDS_S)
        self._reader.cancel()
        return status

    async def stop(self) -> None:
        """Ask the process to end, kill it when its time is over; idempotent."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._spec.stop_timeout_s):
                await process.wait()
        except TimeoutError:
            self._write_line(self.name, f"killed: it did not end within {self._spec.stop_timeout_s:g} s")
        finally:
            kill_group(process.pid)
        await self.wait_exit()

    async def _spawn(self, output: int) -> Process:
        """Start it with a pipe of ours: asyncio counts a process as running while its own pipes are held open."""
        return await asyncio.create_subprocess_exec(
            *dying_with_parent(
                self._spec.command,
                signal.SIGKILL,
                cores=self._spec.cores,
                path=self._spec.environment.get("PATH"),
            ),
            env=dict(self._spec.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the parent, which stops its children in order
        )

    async def _copy_output(self, read_end: int) -> None:
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(read_end, "rb", buffering=0)
        )
        try:
            async for line in _lines(stream):
                self._write_line(self.name, line)
        finally:
            transport.close()


def kill_group(process_id: int) -> None:
    """Kill a process that leads its group, and every process of that group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, signal.SIGKILL)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield lines of any length; a carriage return ends a line too, as progress bars use it."""
    rest = b""
    while chunk := await stream.read(_READ_BYTES):
        *complete, rest = (rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in complete:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
