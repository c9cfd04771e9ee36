"""What transformers' own ``generate`` answers, and how close its decisions were."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

CLOSE_GAP = 1e-4
"""Below this distance between the two best logits of the reference, float32 rounding may decide."""
_MAX_BATCH = 16
_MAX_PADDING = 1.5
"""Longest over shortest prompt of one batch."""
_PAD_TOKEN_ID = 0


@dataclass(frozen=True)
class Question:
    """A prompt, and how many tokens shall follow it."""

    prompt: Sequence[int]
    num_tokens: int


@dataclass(frozen=True)
class Expected:
    """The reference's greedy tokens, and for each the gap between its two best logits."""

    token_ids: list[int]
    gaps: list[float]


def generate_all(folder: Path, questions: Sequence[Question]) -> list[Expected]:
    """Answer with the model of a folder in float32, on one thread, past any end token; prompts are padded left."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    expected: dict[int, Expected] = {}
    for batch in _batches(questions):
        expected |= zip(batch, _generate(model, [questions[index] for index in batch]), strict=True)
    return [expected[index] for index in range(len(questions))]


def _batches(questions: Sequence[Question]) -> Iterator[list[int]]:
    """Yield indexes of questions of similar length."""
    batch: list[int] = []
    for index in sorted(range(len(questions)), key=lambda index: len(questions[index].prompt)):
        shortest = len(questions[batch[0]].prompt) if batch else 0
        if batch and (len(batch) == _MAX_BATCH or len(questions[index].prompt) > _MAX_PADDING * shortest):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _generate(model: Any, batch: Sequence[Question]) -> list[Expected]:
    longest = max(len(question.prompt) for question in batch)
    ids = torch.full((len(batch), longest), _PAD_TOKEN_ID)
    mask = torch.zeros_like(ids)
    for row, question in enumerate(batch):
        ids[row, longest - len(question.prompt) :] = torch.tensor(question.prompt)
        mask[row, longest - len(question.prompt) :] = 1
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max(question.num_tokens for question in batch),
        do_sample=False,
        pad_token_id=_PAD_TOKEN_ID,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(output.logits, dim=1).topk(2).values  # [batch, num_tokens, 2]
    gaps = best[..., 0] - best[..., 1]
    new_ids = output.sequences[:, longest:]
    return [
        Expected(new_ids[row, : question.num_tokens].tolist(), gaps[row, : question.num_tokens].tolist())
        for row, question in enumerate(batch)
    ]
