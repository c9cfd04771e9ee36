"""Texts cut into chunks that overlap, as OpenAI's static strategy does, and into the sequences to embed.

    tokens   |-------- size --------|
    chunk 0  |== own ==|            |
    chunk 1            |== own ==|            |        own = size - overlap tokens; the last chunk owns all its tokens

A chunk is what a search returns. Its vectors are those of its own tokens, in as many sequences as the model's context
takes, so that each token is embedded once and neighbouring chunks are not found twice for the same words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.gateway.embeddings.text import EmbeddingTokenizer

DEFAULT_SIZE = 800
DEFAULT_OVERLAP = 400


@dataclass(frozen=True)
class Strategy:
    """How a text is cut, in tokens of the embedding model."""

    size: int = DEFAULT_SIZE
    overlap: int = DEFAULT_OVERLAP

    def to_json(self) -> dict[str, Any]:
        """Return the strategy as API objects show it."""
        static = {"max_chunk_size_tokens": self.size, "chunk_overlap_tokens": self.overlap}
        return {"type": "static", "static": static}

    @classmethod
    def of_json(cls, shown: dict[str, Any]) -> "Strategy":
        """Read what ``to_json`` made."""
        return cls(shown["static"]["max_chunk_size_tokens"], shown["static"]["chunk_overlap_tokens"])


@dataclass(frozen=True)
class Chunk:
    """One piece of a text."""

    text: str
    own_length: int
    """Characters from its beginning that no later chunk has; those of all chunks make up the text."""
    sequences: Sequence[Sequence[int]]
    """To be embedded."""

    def to_bytes(self) -> bytes:
        """Return what is stored."""
        return orjson.dumps({"text": self.text, "own": self.own_length})


@dataclass(frozen=True)
class StoredChunk:
    """A chunk as it was read."""

    text: str
    own_length: int

    @classmethod
    def from_bytes(cls, data: bytes) -> "StoredChunk":
        """Read what ``Chunk.to_bytes`` wrote."""
        values = orjson.loads(data)
        return cls(values["text"], values["own"])

    @property
    def own_text(self) -> str:
        """What no later chunk has."""
        return self.text[: self.own_length]


def cut(text: str, strategy: Strategy, tokenizer: EmbeddingTokenizer) -> list[Chunk]:
    """Return the chunks of a text, none if it has no tokens; CPU work."""
    ids, spans = tokenizer.spans(text)
    starts = _starts(len(ids), strategy)
    begins = [0, *(spans[start][0] for start in starts[1:]), len(text)]
    chunks = []
    for number, start in enumerate(starts):
        is_last = number == len(starts) - 1
        end = len(ids) if is_last else start + strategy.size
        end_character = len(text) if end >= len(ids) else spans[end][0]
        own_ids = ids[start:] if is_last else ids[start : starts[number + 1]]
        begin, next_begin = begins[number], begins[number + 1]
        chunks.append(Chunk(text[begin:end_character], next_begin - begin, tokenizer.sequences(own_ids)))
    return chunks


def _starts(num_tokens: int, strategy: Strategy) -> list[int]:
    """Return the first token of each chunk; the last chunk reaches the end."""
    step = strategy.size - strategy.overlap
    starts = list(range(0, max(1, num_tokens - strategy.overlap), step))
    return starts if num_tokens else []
