"""GGUF files: converted once into a safetensors folder that is then mapped into memory.

cache_dir/converted/NAME-DTYPE-KEY/      finished, never changed again
cache_dir/converted/.NAME-DTYPE-KEY      being written by the holder of
cache_dir/converted/NAME-DTYPE-KEY.lock  this lock
"""

import hashlib
import json
import shutil
from pathlib import Path

from services.engine.weights.locks import exclusive
from services.engine.weights.progress import Progress
from services.errors import ConfigurationError

CONVERTER_VERSION = 2
"""Part of the cache key; raise it when the same file converts to something else."""

_MAGIC = b"GGUF"
_EDGE_BYTES = 1 << 20
_LOCK_TIMEOUT_S = 3_600.0


def converted_folder(file: Path, *, cache_dir: Path, dtype: str, progress: Progress) -> Path:
    """Return the folder that ``file`` converts to, converting it if that was not done before.

    Raises:
        ConfigurationError: not a readable GGUF file, or one that transformers cannot convert.
    """
    name = f"{file.stem}-{dtype}-{_cache_key(file, dtype)}"
    target = cache_dir / "converted" / name
    if target.is_dir():
        return target
    with exclusive(target.with_name(f"{name}.lock"), timeout_s=_LOCK_TIMEOUT_S, progress=progress):
        if not target.is_dir():
            _convert_into(target, file, dtype=dtype, progress=progress)
    return target


def _convert_into(target: Path, file: Path, *, dtype: str, progress: Progress) -> None:
    # Imported here so that a cached model is found without torch.
    from services.engine.weights.conversion import convert

    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a process that died; the lock is ours
    scratch.mkdir(parents=True)
    try:
        convert(file, scratch, dtype=dtype, progress=progress)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _cache_key(file: Path, dtype: str) -> str:
    """Identify a file that may be too large to read: size, time of change, first and last MiB."""
    try:
        status = file.stat()
        with file.open("rb") as stream:
            head = stream.read(_EDGE_BYTES)
            stream.seek(max(0, status.st_size - _EDGE_BYTES))
            tail = stream.read(_EDGE_BYTES)
    except OSError as error:
        raise ConfigurationError(f"The GGUF file {file} cannot be read: {error.strerror}.", param="model") from error
    if not head.startswith(_MAGIC):
        raise ConfigurationError(f"{file} is not a GGUF file.", param="model")
    parts = json.dumps([CONVERTER_VERSION, dtype, status.st_size, status.st_mtime_ns]).encode()
    return hashlib.sha256(parts + head + tail).hexdigest()[:16]
