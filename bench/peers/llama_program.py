"""``python -I llama_program.py MODEL.gguf`` in llama.cpp's own virtual environment; the work is on standard input."""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from llama_cpp import Llama

WARM_UP_TOKENS = 16


def tokens_per_s(llama: Any, prompt: Sequence[int], max_tokens: int) -> float:
    """Return the speed of a greedy stream, from the first token to the last."""
    stream: Iterator[int] = llama.generate(prompt, temp=0.0, reset=True)
    next(stream)
    began_s = time.perf_counter()
    num_more = sum(1 for _ in islice(stream, max_tokens - 1))
    return num_more / (time.perf_counter() - began_s)


def perplexity(llama: Any, token_ids: Sequence[int]) -> float:
    """Return the perplexity of all tokens but the first, each after those before it."""
    llama.reset()
    llama.eval(token_ids)
    logits = np.asarray(llama.scores[: len(token_ids) - 1], dtype=np.float64)
    highest = logits.max(axis=1)
    log_sums = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    losses = log_sums - logits[np.arange(len(logits)), list(token_ids[1:])]
    return math.exp(losses.mean())


def main() -> None:
    """Print the figures as one line of JSON."""
    path, work = sys.argv[1], json.load(sys.stdin)
    num_threads, text = work["num_threads"], work["text"]
    options = {"model_path": path, "n_ctx": 1024, "n_threads": num_threads, "n_threads_batch": num_threads}
    decoder = Llama(**options, verbose=False)
    tokens_per_s(decoder, work["prompt"], WARM_UP_TOKENS)
    speed = tokens_per_s(decoder, work["prompt"], work["max_tokens"])
    reader = Llama(**options, logits_all=True, n_batch=len(text), verbose=False)
    print(json.dumps({"tokens_per_s": speed, "perplexity": perplexity(reader, text)}))


if __name__ == "__main__":
    main()
