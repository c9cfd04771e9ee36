import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

# Read when gRPC starts. Its handlers run in the child between fork and exec, and abort it when others call meanwhile.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
CACHE_DIR = Path("~/.cache/tandem").expanduser()
"""Where set-up put the default model; tests convert and download nothing twice."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where the attention conformance suite runs (docs/gpu.md)",
    )
    parser.addoption("--chaos-long", action="store_true", help="run tests/chaos in its long form")
    parser.addoption(
        "--chaos-seed", type=int, default=secrets.randbits(32), help="what the long form of tests/chaos draws from"
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"chaos seed: {config.getoption('--chaos-seed')}" if config.getoption("--chaos-long") else None


@pytest.fixture(scope="session")
def device_name(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def smollm2() -> Callable[[str], Path]:
    """The folder of the default model in a dtype."""
    from services.engine.weights.sources import resolve_model

    def folder(dtype: str) -> Path:
        return resolve_model("smollm2", cache_dir=CACHE_DIR, dtype=dtype, progress=lambda text, share: None).path

    return folder
