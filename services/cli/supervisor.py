"""Keeps processes running: restarts what dies, with growing pauses, and stops everything in order."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from services.cli.child import kill_group
from services.errors import TandemError
from services.telemetry.clock import Clock


class Service(Protocol):
    """What can be supervised: ``ChildProcess`` and ``services.cluster.embedded_redis.EmbeddedRedis``."""

    @property
    def pid(self) -> int | None:
        """Its process id, which is also its group's; None while it does not run."""

    async def start(self) -> None:
        """Start it; raises a TandemError if that fails."""

    async def wait_exit(self) -> int:
        """Return its exit status (negative: the signal) once it ended."""

    async def stop(self) -> None:
        """End it within its deadline; idempotent."""


@dataclass
class Backoff:
    """Pauses before restarts: they double while a process keeps dying young."""

    first_s: float = 0.5
    longest_s: float = 30.0
    healthy_after_s: float = 60.0
    """A process that ran this long starts again from the first pause."""
    _next_s: float = 0.0

    def pause_after(self, ran_s: float) -> float:
        """Return the seconds to wait after a run of ``ran_s`` seconds."""
        if ran_s >= self.healthy_after_s or not self._next_s:
            self._next_s = self.first_s
        pause_s = self._next_s
        self._next_s = min(self.longest_s, 2 * pause_s)
        return pause_s


@dataclass(frozen=True)
class Exit:
    """A process ended although nobody had asked it to."""

    name: str
    status: int
    """Exit status; negative: the signal; 1 if it could not be started."""
    count: int
    """How often this process ended so far, this time included."""
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


class Supervisor:
    """Owns services. One that ends by itself is reported to ``on_exit`` and started again after a pause of ``clock``.

    Leaving the context stops what still runs, the service that was started last first.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        write_line: Callable[[str, str], None],
        on_exit: Callable[[Exit], None] | None = None,
    ) -> None:
        self._clock = clock
        self._write_line = write_line
        self._on_exit = on_exit
        self._slots: dict[str, _Slot] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.stop([[name] for name in reversed(self._slots)])
        finally:
            self.kill()
            if isinstance(error, asyncio.CancelledError):
                await self._tasks.__aexit__(kind, error, traceback)
            else:  # an error of the body leaves as it is, not in a group
                await self._tasks.__aexit__(None, None, None)

    @property
    def names(self) -> list[str]:
        """The services that were started, in that order."""
        return list(self._slots)

    async def start(self, name: str, service: Service) -> None:
        """Start a service and keep it running from now on.

        Raises:
            TandemError: the first start failed.
        """
        await service.start()
        slot = _Slot(name, service)
        self._slots[name] = slot
        slot.task = self._tasks.create_task(self._keep_running(slot))

    async def stop(self, stages: Sequence[Sequence[str]]) -> None:
        """Stop the named services for good, one stage after the other, those of one stage together."""
        for stage in stages:
            slots = [self._slots[name] for name in stage if name in self._slots]
            await asyncio.gather(*(slot.stop() for slot in slots))

    def kill(self) -> None:
        """Kill every process that still runs, at once."""
        for slot in self._slots.values():
            slot.kill()

    async def _keep_running(self, slot: "_Slot") -> None:
        backoff = Backoff()
        while True:
            started_s = self._clock.now()
            ended = await self._watch(slot)
            if slot.is_stopping:
                return
            if self._on_exit is not None:
                self._on_exit(ended)
            pause_s = backoff.pause_after(self._clock.now() - started_s)
            self._write_line("up", f"{ended}; starting it again in {pause_s:g} s (restart {ended.count})")
            await self._clock.sleep(pause_s)
            slot.needs_start = True

    async def _watch(self, slot: "_Slot") -> Exit:
        """Start the service if it is not the first time, and return how it ended."""
        try:
            if slot.needs_start:
                await slot.service.start()
            if slot.is_stopping:
                await slot.service.stop()
            status = await slot.service.wait_exit()
            reason = _describe(status)
        except TandemError as error:
            status, reason = 1, f"could not be started: {error}"
        slot.num_exits += 1
        return Exit(slot.name, status, slot.num_exits, reason)


class _Slot:
    """A service's place: it outlives the processes that fill it."""

    def __init__(self, name: str, service: Service) -> None:
        self.name = name
        self.service = service
        self.task: asyncio.Task[None] | None = None
        self.num_exits = 0
        self.needs_start = False
        self.is_stopping = False

    async def stop(self) -> None:
        self.is_stopping = True
        await self.service.stop()
        if self.task is None:
            return
        self.task.cancel()  # it may be in a pause, or in a start
        await asyncio.wait([self.task])
        await self.service.stop()

    def kill(self) -> None:
        self.is_stopping = True
        if (process_id := self.service.pid) is not None:
            kill_group(process_id)


def _describe(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
