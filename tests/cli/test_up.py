"""The life of a local cluster, with small processes in the place of the services."""

import asyncio
import io
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from services.cli import up
from services.cli.child import ProcessSpec
from services.cli.console import Console
from services.cli.failures import EXIT_FAILED, EXIT_REFUSED
from services.cli.plan import Plan, Preparation, WorkerPlan
from services.cli.settings import UpSettings
from services.cli.state import RunningCluster, find_running
from services.cli.up import LocalCluster, check_port, stop_stages
from services.config import load
from services.errors import ConfigurationError, Unavailable
from services.telemetry.clock import SystemClock

LEAVE_ON_TERM = """
import os, signal, sys, time
def leave(*_):
    os.write(1, b"left" + bytes([10]))  # print is not reentrant, and may be at work
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("serving", flush=True)
time.sleep(3600)
"""
DEAF = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('serving', flush=True)\ntime.sleep(3600)"
)


class _Preparation(Preparation):
    """Prepares by running ``model`` as a program."""

    @property
    def command(self) -> tuple[str, ...]:
        return (sys.executable, "-c", self.model)


class _Probe:
    """Ready as soon as every process said so."""

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._is_ready = is_ready

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def served_model(self, num_workers: int) -> str | None:
        return "smollm2" if self._is_ready() else None


class Harness:
    """A local cluster whose plan is replaced."""

    def __init__(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data_dir = data_dir
        self.output = io.StringIO()
        self.codes = {"prefill-0": LEAVE_ON_TERM, "decode-0": LEAVE_ON_TERM, "gateway": LEAVE_ON_TERM}
        self.prepare = "print('prepared', flush=True)"
        self.port = _free_port()
        monkeypatch.setattr(up, "make_plan", lambda *_, **__: self.plan())
        monkeypatch.setattr(up, "ReadinessProbe", lambda *_: _Probe(self.is_ready))

    def plan(self) -> Plan:
        preparation = _Preparation(self.prepare, "float32", self.data_dir)
        workers = {name: WorkerPlan(self.spec(name), preparation, "a share") for name in ("prefill-0", "decode-0")}
        return Plan(self.spec("gateway"), (workers["prefill-0"],), (workers["decode-0"],))

    def spec(self, name: str) -> ProcessSpec:
        return ProcessSpec(name, (sys.executable, "-c", self.codes[name]), {"PATH": os.environ["PATH"]})

    def is_ready(self) -> bool:
        return self.lines.count("serving") >= 3

    @property
    def lines(self) -> list[str]:
        return [line.split("| ", 1)[1] for line in self.output.getvalue().splitlines()]

    def who(self, text: str) -> list[str]:
        lines = [line.split("| ", 1) for line in self.output.getvalue().splitlines()]
        return [name.strip() for name, line in lines if line == text]

    async def run(self) -> int:
        argv = ["--data-dir", str(self.data_dir), "--port", str(self.port), "--redis-url", "redis://127.0.0.1:1"]
        loaded = load(UpSettings, argv, prog="tandem up", environment={})
        console = Console(self.output, self.data_dir / "logs", use_colour=False)
        try:
            return await LocalCluster(loaded, console, SystemClock()).run()
        finally:
            console.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    yield Harness(tmp_path, monkeypatch)
    assert find_running(tmp_path) is None


async def test_a_cluster_starts_says_so_and_stops_in_order(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    running = asyncio.create_task(harness.run())
    await harness.until(lambda: find_running(harness.data_dir) is not None)
    base_url = f"http://127.0.0.1:{harness.port}"
    assert find_running(harness.data_dir) == RunningCluster(base_url, "redis://127.0.0.1:1", os.getpid())
    text = capsys.readouterr().out
    assert f"Tandem serves smollm2 at {base_url}" in text
    assert f"curl -N {base_url}/v1/chat/completions" in text
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert harness.who("prepared") == ["model"]
    assert harness.who("left") == ["gateway", "decode-0", "prefill-0"]
    assert (harness.data_dir / "secret").stat().st_mode & 0o077 == 0
    assert (harness.data_dir / "logs" / "decode-0.log").read_text() == "serving\nleft\n"


async def test_a_second_signal_kills_at_once(harness: Harness) -> None:
    harness.codes["gateway"] = DEAF
    running = asyncio.create_task(harness.run())
    await harness.until(lambda: find_running(harness.data_dir) is not None)
    os.kill(os.getpid(), signal.SIGINT)
    await harness.until(lambda: any(line.startswith("stopping") for line in harness.lines))
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(30):
        assert await running == EXIT_FAILED
    assert harness.who("left") == []


async def test_a_signal_while_the_model_is_prepared_stops_that(harness: Harness) -> None:
    harness.prepare = LEAVE_ON_TERM
    running = asyncio.create_task(harness.run())
    await harness.until(lambda: harness.who("serving") == ["model"])
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert harness.who("left") == ["model"]
    assert harness.who("serving") == ["model"]


async def test_a_process_that_refuses_its_settings_ends_the_start(harness: Harness) -> None:
    harness.codes["decode-0"] = f"import sys; print('no', flush=True); sys.exit({EXIT_REFUSED})"
    with pytest.raises(Unavailable, match=r"decode-0 ended with status 2 before the cluster was ready; see .*decode-0"):
        await harness.run()


async def test_a_model_that_cannot_be_prepared_ends_the_start(harness: Harness) -> None:
    harness.prepare = "raise SystemExit(1)"
    with pytest.raises(ConfigurationError, match="could not be prepared"):
        await harness.run()
    assert harness.who("serving") == []


def test_a_taken_port_is_refused_with_advice() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 is taken; choose another"):
            check_port("127.0.0.1", port)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        check_port("192.0.2.1", 8000)


def test_who_serves_stops_before_what_it_needs() -> None:
    names = ["redis", "prefill-0", "prefill-1", "decode-0", "gateway", "embed-0"]
    assert stop_stages(names) == [["gateway"], ["decode-0"], ["prefill-0", "prefill-1"], ["embed-0"], ["redis"]]
