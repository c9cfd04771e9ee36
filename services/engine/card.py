"""Builds the model card that a worker publishes."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from services.engine.weights.text_tools import (
    adds_bos_token,
    chat_template,
    load_tokenizer,
    read_json,
    special_tokens,
)
from services.errors import ConfigurationError
from services.kv.card import ModelCard
from services.kv.layout import KVLayout

GENERATION_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


def build_card(folder: Path, *, name: str, layout: KVLayout, context_length: int, created: int = 0) -> ModelCard:
    """Return the card of the model in ``folder``, served as ``name`` with the KV cache of ``layout``.

    Args:
        folder: the model, in Hugging Face format.
        name: what clients call it.
        layout: the KV cache; gives fingerprint, numerics class and block size.
        context_length: most tokens of one sequence here, prompt and output.
        created: seconds since the Unix epoch; must be equal on all workers, since it is part of the digest.

    Raises:
        ConfigurationError: files are missing or damaged.
    """
    tokenizer = load_tokenizer(folder)
    tokens = special_tokens(folder)
    return ModelCard(
        model_name=name,
        fingerprint=layout.fingerprint,
        numerics_class=layout.numerics_class,
        context_length=context_length,
        vocab_size=_vocab_size(folder),
        block_size=layout.block_size,
        block_bytes=layout.block_bytes,
        eos_token_ids=_eos_token_ids(folder, tokenizer, tokens.get("eos_token")),
        tokenizer_json=tokenizer.to_str(),
        chat_template=chat_template(folder),
        special_tokens=tokens,
        add_bos_token=adds_bos_token(folder, tokenizer, tokens.get("bos_token")),
        generation_defaults=_generation_defaults(folder),
        created=created,
    )


def model_context_length(folder: Path) -> int | None:
    """Return the longest sequence that the model was made for, in tokens, or None if its config does not say."""
    config = _text_config(folder)
    return next((int(config[key]) for key in _CONTEXT_KEYS if isinstance(config.get(key), int)), None)


def _text_config(folder: Path) -> dict[str, Any]:
    """Return the config, or the text part of a multimodal one over it."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _vocab_size(folder: Path) -> int:
    size = _text_config(folder).get("vocab_size")
    if not isinstance(size, int):
        raise ConfigurationError(f"{folder / 'config.json'} names no vocab_size.", param="model")
    return size


def _eos_token_ids(folder: Path, tokenizer: Tokenizer, eos_token: str | None) -> tuple[int, ...]:
    """Return the ids that end an answer: the generation config's, else the config's; then the tokenizer's own."""
    ids = _ids(read_json(folder / "generation_config.json").get("eos_token_id"))
    ids = ids or _ids(_text_config(folder).get("eos_token_id"))
    own = tokenizer.token_to_id(eos_token) if eos_token is not None else None
    return tuple(dict.fromkeys([*ids, *_ids(own)]))


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token_id for token_id in values if isinstance(token_id, int)]


def _generation_defaults(folder: Path) -> dict[str, float]:
    config = read_json(folder / "generation_config.json")
    return {key: float(config[key]) for key in GENERATION_DEFAULTS if isinstance(config.get(key), int | float)}
