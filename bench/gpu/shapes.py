"""Llama models with random weights, as folders that a worker can serve."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int = 128_256
    context: int = 8192
    ties_embeddings: bool = False

    @property
    def head_width(self) -> int:
        """Elements of one head."""
        return self.hidden // self.heads

    @property
    def num_read(self) -> int:
        """Weights that one decode step reads: all but the embeddings, of which it reads a row for each token."""
        attention = self.hidden * self.head_width * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.hidden * self.vocab

    @property
    def kv_elements(self) -> int:
        """Elements that the cache holds of one token."""
        return 2 * self.layers * self.kv_heads * self.head_width

    def prefill_flops(self, num_tokens: int) -> float:
        """Return the operations of a prompt: two for each weight and token, and causal attention; one row of logits."""
        weights = self.num_read - self.hidden * self.vocab
        attention = 2 * self.layers * self.heads * self.head_width * num_tokens**2  # two products, half of each masked
        return 2.0 * weights * num_tokens + attention + 2.0 * self.hidden * self.vocab


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, vocab=512, context=512),
    "1b": Shape(2048, 8192, 16, 32, 8, ties_embeddings=True),
    "3b": Shape(3072, 8192, 28, 24, 8, ties_embeddings=True),
    "8b": Shape(4096, 14336, 32, 32, 8),
}


def save(shape: Shape, folder: Path, dtype: torch.dtype) -> Path:
    """Write a model with random weights, and a tokenizer of bytes, to ``folder``; return it."""
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.ties_embeddings,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    names = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", chat_template=CHAT_TEMPLATE)
