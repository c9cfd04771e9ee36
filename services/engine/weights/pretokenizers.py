"""How text is cut before merges apply, where transformers does not know a GGUF file's ``tokenizer.ggml.pre``.

GGUF names a pre-tokenizer instead of carrying it. transformers replaces it for the names it knows and
silently falls back to GPT-2's for all others; that is right for some names and wrong for the rest.
"""

from collections.abc import Mapping
from enum import Enum

from tokenizers import Regex, Tokenizer, pre_tokenizers


class Cure(Enum):
    """What has to be done about a name."""

    NOTHING = "nothing"
    """transformers is right: it knows the name, or GPT-2's pre-tokenizer is meant."""
    MENDED = "mended"
    UNKNOWN = "unknown"
    """Nobody knows; token ids may differ from those the model was trained on."""


GPT2_NAMES = frozenset(
    {
        "gpt-2", "gigachat", "granite-docling", "jais", "jina-de", "jina-es", "jina-v1-en", "jina-v2-code",
        "jina-v2-de", "jina-v2-es", "mpt", "olmo", "phi-2", "roberta-bpe", "trillion",
    }
)  # fmt: skip
"""Names that mean GPT-2's pre-tokenizer."""

SINGLE_DIGIT_NAMES = frozenset(
    {"codeshell", "command-r", "exaone", "mellum2", "minerva-7b", "refact", "smollm", "starcoder"}
)
"""Names that mean GPT-2's after each digit stands alone."""

SAME_AS = {
    "chatglm-bpe": "llama-bpe",
    "glm4": "llama-bpe",
    "grok-2": "qwen2",
    "hunyuan": "qwen2",
    "solar-open": "qwen2",
    "stablelm2": "qwen2",
}
"""Names that mean the same as one that transformers knows."""


def mend(tokenizer: Tokenizer, name: str | None, known_splits: Mapping[str, str]) -> Cure:
    """Give a byte-level BPE ``tokenizer`` the pre-tokenizer that ``name`` means.

    ``known_splits`` are the names that transformers has handled already, with their regular expressions.
    """
    if name in known_splits or name in GPT2_NAMES:
        return Cure.NOTHING
    if name in SINGLE_DIGIT_NAMES:
        _set(tokenizer, pre_tokenizers.Digits(individual_digits=True), use_regex=True)
        return Cure.MENDED
    split = known_splits.get(SAME_AS.get(name or "", ""))
    if split is None:
        return Cure.UNKNOWN
    _set(tokenizer, pre_tokenizers.Split(Regex(split), behavior="isolated"), use_regex=False)
    return Cure.MENDED


def _set(tokenizer: Tokenizer, first: pre_tokenizers.PreTokenizer, *, use_regex: bool) -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
