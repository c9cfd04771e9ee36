"""Which models cannot run over a paged cache, told from their configuration, before gigabytes are read."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from services.errors import ModelRefused


def refuse_unloadable(folder: Path) -> Any:
    """Return the folder's configuration.

    Raises:
        ModelRefused: unknown, not decoder-only, recurrent, without attention interface, with sparse attention,
            quantised, or without safetensors.
    """
    if not (folder / "config.json").is_file():
        raise ModelRefused(f"{folder} has no config.json: not a Hugging Face model folder")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelRefused(f"the configuration in {folder} is not understood: {error}") from error
    _refuse_kind(config)
    if not any(folder.glob("*.safetensors")):
        raise ModelRefused(f"{folder} has no *.safetensors: convert the weights first")
    return config


def model_class_of(config: Any) -> Any:
    """Return transformers' class for a causal language model of this configuration.

    Raises:
        ModelRefused: there is none.
    """
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise ModelRefused(f"{config.model_type} is no causal language model that transformers knows")
    return found[0] if isinstance(found, tuple) else found


def _refuse_kind(config: Any) -> None:
    name = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelRefused(f"{name} is an encoder-decoder: only decoder-only models run here")
    model_class = model_class_of(config)
    if getattr(model_class, "_is_stateful", False):
        raise ModelRefused(f"{name} has recurrent layers: their state is not paged")
    text_config = config.get_text_config(decoder=True)
    if getattr(text_config, "index_topk", None) is not None:
        raise ModelRefused(f"{name} chooses keys with a sparse indexer, which has a cache of its own")
    if not model_class._can_set_attn_implementation():
        raise ModelRefused(f"{name} has no attention interface in transformers: its attention cannot be paged")
    if getattr(config, "quantization_config", None) is not None:
        raise ModelRefused(f"{name} is a quantised checkpoint: dense weights in safetensors or GGUF are needed")
