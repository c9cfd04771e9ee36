"""A small kubelet: starts the process of a pod, probes it, runs its preStop hook, and ends it within its grace period.

Startup and readiness are asked for ten times as often as the manifest says; everything else is as it stands there.
"""

import asyncio
import json
import os
import re
import signal
import time
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from services.parent_death import dying_with_parent
from tests.deploy.chart import Manifest
from tests.deploy.sandbox import Sandbox

PERIOD_SCALE = 0.1
_LOG_TAIL_LINES = 20


@dataclass(frozen=True)
class Ending:
    """How a pod ended after it was told to; times are of the monotonic clock."""

    told_s: float
    """When the preStop hook was over and SIGTERM was sent; SIGKILL, if the grace period ended before that."""
    ended_s: float
    hook_status: int | None
    """None if the grace period ended before the hook did."""
    status: int
    was_killed: bool
    """The grace period was over."""


class LocalPod:
    """One pod and its process; nothing is restarted."""

    def __init__(self, sandbox: Sandbox, role: str) -> None:
        self.name = sandbox.name
        self.role = role
        self.address = sandbox.address
        self.is_ready = False
        self.became_ready = False
        self.is_terminating = False
        self.failed_liveness = False
        self.ending: Ending | None = None
        self._sandbox = sandbox
        self._log = sandbox.folder / "log"
        self._process: Process | None = None
        self._probing: asyncio.Task[None] | None = None

    @property
    def status(self) -> int | None:
        """The exit status of the process; None while it runs."""
        return self._process.returncode if self._process is not None else None

    async def start(self) -> None:
        """Start the process, and its probes."""
        self._process = await self._spawn(self._sandbox.container["command"])
        self._probing = asyncio.create_task(self._probe())

    async def execute(self, words: list[str]) -> tuple[int, str]:
        """Run a command in the container, like ``kubectl exec``; return its status and output."""
        process = await self._spawn(words, with_output=True)
        try:
            output, _ = await process.communicate()
        finally:
            _kill_group(process)
            await process.communicate()
        return process.returncode or 0, output.decode()

    async def run_to_end(self) -> tuple[int, str]:
        """Run a pod that ends by itself; return its status and output."""
        async with asyncio.timeout(self._sandbox.pod["spec"]["activeDeadlineSeconds"]):
            return await self.execute(self._sandbox.container["command"])

    async def terminate(self) -> Ending:
        """Delete the pod: preStop hook, SIGTERM, and SIGKILL when the grace period is over."""
        process = self._running()
        self.is_terminating = True
        hook = self._sandbox.container["lifecycle"]["preStop"]["exec"]["command"]
        hook_status: int | None = None
        told_s: float | None = None
        was_killed = False
        try:
            async with asyncio.timeout(self._sandbox.pod["spec"]["terminationGracePeriodSeconds"]):
                hook_status, _ = await self.execute(hook)
                told_s = time.monotonic()
                with suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
        except TimeoutError:
            was_killed = True
            told_s = told_s or time.monotonic()
            _kill_group(process)
        status = await process.wait()
        self.ending = Ending(told_s, time.monotonic(), hook_status, status, was_killed)
        await self._stop_probing()
        return self.ending

    async def close(self) -> None:
        """End whatever still runs."""
        await self._stop_probing()
        if self._process is not None:
            _kill_group(self._process)
            await self._process.wait()

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Return the events of that name, or all, that the process logged as JSON."""
        lines = self._log.read_text(errors="replace").splitlines()
        found = [json.loads(line) for line in lines if re.fullmatch(r"\{.*\}", line)]
        return [event for event in found if not name or event["event"] == name]

    def log_tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])

    async def _probe(self) -> None:
        probes: Mapping[str, Manifest] = self._sandbox.container
        if "startupProbe" in probes and not await self._passes(probes["startupProbe"]):
            self.failed_liveness = True
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_readiness(probes["readinessProbe"]))
            tasks.create_task(self._watch_life(probes["livenessProbe"]))

    async def _follow_readiness(self, probe: Manifest) -> None:
        num_failures = 0
        while True:
            num_failures = 0 if await self._succeeds(probe) else num_failures + 1
            if num_failures == 0 or num_failures >= probe["failureThreshold"]:
                self.is_ready = num_failures == 0
                self.became_ready |= self.is_ready
            await asyncio.sleep(probe["periodSeconds"] * PERIOD_SCALE)

    async def _watch_life(self, probe: Manifest) -> None:
        num_failures = 0
        while num_failures < probe["failureThreshold"]:
            num_failures = 0 if self.status is not None or await self._succeeds(probe) else num_failures + 1
            await asyncio.sleep(probe["periodSeconds"])
        self.failed_liveness = True

    async def _passes(self, probe: Manifest) -> bool:
        """Try until the probe succeeds once; return False when its threshold is reached."""
        for _ in range(probe["failureThreshold"]):
            if await self._succeeds(probe):
                return True
            await asyncio.sleep(probe["periodSeconds"] * PERIOD_SCALE)
        return False

    async def _succeeds(self, probe: Manifest) -> bool:
        try:
            async with asyncio.timeout(probe["timeoutSeconds"]):
                return await self._try(probe)
        except (TimeoutError, OSError):
            return False

    async def _try(self, probe: Manifest) -> bool:
        if "exec" in probe:
            status, _ = await self.execute(probe["exec"]["command"])
            return status == 0
        if "tcpSocket" in probe:
            _, writer = await asyncio.open_connection(self.address, self._sandbox.port(probe["tcpSocket"]["port"]))
            writer.close()
            return True
        request = probe["httpGet"]
        return 200 <= await _get(self.address, self._sandbox.port(request["port"]), request["path"]) < 400

    async def _stop_probing(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])

    async def _spawn(self, words: list[str], *, with_output: bool = False) -> Process:
        with self._log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *dying_with_parent(
                    self._sandbox.command(words), signal.SIGKILL, path=self._sandbox.environment["PATH"]
                ),
                env=self._sandbox.environment,
                cwd=self._sandbox.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if with_output else log,
                stderr=log,
                start_new_session=True,
            )

    def _running(self) -> Process:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process


async def _get(address: str, port: int, path: str) -> int:
    try:
        reader, writer = await asyncio.open_connection(address, port)
    except OSError:
        return 0
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
        words = (await reader.readline()).split()
        return int(words[1]) if len(words) > 1 else 0
    except OSError:
        return 0
    finally:
        writer.close()


def _kill_group(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
