"""One running ``tandem up``: started as a person does, asked with the openai client, stopped with Ctrl-C."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.e2e.harness import CACHE_DIR
from tests.e2e.processes import REPOSITORY, START_TIMEOUT_S

MODEL = "smollm2"
STOP_TIMEOUT_S = 60.0
RECOVERY_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 60.0
FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass
class Up:
    """One running ``tandem up``."""

    process: "subprocess.Popen[bytes]"
    port: int
    data_dir: Path
    log: Path

    def __post_init__(self) -> None:
        self.caller = self.client()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, api_key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=REQUEST_TIMEOUT_S)

    def chat(self, messages: list[Any] | None = None, **options: Any) -> Any:
        return self.caller.chat.completions.create(
            model=MODEL, messages=messages or FRANCE, **{"temperature": 0, "max_tokens": 24, **options}
        )

    def tandem(self, *arguments: str) -> str:
        """Run a ``tandem`` command against this cluster."""
        command = [sys.executable, "-m", "services.cli", *arguments, "--data-dir", str(self.data_dir)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def workers(self, role: str) -> list[dict[str, Any]]:
        """Return the workers of a role as ``tandem status`` shows them, those with most cached blocks first."""
        listed = [each for each in json.loads(self.tandem("status", "--json")) if each["role"] == role]
        return sorted(listed, key=lambda each: each["ledger"].get("cached", 0), reverse=True)

    def pids(self, pattern: str) -> list[int]:
        """Return the descendants of the cluster whose command line has ``pattern``."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid), "-f", pattern], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + RECOVERY_TIMEOUT_S
        while not condition():
            assert self.process.poll() is None, self.log_tail()
            assert time.monotonic() < deadline_s, f"no {what}; the log ends with:\n{self.log_tail()}"
            time.sleep(0.1)

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


@contextmanager
def running_up(folder: Path, settings: Mapping[str, str], *, num_embed: int = 0, num_pairs: int = 1) -> Iterator[Up]:
    """Start a cluster whose processes get ``settings`` from their environment; ends it when left.

    It has ``num_pairs`` prefill and as many decode workers.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"data-dir": folder / "state", "port": port, "cache-dir": CACHE_DIR, "stop-timeout-s": 30}
    options |= {"embed": num_embed, "prefill": num_pairs, "decode": num_pairs}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    log = folder / "up.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", *arguments],
            cwd=REPOSITORY,
            env={**environment, **settings},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    cluster = Up(process, port, folder / "state", log)
    try:
        _wait_ready(cluster)
        with cluster.caller:
            yield cluster
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def _wait_ready(cluster: Up) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while "curl" not in cluster.log.read_text(errors="replace"):
        assert cluster.process.poll() is None, cluster.log_tail()
        assert time.monotonic() < deadline_s, cluster.log_tail()
        time.sleep(0.2)
