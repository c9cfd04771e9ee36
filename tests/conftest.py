import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

# Read when gRPC starts. Its handlers run in the child between fork and exec, and abort it when others call meanwhile.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
pytest_plugins = ["tests.jitter"]
CACHE_DIR = Path("~/.cache/tandem").expanduser()
"""Where set-up put the default model; tests convert and download nothing twice."""

LONG_SUITES = {"e2e", "deploy"}
"""Few tests of minutes: they come first, so that no process is alone with one of them at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where the attention conformance suite runs (docs/gpu.md)",
    )
    parser.addoption(
        "--chaos-long",
        action="store_true",
        help="run the long forms only, and nothing that has none: minutes of faults (docs/reliability.md)",
    )
    parser.addoption("--chaos-seconds", type=float, default=600.0, help="how long random chaos lasts")
    parser.addoption("--chaos-step", default="", help="kill only at protocol steps whose name has this in it")
    parser.addoption(
        "--chaos-seed", type=int, default=secrets.randbits(32), help="what the long form of tests/chaos draws from"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "chaos_long: runs only with --chaos-long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--chaos-long"):
        left_out = [item for item in items if not _has_long_form(item)]
    else:
        left_out = [item for item in items if item.get_closest_marker("chaos_long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: not LONG_SUITES.intersection(item.path.relative_to(config.rootpath).parts))


def _has_long_form(item: pytest.Item) -> bool:
    """Whether a test runs with ``--chaos-long`` alone, or longer with it."""
    fixtures = getattr(item, "fixturenames", ())
    return item.get_closest_marker("chaos_long") is not None or "budget" in fixtures or "stored" in fixtures


def pytest_report_header(config: pytest.Config) -> str | None:
    return f"chaos seed: {config.getoption('--chaos-seed')}" if config.getoption("--chaos-long") else None


@pytest.fixture(scope="session")
def device_name(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def kernels() -> Path:
    """The folder with the CPU kernels that workers of this host use too: sources that did not change stay compiled."""
    return CACHE_DIR / "kernels"


@pytest.fixture(scope="session")
def smollm2() -> Callable[[str], Path]:
    """The folder of the default model in a dtype."""
    from services.engine.weights.sources import resolve_model

    def folder(dtype: str) -> Path:
        return resolve_model("smollm2", cache_dir=CACHE_DIR, dtype=dtype, progress=lambda text, share: None).path

    return folder
