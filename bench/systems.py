"""What is measured: a cluster of our own that is started here, and peers that are running already."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

START_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class System:
    """A server to measure."""

    name: str
    base_url: str
    model: str

    @classmethod
    def parse(cls, text: str) -> "System":
        """Read ``NAME=URL,MODEL``."""
        name, _, rest = text.partition("=")
        base_url, _, model = rest.partition(",")
        if not (name and base_url and model):
            raise argparse.ArgumentTypeError(f"expected NAME=URL,MODEL, got {text!r}")
        return cls(name, base_url, model)


@contextmanager
def cluster(name: str, options: Sequence[str], settings: Mapping[str, str] | None = None) -> Iterator[System]:
    """Run ``tandem up`` on a free port with a state folder of its own; ``settings`` are environment variables."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        command = [sys.executable, "-m", "services.cli", "up", "--data-dir", folder, "--port", str(port)]
        command += ["--embed", "0", *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **(settings or {})})
        try:
            yield System(name, f"http://127.0.0.1:{port}", _served_model(port, process))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(STOP_TIMEOUT_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _served_model(port: int, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit("the cluster did not start; the lines above say why")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as answer:
                model: str = json.load(answer)["data"][0]["id"]
                return model
        except (urllib.error.URLError, ConnectionError, IndexError):
            time.sleep(0.5)
    raise SystemExit(f"the cluster was not ready within {START_TIMEOUT_S:g} s")
