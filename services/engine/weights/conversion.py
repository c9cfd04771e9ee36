"""Turns a GGUF file into a Hugging Face folder, with torch and transformers."""

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.utils import logging as transformers_logging

from services.engine.weights.checksums import CHECKSUMS_FILE
from services.engine.weights.packed import packed_file
from services.engine.weights.packing import pack
from services.engine.weights.pretokenizers import Cure, mend
from services.engine.weights.progress import Progress
from services.errors import ConfigurationError
from services.telemetry.logs import get_logger

_log = get_logger(__name__)

_TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_END_TOKEN_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")

_GENERATION_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def convert(file: Path, folder: Path, *, dtype: str, progress: Progress) -> None:
    """Write ``file`` into the empty ``folder``: config, safetensors in ``dtype``, tokenizer, checksums.

    Beside weights in bfloat16, those that follow exactly from the file's quantised ones are kept packed, too.

    Raises:
        ConfigurationError: transformers cannot read the file.
    """
    with _no_progress_bars():
        try:
            metadata, _ = read_gguf_metadata(str(file))
            progress(f"converting {file.name} to {dtype}: reading weights", 0.0)
            _write_model(file, folder, metadata, dtype=dtype, progress=progress)
            progress(f"converting {file.name} to {dtype}: tokenizer", 0.8)
            _write_tokenizer(file, folder, metadata)
            if dtype == "bfloat16":
                progress(f"converting {file.name} to {dtype}: packed weights", 0.85)
                pack(file, folder)
        except (ValueError, KeyError, NotImplementedError, OSError, RuntimeError, struct.error) as error:
            raise ConfigurationError(
                f"The GGUF file {file} cannot be converted: {error}. "
                "Use the model's safetensors folder instead, or another quantisation.",
                param="model",
            ) from error
    progress(f"converting {file.name} to {dtype}: checksums", 0.9)
    _write_checksums(folder)
    if packed_file(folder).is_file():
        _write_checksums(packed_file(folder).parent)
    progress(f"converted {file.name} to {dtype}", 1.0)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _write_model(file: Path, folder: Path, metadata: dict[str, Any], *, dtype: str, progress: Progress) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        dtype=_TORCH_DTYPES[dtype],
        quantization_config=GgufConfig(dequantize=True),
        local_files_only=True,
    )
    model.generation_config = _generation_config(model.generation_config, metadata)
    progress(f"converting {file.name} to {dtype}: writing safetensors", 0.5)
    model.save_pretrained(str(folder))
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors makes them private, but a cache may be shared between users


def _generation_config(config: GenerationConfig, metadata: dict[str, Any]) -> GenerationConfig:
    """Keep every end token and the authors' sampling advice, which transformers leaves in the file."""
    found = (metadata.get(f"tokenizer.ggml.{key}") for key in _END_TOKEN_KEYS)
    end_tokens = list(dict.fromkeys(token_id for token_id in found if token_id is not None))
    if end_tokens:
        config.eos_token_id = end_tokens if len(end_tokens) > 1 else end_tokens[0]
    for key, name in _GENERATION_KEYS.items():
        if key in metadata:
            setattr(config, name, metadata[key])
            config.do_sample = True
    return config


def _write_tokenizer(file: Path, folder: Path, metadata: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        pre = metadata.get("tokenizer.ggml.pre")
        if mend(tokenizer.backend_tokenizer, pre, GGUF_PRE_TOKENIZER_SPLITS) is Cure.UNKNOWN:
            _log.warning("unknown_pre_tokenizer", file=file.name, pre=pre, consequence="token ids may differ")
    tokenizer.save_pretrained(str(folder))
    _mend_config(folder / "tokenizer_config.json", metadata)


def _mend_config(path: Path, metadata: dict[str, Any]) -> None:
    """Keep the file's own word on BOS, which ``save_pretrained`` drops; drop how the file was opened."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only"):
        config.pop(key, None)
    if (flag := metadata.get("tokenizer.ggml.add_bos_token")) is not None:
        config["add_bos_token"] = bool(flag)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def _write_checksums(folder: Path) -> None:
    checksums = {}
    for weights in sorted(folder.glob("*.safetensors")):
        with weights.open("rb") as stream:
            checksums[weights.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    (folder / CHECKSUMS_FILE).write_text(json.dumps(checksums, indent=2), encoding="utf-8")
