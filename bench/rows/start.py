"""``tandem up`` with all at hand that it keeps between starts: from its start to the first token of an answer."""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Set
from pathlib import Path

import aiohttp

from bench.load import Client, user
from bench.processes import Command, Process, SystemFailed, free_port, started
from bench.rows.default_model import CACHE_DIR
from services.cli.state import find_running

LOG = Path(__file__).parents[1] / "results" / "start.log"
START_TIMEOUT_S = 900.0
ANSWER_TIMEOUT_S = 30.0
_POLL_S = 0.02
_QUESTION = "What is the capital of France?"


def measure(num_starts: int = 3, log: Path = LOG) -> float:
    """Return the median of so many starts in seconds, after one that may compile kernels and convert the model.

    Raises:
        SystemFailed: a start failed, or one that counts compiled or converted something.
    """
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        first_token_s(Path(folder), log)
        kept = made_at_start()
        times_s = [first_token_s(Path(folder), log) for _ in range(num_starts)]
    if made_at_start() != kept:
        raise SystemFailed(f"compiled or converted again what {CACHE_DIR} should have had: see {log}")
    return statistics.median(times_s)


def made_at_start() -> Set[Path]:
    """Return what first starts leave for later ones: compiled kernels and converted models."""
    return {*CACHE_DIR.glob("kernels/*.so"), *CACHE_DIR.glob("converted/*/*")}


def first_token_s(folder: Path, log: Path) -> float:
    """Start a cluster on a state folder, ask as soon as it says that it is ready, and stop it.

    Returns:
        Seconds from the start of the process to the first token of the streamed answer.

    Raises:
        SystemFailed: it did not start or answer.
    """
    arguments = ("up", "--data-dir", str(folder), "--port", str(free_port()), "--embed", "0")
    began_s = time.perf_counter()
    with started(Command((sys.executable, "-m", "services.cli", *arguments), {}), log) as process:
        base_url = _await_ready(folder, process, log)
        try:
            ready_s = time.perf_counter() - began_s
            return ready_s + asyncio.run(_ask_s(base_url))
        except (aiohttp.ClientError, TimeoutError, RuntimeError) as error:
            raise SystemFailed(f"failed: {type(error).__name__} {error}: see {log}") from error


def _await_ready(folder: Path, process: Process, log: Path) -> str:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while (cluster := find_running(folder)) is None:
        if process.poll() is not None:
            raise SystemFailed(f"did not start: see {log}")
        if time.monotonic() > deadline_s:
            raise SystemFailed(f"did not start within {START_TIMEOUT_S:g} s: see {log}")
        time.sleep(_POLL_S)
    return cluster.base_url


async def _ask_s(base_url: str) -> float:
    """Return the seconds until the first token of a short answer, the question for the model's name included."""
    began_s = time.perf_counter()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)) as session:
        async with session.get(f"{base_url}/v1/models") as response:
            response.raise_for_status()
            model = (await response.json())["data"][0]["id"]
        asked_s = time.perf_counter() - began_s
        return asked_s + (await Client(base_url, model, session).chat(user(_QUESTION), 1)).ttft
