"""Worker processes: started in groups of their own, dead with their parent, read through their JSON logs."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.parent_death import dying_with_parent

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT_S = 240.0
"""The first start of a model on a host converts it and compiles kernels."""
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05
_LOG_TAIL_LINES = 25

Event = dict[str, Any]


@dataclass
class WorkerProcess:
    """One ``python -m services.prefill`` or ``services.decode``."""

    role: str
    log: Path
    process: subprocess.Popen[bytes]
    member_id: str = ""
    address: str = ""
    is_stopped: bool = field(default=False, init=False)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def events(self, name: str, **wanted: object) -> list[Event]:
        """Return the logged events of that name whose fields are as wanted."""
        found = [event for event in _read_events(self.log) if event["event"] == name]
        return [event for event in found if all(_fits(event.get(key), value) for key, value in wanted.items())]

    async def wait_event(self, name: str, *, timeout_s: float = 60.0, **wanted: object) -> Event:
        """Return the first such event, once it is there."""
        await self.wait_until(lambda: bool(self.events(name, **wanted)), f"event {name} {wanted}", timeout_s=timeout_s)
        return self.events(name, **wanted)[0]

    async def wait_until(self, condition: Callable[[], bool], what: str, *, timeout_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if not self.is_alive:
                raise AssertionError(f"{self} ended with status {self.process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline_s:
                raise AssertionError(f"{self}: no {what} within {timeout_s} s; its log ends with:\n{self.log_tail()}")
            await asyncio.sleep(POLL_S)

    def log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def kill(self) -> None:
        """SIGKILL for the whole group; returns when the process is gone."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP; returns when the process stands still."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        self.is_stopped = True

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
        self.is_stopped = False

    async def terminate(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, and the exit status; killed when it does not end in time."""
        if self.is_stopped:
            self.resume()
        self._signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self.process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.returncode

    def _signal(self, number: signal.Signals) -> None:
        if self.is_alive:
            os.killpg(self.process.pid, number)

    def __str__(self) -> str:
        return f"{self.role} {self.member_id or self.log.stem}"


def spawn(role: str, options: Mapping[str, object], log: Path) -> WorkerProcess:
    """Start a worker; it dies with this process."""
    arguments = [text for name, value in options.items() for text in _option(name, value)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            dying_with_parent([sys.executable, "-m", f"services.{role}", *arguments], signal.SIGKILL),
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return WorkerProcess(role, log, process)


async def wait_listening(worker: WorkerProcess) -> None:
    """Learn who the worker is and where it listens, once it has a model and has joined the cluster."""
    listening = await worker.wait_event("worker.listening", timeout_s=START_TIMEOUT_S)
    worker.member_id, worker.address = listening["member"], listening["address"]
    await worker.wait_event("member.joined", timeout_s=START_TIMEOUT_S)


def attempt_at(request_id: str) -> re.Pattern[str]:
    """Return what a prefill worker calls an attempt at this request."""
    return re.compile(re.escape(request_id) + "#[0-9a-f]+")


def _fits(value: object, wanted: object) -> bool:
    if isinstance(wanted, re.Pattern):
        return isinstance(value, str) and wanted.fullmatch(value) is not None
    return value == wanted


def _option(name: str, value: object) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    return [option] if value is True else [option, str(value)]


def _read_events(log: Path) -> list[Event]:
    """Return the log's JSON lines; libraries write other lines, and the last one may be unfinished."""
    return [json.loads(line) for line in log.read_text(errors="replace").splitlines() if re.fullmatch(r"\{.*\}", line)]
