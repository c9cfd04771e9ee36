"""llama.cpp on this host, with the model file as it is: one stream, and perplexity on a fixed text."""

import argparse
import json
import subprocess
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bench.catalog import INT4_ROWS, LLAMA, Part
from bench.processes import SystemFailed
from bench.row import Figures
from bench.rows.int4 import Int4Figures, gguf_file, work

TIMEOUT_S = 300.0
PROGRAM = Path(__file__).with_name("llama_program.py")


def part(environment: Path) -> Part:
    """Return the rows that it is measured on."""
    return Part(INT4_ROWS, partial(measure, environment), LLAMA)


def measure(environment: Path) -> Figures:
    """Run it once in its own virtual environment.

    Raises:
        SystemFailed: it did not come to an end.
    """
    command = (str(environment / "bin" / "python"), "-I", str(PROGRAM), str(gguf_file()))
    try:
        done = subprocess.run(
            command, input=json.dumps(asdict(work())), capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise SystemFailed(f"did not end within {TIMEOUT_S:g} s") from error
    except subprocess.CalledProcessError as error:
        raise SystemFailed(f"failed: {(error.stderr.strip().splitlines() or ['no word of why'])[-1]}") from error
    return Int4Figures(**json.loads(done.stdout)).by_row()


def environment(text: str) -> Path:
    """Read the option ``--llama-cpp``: a folder made by ``install_llama_cpp.sh``."""
    if not any(Path(text).glob("lib/python*/site-packages/llama_cpp/__init__.py")):
        raise argparse.ArgumentTypeError(
            f"{text} has no llama-cpp-python: make it with bench/peers/install_llama_cpp.sh {text}"
        )
    return Path(text).absolute()
