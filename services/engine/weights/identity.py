"""Which model this is: one text for weights, config and tokenizer, equal on every host that has the same ones."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from services.engine.weights.checksums import RememberedChecksums, published_sha256, sha256_of
from services.errors import ConfigurationError

IDENTITY_VERSION = 1

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
"""The first that exists decides how text becomes ids; ``merges.txt`` goes with ``vocab.json``."""

_VOLATILE_CONFIG_KEYS = frozenset({"transformers_version"})
_MAX_HEADER_BYTES = 100_000_000
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096


def model_identity(folder: Path, *, cache_dir: Path | None = None, verify: bool = False) -> str:
    """Return a hex sha256 that names the model in ``folder``.

    It covers every safetensors file (its name, size, header and sha256), the config and the tokenizer. Where
    the sha256 is neither published with the file nor remembered from an earlier ``verify``, 64 evenly
    spaced samples of the file stand in for it; such an identity differs from that of a host that knows the sha256.

    Args:
        folder: the model, in Hugging Face format.
        cache_dir: where checksums that ``verify`` computes are remembered.
        verify: read all bytes and compare them with what is published.

    Raises:
        ConfigurationError: no or damaged weights.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigurationError(f"{folder} has no .safetensors files.", param="model")
    remembered = RememberedChecksums(cache_dir / "checksums") if cache_dir else None
    if verify:
        for packed in folder.glob("packed/*.safetensors"):  # another form of the same weights: checked, not named
            _content_digest(packed, None, verify=True)
    parts = {
        "version": IDENTITY_VERSION,
        "weights": [[file.name, *_describe(file, remembered, verify=verify)] for file in files],
        "config": _config_digest(folder / "config.json"),
        "tokenizer": _tokenizer_digests(folder),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _describe(file: Path, remembered: RememberedChecksums | None, *, verify: bool) -> tuple[int, str, str]:
    """Return size, header digest, and content digest with its kind."""
    try:
        header = _header_digest(file)
        content = _content_digest(file, remembered, verify=verify)
        return file.stat().st_size, header, content
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.", param="model") from error


def _header_digest(file: Path) -> str:
    """Digest names, types, shapes and places of all tensors; the format starts with the header's size."""
    with file.open("rb") as stream:
        prefix = stream.read(8)
        num_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        header = stream.read(num_bytes) if 0 < num_bytes <= _MAX_HEADER_BYTES else b""
    if not header or len(header) != num_bytes:
        raise ConfigurationError(f"{file} is not a whole safetensors file.", param="model")
    return hashlib.sha256(header).hexdigest()


def _content_digest(file: Path, remembered: RememberedChecksums | None, *, verify: bool) -> str:
    published = published_sha256(file)
    if verify:
        found = sha256_of(file)
        if published is not None and found != published:
            raise ConfigurationError(
                f"{file} is damaged: its sha256 is {found}, published was {published}.", param="model"
            )
        if remembered is not None and published is None:
            remembered.put(file, found)
        return f"sha256:{found}"
    known = published or (remembered.get(file) if remembered is not None else None)
    return f"sha256:{known}" if known else f"samples:{_sample_digest(file)}"


def _sample_digest(file: Path) -> str:
    digest, size = hashlib.sha256(), file.stat().st_size
    with file.open("rb") as stream:
        for index in range(_NUM_SAMPLES):
            stream.seek(max(0, size - _SAMPLE_BYTES) * index // (_NUM_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _config_digest(file: Path) -> str:
    """Digest what the config means, without who wrote it and from where."""
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}.", param="model") from error
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in _VOLATILE_CONFIG_KEYS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _tokenizer_digests(folder: Path) -> dict[str, str]:
    present = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if "tokenizer.json" in present:
        present = ["tokenizer.json"]
    return {name: sha256_of(folder / name) for name in present}
