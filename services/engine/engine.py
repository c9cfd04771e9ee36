"""The engine: one loop of schedule, run, commit. Single-threaded; knows no network and no time limits."""

from collections.abc import Sequence
from typing import Protocol

import torch

from services.engine.model import Model
from services.engine.output import SampledToken, StepOutput
from services.engine.request import Request
from services.engine.scheduler import Scheduler
from services.errors import TandemError


class Sampler(Protocol):
    """Chooses tokens."""

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> Sequence[SampledToken | TandemError]:
        """Return one token per row of ``logits`` (float32 ``[len(requests), vocab_size]``), or why there is none.

        A pure function of the row, the request's parameters and its token history.
        """


class Engine:
    """Runs requests that the scheduler holds; commands go to ``scheduler`` between two steps."""

    def __init__(self, model: Model, sampler: Sampler, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._model = model
        self._sampler = sampler

    def step(self) -> StepOutput:
        """Run one forward pass for whatever the scheduler chooses."""
        schedule = self.scheduler.next()
        if schedule.is_empty:
            return self.scheduler.commit(schedule, ())
        logits = self._model.forward(schedule.sequences)
        for tail in schedule.partial_tails:
            self._model.zero_tail(tail.block_id, tail.num_tokens)
        tokens = self._sampler.sample(logits, schedule.sampled)
        return self.scheduler.commit(schedule, tokens)
