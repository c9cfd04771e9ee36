"""``make bench``: start a cluster, drive the workloads, print a table beside what peers reach.

    python -m bench.run [--repeat 3] [--workloads one prefill] [--peer NAME=URL,MODEL ...] [-- tandem up options]

Hosts are noisy: systems are measured in turn within one run, and medians over the repetitions are printed.
A peer is any OpenAI-compatible server that is running already, for example vLLM.
"""

import argparse
import asyncio
import json
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import WORKLOADS, Figures, run

START_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 60.0
RESULTS = Path(__file__).parent / "results"


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
def cluster(options: Sequence[str]) -> Iterator[System]:
    """Run ``tandem up`` on a free port with a state folder of its own."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        command = [sys.executable, "-m", "services.cli", "up", "--data-dir", folder, "--port", str(port)]
        command += ["--embed", "0", *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield System("tandem", f"http://127.0.0.1:{port}", _served_model(port, process))
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


def measure(systems: Sequence[System], workloads: Sequence[str], repeat: int) -> dict[str, list[dict[str, Figures]]]:
    """Run the workloads on each system in turn, ``repeat`` times."""
    figures: dict[str, list[dict[str, Figures]]] = {system.name: [] for system in systems}
    for turn in range(repeat):
        for system in systems:
            print(f"-- {system.name}", flush=True)
            figures[system.name].append(asyncio.run(run(system.base_url, system.model, workloads, turn)))
    return figures


def table(figures: dict[str, list[dict[str, Figures]]]) -> str:
    """Return a Markdown table of medians."""
    names = [*figures]
    lines = ["| workload | figure | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for workload, first in figures[names[0]][0].items():
        for key in (key for key, value in first.items() if isinstance(value, int | float)):
            cells = [f"{statistics.median(turn[workload][key] for turn in figures[name]):g}" for name in names]
            lines.append(f"| {workload} | {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=1, help="rounds over all systems; medians are printed")
    parser.add_argument("--workloads", nargs="*", choices=[*WORKLOADS], default=[*WORKLOADS])
    parser.add_argument("--peer", type=System.parse, action="append", default=[], metavar="NAME=URL,MODEL")
    parser.add_argument("up", nargs="*", help="options of `tandem up`, after --")
    options = parser.parse_args()
    with cluster(options.up) as system:
        figures = measure([system, *options.peer], options.workloads, options.repeat)
    RESULTS.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    (RESULTS / f"{stamp}.json").write_text(json.dumps({"host": platform.platform(), "figures": figures}, indent=1))
    print("\n" + table(figures))


if __name__ == "__main__":
    main()
