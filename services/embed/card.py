"""What gateways have to know of an embedding model."""

from pathlib import Path

from services.engine.weights.identity import model_identity
from services.engine.weights.text_tools import load_tokenizer, read_json
from services.kv.card import ModelCard

NUMERICS_CLASS = "embedding"
_DEFAULT_CONTEXT = 512


def card_of(folder: Path, name: str) -> ModelCard:
    """Return the card of the model in ``folder``; its fingerprint names the space of the vectors.

    Raises:
        ConfigurationError: the folder is damaged.
    """
    config, sentences = read_json(folder / "config.json"), read_json(folder / "sentence_bert_config.json")
    positions = int(config.get("max_position_embeddings", _DEFAULT_CONTEXT))
    tokenizer = load_tokenizer(folder)
    return ModelCard(
        model_name=name,
        fingerprint=model_identity(folder),
        numerics_class=NUMERICS_CLASS,
        context_length=min(positions, int(sentences.get("max_seq_length") or positions)),
        vocab_size=int(config.get("vocab_size", tokenizer.get_vocab_size())),
        block_size=1,
        block_bytes=0,
        eos_token_ids=(),
        tokenizer_json=tokenizer.to_str(),
        chat_template=None,
    )
