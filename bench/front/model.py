"""The model of the stub engine: its tokenizer, its card, and tokens that say in which step they were made."""

import json
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from services.engine.output import SampledToken
from services.engine.request import Request
from services.engine.schedule import ScheduledSequence
from services.kv.card import ModelCard
from services.kv.layout import KVLayout, Plane

MODEL = "stub"
BLOCK_SIZE = 16
CONTEXT_LENGTH = 8192
NUM_STEPS = 4096
"""After so many steps the same tokens come again."""
_END = "<|end|>"
_PAUSE_S = 0.0002


def word(step: int) -> str:
    """Return the text of the token that step ``step`` gives to every sequence."""
    return f" t{step % NUM_STEPS}."


def tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer with a token for each step."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [_END, *alphabet, *(f"Ġ{word(step).strip()}" for step in range(NUM_STEPS))]
    made = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([_END])
    return made


def first_token_id() -> int:
    """Return the id of the token of step 0; those of the next steps follow."""
    token_id = tokenizer().token_to_id(f"Ġ{word(0).strip()}")
    assert token_id is not None
    return token_id


def layout() -> KVLayout:
    """Return the layout of a cache that nobody fills."""
    return KVLayout("stub", "stub", BLOCK_SIZE, (Plane(0, "key", 1, 4, "float32"),))


def card() -> ModelCard:
    """Return what the gateway knows of the model."""
    text = tokenizer().to_str()
    return ModelCard(
        model_name=MODEL,
        fingerprint=layout().fingerprint,
        numerics_class="stub",
        context_length=CONTEXT_LENGTH,
        vocab_size=len(json.loads(text)["model"]["vocab"]),
        block_size=BLOCK_SIZE,
        block_bytes=layout().block_bytes,
        eos_token_ids=(0,),
        tokenizer_json=text,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


class StubModel:
    """Computes nothing."""

    def forward(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Return nothing that anybody looks at."""
        return torch.empty(0)

    def zero_tail(self, block_id: int, num_tokens: int) -> None:
        """Do nothing."""


class StubSampler:
    """Gives every sequence the token of the step, as soon as what it gave before is taken, at most every interval."""

    def __init__(self, num_unread: Callable[[], int], made_at: np.ndarray, interval_s: float) -> None:
        """``made_at`` takes the time (monotonic seconds) of each step, ``[NUM_STEPS]``."""
        self._num_unread = num_unread
        self._made_at = made_at
        self._interval_s = interval_s
        self._next_s = 0.0
        self._step = 0
        self._first_id = first_token_id()

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> Sequence[SampledToken]:
        """Return one token per request."""
        while self._num_unread() > 0 or time.monotonic() < self._next_s:
            time.sleep(_PAUSE_S)
        place = self._step % NUM_STEPS
        self._step += 1
        self._made_at[place] = now_s = time.monotonic()
        self._next_s = max(self._next_s + self._interval_s, now_s)
        return [SampledToken(self._first_id + place)] * len(requests)
