"""The loop: any mix of chunks, neighbours, hits, preemption and reservations gives the tokens of one request alone."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.engine import Engine
from services.engine.output import SampledToken, StepOutput
from services.engine.request import AttemptKey, NewRequest, Outcome, Request
from services.engine.schedule import ScheduledSequence
from services.engine.scheduler import Scheduler
from tests.engine.scheduling import BLOCK, check_ledger, config, spec

VOCAB_SIZE = 97


class HistoryModel:
    """Keeps token ids as its KV; its logits depend on every token that the blocks hold, and on their order."""

    def __init__(self, num_blocks: int) -> None:
        self.cache = torch.full((num_blocks, BLOCK), -1, dtype=torch.int64)
        self.batch_sizes: list[int] = []

    def forward(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        for sequence in sequences:
            self.write(sequence.block_table, sequence.start, sequence.new_token_ids)
        self.batch_sizes.append(sum(len(sequence.new_token_ids) for sequence in sequences))
        rows = [self._row(each, unseen) for each in sequences for unseen in reversed(range(each.num_sampled))]
        return torch.stack(rows) if rows else torch.empty(0, VOCAB_SIZE)

    def zero_tail(self, block_id: int, num_tokens: int) -> None:
        self.cache[block_id, num_tokens:] = 0

    def write(self, block_table: Sequence[int], start: int, token_ids: Sequence[int]) -> None:
        positions = torch.arange(start, start + len(token_ids))
        self.cache[torch.tensor(block_table)[positions // BLOCK], positions % BLOCK] = torch.tensor(
            token_ids, dtype=torch.int64
        )

    def _row(self, sequence: ScheduledSequence, num_unseen: int) -> torch.Tensor:
        history = self.cache[torch.tensor(sequence.block_table)].flatten()
        history = history[: sequence.start + len(sequence.new_token_ids) - num_unseen]
        assert (history >= 0).all()
        score = int((history * (torch.arange(len(history)) * 31 + 7)).sum()) * 131 + len(history)
        return torch.nn.functional.one_hot(torch.tensor(score % VOCAB_SIZE), VOCAB_SIZE).float()


class GreedySampler:
    """Takes the most likely token."""

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> list[SampledToken]:
        assert logits.shape == (len(requests), VOCAB_SIZE)
        return [SampledToken(int(token)) for token in logits.argmax(dim=-1)]


class Run:
    """An engine with the tokens that came out of it."""

    def __init__(self, **limits: int | float) -> None:
        torch.set_num_threads(1)
        self.model = HistoryModel(int(limits.get("num_blocks", 32)))
        self.engine = Engine(self.model, GreedySampler(), Scheduler(config(**limits)))
        self.tokens: dict[str, list[int]] = {}
        self.outputs: list[StepOutput] = []

    def step(self) -> None:
        output = self.engine.step()
        self.outputs.append(output)
        for token in output.tokens:
            self.tokens.setdefault(token.request_id, []).append(token.token.token_id)
        check_ledger(self.engine.scheduler)

    def finish(self) -> dict[str, list[int]]:
        while self.engine.scheduler.has_work:
            self.step()
        return self.tokens

    def num(self, name: str) -> int:
        return sum(getattr(output.stats, name) for output in self.outputs)


def alone(request: NewRequest) -> list[int]:
    """Return the tokens of ``request`` in an engine of its own, in one chunk."""
    run = Run(max_step_tokens=96)
    run.engine.scheduler.add(request)
    return run.finish()[request.request_id]


def prompts(number: int, length: int) -> list[int]:
    return [(number * 7 + position * position) % VOCAB_SIZE for position in range(length)]


def test_chunks_and_neighbours_change_no_token() -> None:
    requests = [spec(f"r{n}", prompts(n, 3 + 7 * n), max_tokens=12) for n in range(6)]
    run = Run(num_blocks=64)
    for request in requests:
        run.engine.scheduler.add(request)
        run.step()
    assert run.finish() == {request.request_id: alone(request) for request in requests}
    assert max(run.model.batch_sizes) <= 16


def test_prefix_hits_change_no_token() -> None:
    run = Run()
    requests = [spec(f"r{n}", [*prompts(1, 16), *prompts(n, n)], max_tokens=5) for n in range(5)]
    for request in requests:
        run.engine.scheduler.add(request)
        run.finish()
    assert run.tokens == {request.request_id: alone(request) for request in requests}
    assert run.num("num_cached_tokens") == 16 * 4


def test_preemption_changes_no_token() -> None:
    run = Run(num_blocks=8)
    requests = [spec(f"r{n}", prompts(n, 6), max_tokens=18) for n in range(4)]
    for request in requests:
        run.engine.scheduler.add(request)
    assert run.finish() == {request.request_id: alone(request) for request in requests}
    assert run.num("num_preempted") > 0


def test_a_replay_after_any_number_of_tokens_goes_on_with_the_same_ones() -> None:
    whole = alone(spec("a", prompts(2, 9), max_tokens=10))
    for num_emitted in range(1, 10):
        run = Run()
        emitted = tuple(whole[:num_emitted])
        run.engine.scheduler.add(spec("a", prompts(2, 9), max_tokens=10, resumed_output_token_ids=emitted))
        assert run.finish()["a"] == whole[num_emitted:]


@pytest.mark.parametrize("length", [1, 4, 7, 8, 30])
@pytest.mark.parametrize("num_known", [0, 4, 8])
def test_prefill_there_and_decode_here_change_no_token(length: int, num_known: int) -> None:
    request = spec("a", prompts(3, length), max_tokens=9)
    there, here = Run(max_step_tokens=8), Run()
    here.engine.scheduler.add(spec("known", prompts(3, num_known + 1), max_tokens=1))
    here.finish()
    reservation = here.engine.scheduler.reserve(request, AttemptKey("a", 1))
    prefill = NewRequest("a", request.prompt_token_ids, request.params, request.cache_seed, export=True)
    there.engine.scheduler.add(prefill)
    first = there.finish()["a"][0]
    push(there, here, reservation.block_table, reservation.first_wanted)
    assert here.engine.scheduler.start("a", SampledToken(first)) is None
    assert [first, *here.finish()["a"]] == alone(request)
    assert here.engine.scheduler.ledger().is_idle
    assert there.engine.scheduler.ledger().is_idle


def push(there: Run, here: Run, block_table: Sequence[int], first_wanted: int) -> None:
    """Copy what was exported into what was reserved, as a transport does."""
    num_pushed = 0
    for final in (final for output in there.outputs for final in output.final_blocks):
        for index, block in enumerate(final.block_ids, final.first_block):
            if index >= first_wanted:
                here.model.cache[block_table[index]] = there.model.cache[block]
            num_pushed += 1
        there.engine.scheduler.release(final.hold)
    assert num_pushed == len(block_table)


def test_the_tail_of_an_exported_prompt_is_zeroed() -> None:
    run = Run()
    run.model.cache[:] = 5
    run.engine.scheduler.add(spec("a", prompts(1, 6), export=True))
    run.finish()
    (final,) = run.outputs[-1].final_blocks
    assert run.model.cache[final.block_ids[1]].tolist() == [*prompts(1, 6)[4:], 0, 0]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_mix_gives_the_tokens_of_each_request_alone(data: st.DataObject) -> None:
    run = Run(num_blocks=data.draw(st.integers(10, 24)), max_step_tokens=data.draw(st.integers(4, 24)))
    requests = {}
    for number in range(data.draw(st.integers(1, 8))):
        length, max_tokens = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 12))
        request = spec(f"r{number}", prompts(data.draw(st.integers(0, 1)), length), max_tokens=max_tokens)
        requests[request.request_id] = request
        run.engine.scheduler.add(request)
        for _ in range(data.draw(st.integers(0, 4))):
            run.step()
    assert run.finish() == {request_id: alone(request) for request_id, request in requests.items()}
    assert run.engine.scheduler.ledger().is_idle


@given(num_arrived=st.integers(0, 5))
@settings(max_examples=6, deadline=None)
def test_a_lost_peer_changes_no_token(num_arrived: int) -> None:
    request = spec("a", prompts(4, 18), max_tokens=6)
    run = Run()
    reservation = run.engine.scheduler.reserve(request, AttemptKey("a", 1))
    end = min(num_arrived * BLOCK, 18)
    run.model.write(reservation.block_table, 0, request.prompt_token_ids[:end])
    run.engine.scheduler.run_locally("a", num_arrived=num_arrived, outcome=Outcome.UNKNOWN)
    run.model.cache[list(reservation.block_table[num_arrived:])] = 1  # late bytes
    assert run.finish()["a"] == alone(request)
