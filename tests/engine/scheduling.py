"""A scheduler with a model made of plain Python: tokens follow from the history that its blocks really hold."""

from collections.abc import Sequence
from typing import Any

from services.engine.output import FinalBlocks, Ledger, SampledToken, StepOutput
from services.engine.parking import Parking
from services.engine.request import AttemptKey, NewRequest, Request
from services.engine.schedule import Schedule
from services.engine.scheduler import Scheduler, SchedulerConfig
from services.errors import TandemError
from services.kv.hashes import cache_seed
from services.kv.sampling import SamplingParams

SEED = cache_seed("layout", "project")
VOCABULARY = 64
BLOCK = 4


def config(**limits: Any) -> SchedulerConfig:
    defaults = {"num_blocks": 32, "block_size": BLOCK, "context_length": 96, "max_step_tokens": 16}
    return SchedulerConfig(**{"max_mixed_prefill_tokens": 8, "max_running": 8, **defaults, **limits})


def spec(
    request_id: str, prompt: Sequence[int], *, max_tokens: int = 4, export: bool = False, **extra: Any
) -> NewRequest:
    known = {name: extra.pop(name) for name in ("cache_seed", "resumed_output_token_ids") if name in extra}
    params = SamplingParams(seed=0, max_tokens=max_tokens, temperature=0.0, **extra)
    return NewRequest(request_id, tuple(prompt), params, **{"cache_seed": SEED, **known}, export=export)


def attempt(request_id: str, epoch: int = 1) -> AttemptKey:
    return AttemptKey(request_id, epoch)


def next_token(history: Sequence[int]) -> int:
    """Any function of the whole history will do, if it is a different one for each.

    Half of them repeat what was said before, so that guesses come true now and then.
    """
    number = hash((*history, len(history)))
    return history[-len(history) // 2] if number % 2 else number // 2 % VOCABULARY


def alone(prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Return what follows ``prompt`` when nobody else is there."""
    history = list(prompt)
    for _ in range(num_tokens):
        history.append(next_token(history))
    return history[len(prompt) :]


class SlotStore:
    """Host memory beside the slots of a world."""

    def __init__(self, slots: dict[tuple[int, int], tuple[int, ...]], num_slots: int) -> None:
        self.num_slots = num_slots
        self._slots = slots
        self._parked: dict[int, list[tuple[int, ...]]] = {}

    def save(self, block: int, slot: int) -> None:
        self._parked[slot] = [self._slots[block, offset] for offset in range(BLOCK)]

    def load(self, slot: int, block: int) -> None:
        for offset, held in enumerate(self._parked[slot]):
            self._slots[block, offset] = held


class World:
    """A scheduler, the memory that its blocks name, and everything that came out of it.

    A slot of memory holds the whole history up to its token, so that reading a wrong block is noticed.
    """

    def __init__(self, limits: SchedulerConfig, *, num_parked: int = 0) -> None:
        self.slots: dict[tuple[int, int], tuple[int, ...]] = {}
        self.scheduler = Scheduler(limits, Parking(SlotStore(self.slots, num_parked)))
        self.tokens: dict[str, list[int]] = {}
        self.outputs: list[StepOutput] = []
        self.schedules: list[Schedule] = []
        self.failing: dict[str, TandemError] = {}
        """What to say instead of the next token of a request."""

    def step(self) -> StepOutput:
        schedule = self.scheduler.next()
        self.schedules.append(schedule)
        for request, sequence in zip(schedule.requests, schedule.sequences, strict=True):
            self.check(request, sequence.block_table, sequence.start)
            end = sequence.start + len(sequence.new_token_ids)
            history = [*request.token_ids[: sequence.start], *sequence.new_token_ids]
            known = end - sequence.num_guessed
            assert history[:known] == request.token_ids[:known]
            self.write(sequence.block_table, history, sequence.start, end)
        sampled = [
            self.failing.get(request.request_id, SampledToken(self.next_token(request.token_ids)))
            for request in schedule.sampled
        ]
        output = self.scheduler.commit(schedule, sampled)
        for token in output.tokens:
            self.tokens.setdefault(token.request_id, []).append(token.token.token_id)
        self.outputs.append(output)
        check_ledger(self.scheduler)
        return output

    def next_token(self, history: list[int]) -> int:
        """What the model says."""
        return next_token(history)

    def run(self, limit: int = 1000) -> None:
        for _ in range(limit):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("The scheduler does not come to an end.")

    def write(self, table: Sequence[int], token_ids: Sequence[int], start: int, end: int) -> None:
        for position in range(start, end):
            self.slots[table[position // BLOCK], position % BLOCK] = tuple(token_ids[: position + 1])

    def check(self, request: Request, table: Sequence[int], num_tokens: int) -> None:
        for position in range(num_tokens):
            held = self.slots[table[position // BLOCK], position % BLOCK]
            assert held == tuple(request.token_ids[: position + 1]), f"{request.request_id} reads wrong KV"

    def rows(self) -> list[list[tuple[str, int]]]:
        """Return, per step that computed something, the rows of each request."""
        return [
            [
                (request.request_id, len(sequence.new_token_ids))
                for request, sequence in zip(schedule.requests, schedule.sequences, strict=True)
            ]
            for schedule in self.schedules
            if not schedule.is_empty
        ]

    def final_blocks(self, request_id: str) -> list[FinalBlocks]:
        return [final for output in self.outputs for final in output.final_blocks if final.request_id == request_id]


def world(*, num_parked: int = 0, **limits: Any) -> World:
    return World(config(**limits), num_parked=num_parked)


def check_ledger(scheduler: Scheduler) -> Ledger:
    ledger = scheduler.ledger()
    assert ledger.is_balanced
    assert ledger == scheduler.audit()
    return ledger
