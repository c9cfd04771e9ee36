"""Suites of tests that others wrote of the API: each with a virtual environment of its own, kept in a cache folder."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.compat.cluster import CompatCluster
from tests.conftest import CACHE_DIR

INSTALL_TIMEOUT_S = 300.0
_CACHE = CACHE_DIR / "compat"


@dataclass(frozen=True)
class Suite:
    """Tests that run in a process of their own against a cluster that is made for them."""

    name: str
    requirements: Sequence[str]
    """What pip installs for them."""
    files: Sequence[str]
    """What is run."""
    expected: Path
    """The list of tests that may fail."""
    cluster: Callable[[Path], AbstractAsyncContextManager[CompatCluster]]
    """Starts what they are run against, with its files in a folder."""
    options: Sequence[str] = ()
    """Further options of pytest."""
    source: str = ""
    """The requirement whose source package has the files; empty if they are in this folder."""

    def prepared(self) -> tuple[Path, Path]:
        """Return the folder of the files and the Python for them; a preparation that was cut short is repeated.

        Raises:
            subprocess.CalledProcessError: pip failed.
        """
        _CACHE.mkdir(parents=True, exist_ok=True)
        folder = _source(self.source) if self.source else Path(__file__).parent
        return folder, _environment(_CACHE / f"venv-{self.name}", self.requirements)


def _source(requirement: str) -> Path:
    name = requirement.partition("==")[0]
    folder = _CACHE / requirement.replace("==", "-")
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
            pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, requirement)
            _run(*pip, "-d", scratch)
            [package] = Path(scratch).glob("*.tar.gz")
            with tarfile.open(package) as archive:
                archive.extractall(scratch, filter="data")
            (Path(scratch) / folder.name).rename(folder)
    return folder


def _environment(folder: Path, requirements: Sequence[str]) -> Path:
    wanted = "\n".join((sys.version, *requirements))
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(folder / "bin/python"), "-m", "pip", "install", "-q", *requirements)
        stamp.write_text(wanted)
    return folder / "bin/python"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S)
