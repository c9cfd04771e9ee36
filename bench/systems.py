"""What is measured: OpenAI-compatible servers, ours and those of peers."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Command, await_answer, free_port, started


@dataclass(frozen=True)
class Endpoint:
    """Where a server answers, and the model to ask it for."""

    base_url: str
    model: str


@dataclass(frozen=True)
class System:
    """A server to measure; unless it runs already, its processes live only while it is measured."""

    name: str
    serve: Callable[[Path], AbstractContextManager[Endpoint]]
    """Starts it, given a folder for its logs, waits until it answers, and stops it; raises ``SystemFailed``."""


def running(text: str) -> System:
    """Read ``NAME=URL,MODEL``: a server that runs already."""
    name, _, rest = text.partition("=")
    base_url, _, model = rest.partition(",")
    if not (name and base_url and model):
        raise argparse.ArgumentTypeError(f"expected NAME=URL,MODEL, got {text!r}")
    return System(name, lambda logs: nullcontext(Endpoint(base_url, model)))


def cluster(name: str, options: Sequence[str], settings: Mapping[str, str]) -> System:
    """Return ``tandem up`` on a free port with a state folder of its own; ``settings`` are environment variables."""

    @contextmanager
    def serve(logs: Path) -> Iterator[Endpoint]:
        base_url, log = f"http://127.0.0.1:{(port := free_port())}", logs / f"{name}.log"
        with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
            up = (sys.executable, "-m", "services.cli", "up", "--data-dir", folder, "--port", str(port))
            with started(Command((*up, "--embed", "0", *options), settings), log) as process:
                await_answer(f"{base_url}/readyz", process, log)
                models = json.loads(await_answer(f"{base_url}/v1/models", process, log))
                yield Endpoint(base_url, models["data"][0]["id"])

    return System(name, serve)
