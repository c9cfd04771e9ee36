"""Restarts, pauses and orders of ``services.cli.supervisor`` with real small processes."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.cli.child import ChildProcess, ProcessSpec
from services.cli.supervisor import Backoff, Exit, Supervisor
from services.errors import Unavailable
from services.telemetry.clock import ManualClock

WAIT_FOR_EVER = "import time\nprint('up', flush=True)\ntime.sleep(3600)"
IGNORE_TERM = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAIT_FOR_EVER


class Cluster:
    """A supervisor whose lines and exits are kept."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.exits: list[Exit] = []
        self.pauses: list[float] = []
        self.supervisor = Supervisor(
            clock=_PauseClock(self.pauses), write_line=self.write_line, on_exit=self.exits.append
        )

    def write_line(self, name: str, line: str) -> None:
        self.lines.append((name, line))

    def child(self, name: str, code: str, **spec: float) -> ChildProcess:
        command = (sys.executable, "-c", code)
        environment = {"PATH": os.environ["PATH"]}
        return ChildProcess(ProcessSpec(name, command, environment, stop_timeout_s=spec.get("stop_timeout_s", 60.0)),
                            self.write_line)  # fmt: skip

    async def start(self, name: str, code: str, **spec: float) -> ChildProcess:
        child = self.child(name, code, **spec)
        await self.supervisor.start(name, child)
        return child

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_said(self, name: str, line: str, times: int = 1) -> None:
        await self.until(lambda: self.lines.count((name, line)) >= times)


class _PauseClock(ManualClock):
    def __init__(self, pauses: list[float]) -> None:
        super().__init__()
        self._pauses = pauses

    async def sleep(self, delay_s: float) -> None:
        self._pauses.append(delay_s)
        await super().sleep(delay_s)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def is_alive(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_pauses_double_to_a_limit_and_start_over_after_a_long_run() -> None:
    backoff = Backoff(first_s=1, longest_s=5, healthy_after_s=60)
    assert [backoff.pause_after(ran_s) for ran_s in (0, 1, 0, 59, 0, 60, 0)] == [1, 2, 4, 5, 5, 1, 2]


async def test_lines_of_both_streams_are_written_whole(cluster: Cluster) -> None:
    code = "import sys\nprint('x' * 200_000, flush=True)\nsys.stderr.write('10%\\r20%\\r\\nlast')\n"
    child = cluster.child("talker", code)
    await child.start()
    assert await child.wait_exit() == 0
    lines = [line for _, line in cluster.lines]
    assert sorted(lines) == sorted(["x" * 200_000, "10%", "20%", "last"])
    assert child.pid is None


async def test_a_command_that_does_not_exist_is_unavailable(cluster: Cluster) -> None:
    child = ChildProcess(ProcessSpec("ghost", ("/nonexistent",)), cluster.write_line)
    with pytest.raises(Unavailable, match="ghost cannot be started"):
        await child.start()
    await child.stop()


async def test_a_child_stays_on_its_cores(cluster: Cluster) -> None:
    core = min(os.sched_getaffinity(0))
    command = (sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))")
    child = ChildProcess(ProcessSpec("pinned", command, {}, (core,)), cluster.write_line)
    await child.start()
    await child.wait_exit()
    assert cluster.lines == [("pinned", str([core]))]


async def test_a_child_that_dies_is_started_again_with_growing_pauses(cluster: Cluster) -> None:
    async with cluster.supervisor:
        await cluster.start("worker", "print('born', flush=True); raise SystemExit(3)")
        await cluster.until(lambda: len(cluster.exits) >= 4)
    assert [ended.count for ended in cluster.exits[:4]] == [1, 2, 3, 4]
    assert {ended.status for ended in cluster.exits} == {3}
    assert cluster.pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert cluster.lines.count(("worker", "born")) >= 4
    assert ("up", "worker ended with status 3; starting it again in 0.5 s (restart 1)") in cluster.lines


async def test_a_killed_child_is_a_new_process_afterwards(cluster: Cluster) -> None:
    async with cluster.supervisor:
        child = await cluster.start("worker", WAIT_FOR_EVER)
        await cluster.until_said("worker", "up")
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await cluster.until_said("worker", "up", times=2)
        assert child.pid not in (None, first)
        assert [str(ended) for ended in cluster.exits] == ["worker was ended by SIGKILL"]
    assert child.pid is None
    assert len(cluster.exits) == 1


async def test_stages_stop_in_order(cluster: Cluster) -> None:
    code = (
        "import os, signal, sys, time\n"
        "def leave(*_):\n    os.write(1, b'left' + bytes([10]))\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\n" + WAIT_FOR_EVER
    )
    names = ["redis", "prefill-0", "decode-0", "decode-1", "gateway"]
    async with cluster.supervisor:
        for name in names:
            await cluster.start(name, code)
        for name in names:
            await cluster.until_said(name, "up")
        await cluster.supervisor.stop([["gateway"], ["decode-0", "decode-1"], ["prefill-0"], ["redis"]])
        left = [name for name, line in cluster.lines if line == "left"]
        assert (left[0], set(left[1:3]), left[3:]) == ("gateway", {"decode-0", "decode-1"}, ["prefill-0", "redis"])
    assert cluster.exits == []


async def test_a_child_that_does_not_listen_is_killed_after_its_deadline(cluster: Cluster) -> None:
    async with cluster.supervisor:
        child = await cluster.start("deaf", IGNORE_TERM, stop_timeout_s=0.2)
        await cluster.until_said("deaf", "up")
        await cluster.supervisor.stop([["deaf"]])
        assert child.pid is None
    assert ("deaf", "killed: it did not end within 0.2 s") in cluster.lines


async def test_kill_ends_everything_at_once_even_during_a_stop(cluster: Cluster) -> None:
    async with cluster.supervisor:
        child = await cluster.start("deaf", IGNORE_TERM, stop_timeout_s=3600)
        await cluster.until_said("deaf", "up")
        stopping = asyncio.create_task(cluster.supervisor.stop([["deaf"]]))
        await asyncio.sleep(0)
        cluster.supervisor.kill()
        async with asyncio.timeout(30):
            await stopping
        assert child.pid is None
    assert cluster.exits == []


async def test_an_error_of_the_body_leaves_unwrapped_and_stops_everything(cluster: Cluster) -> None:
    with pytest.raises(Unavailable, match="enough"):
        await _start_then(cluster, Unavailable("enough"))
    assert ("worker", "up") in cluster.lines
    assert cluster.exits == []


async def _start_then(cluster: Cluster, error: Exception) -> None:
    async with cluster.supervisor:
        await cluster.start("worker", WAIT_FOR_EVER)
        await cluster.until_said("worker", "up")
        raise error


async def test_grandchildren_end_with_their_parent(cluster: Cluster) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        "print(child.pid, flush=True)\n" + WAIT_FOR_EVER
    )
    async with cluster.supervisor:
        await cluster.start("family", code)
        await cluster.until_said("family", "up")
        grandchild = int(cluster.lines[0][1])
        assert is_alive(grandchild)
    await cluster.until(lambda: not is_alive(grandchild))


async def test_a_death_is_seen_although_a_grandchild_holds_the_output(cluster: Cluster) -> None:
    code = (
        "import os, subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        "print('born', flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    async with cluster.supervisor:
        await cluster.start("family", code)
        await cluster.until_said("family", "born", times=2)
    assert str(cluster.exits[0]) == "family was ended by SIGKILL"


async def test_no_child_outlives_a_killed_parent(cluster: Cluster, tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from services.cli.child import ChildProcess, ProcessSpec
async def main():
    child = ChildProcess(ProcessSpec("c", (sys.executable, "-c", {IGNORE_TERM!r})), lambda name, line: None)
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    child_id = int(await parent.stdout.readline())
    assert is_alive(child_id)
    parent.kill()
    await parent.wait()
    await cluster.until(lambda: not is_alive(child_id))


class _Stubborn:
    """A service that cannot be started a second time."""

    def __init__(self) -> None:
        self.num_starts = 0
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return None

    async def start(self) -> None:
        self.num_starts += 1
        if self.num_starts > 1:
            raise Unavailable("no memory")

    async def wait_exit(self) -> int:
        return 0

    async def stop(self) -> None:
        self._ended.set()


async def test_a_restart_that_fails_is_tried_again(cluster: Cluster) -> None:
    service = _Stubborn()
    async with cluster.supervisor:
        await cluster.supervisor.start("redis", service)
        await cluster.until(lambda: service.num_starts >= 3)
    assert [str(ended) for ended in cluster.exits[:2]] == [
        "redis ended with status 0",
        "redis could not be started: no memory",
    ]
