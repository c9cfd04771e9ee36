"""The official SDK's own tests: their source package and a virtual environment for them, kept in a cache folder."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import CACHE_DIR

OPENAI = "openai==3.54.0"
REQUIREMENTS = (
    OPENAI,
    "pytest==9.1.1",
    "pytest-asyncio==1.5.0",
    "pytest-timeout==2.4.0",
    "pytest-xdist==3.8.0",
    "rich>=13.7.1",
    "inline-snapshot>=0.28",
    "aiohttp>=3.13,<4",
    "httpx>=0.28,<1",
)
INSTALL_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Suite:
    """Where the tests are and what runs them."""

    folder: Path
    python: Path


def prepared_suite(cache: Path = CACHE_DIR / "compat") -> Suite:
    """Return the suite, downloaded and installed if it is not there; a preparation that was cut short is repeated."""
    cache.mkdir(parents=True, exist_ok=True)
    return Suite(_source(cache), _environment(cache))


def _source(cache: Path) -> Path:
    folder = cache / OPENAI.replace("==", "-")
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "openai", OPENAI)
            _run(*pip, "-d", scratch)
            [package] = Path(scratch).glob("*.tar.gz")
            with tarfile.open(package) as archive:
                archive.extractall(scratch, filter="data")
            (Path(scratch) / folder.name).rename(folder)
    return folder


def _environment(cache: Path) -> Path:
    folder, wanted = cache / "venv", "\n".join((sys.version, *REQUIREMENTS))
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(folder / "bin/python"), "-m", "pip", "install", "-q", *REQUIREMENTS)
        stamp.write_text(wanted)
    return folder / "bin/python"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S)
