import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.output import SampledToken
from services.engine.request import NewRequest, Request
from services.engine.sampler import BatchSampler
from services.errors import InternalError
from services.kv.sampling import MAX_SEED, SamplingParams
from tests.engine import sampling_reference

torch.set_num_threads(1)

VOCAB = 37


def request(prompt: list[int] | None = None, output: list[int] | None = None, **params: Any) -> Request:
    values = {"seed": 1, "max_tokens": 100, **params}
    spec = NewRequest(
        request_id="r",
        prompt_token_ids=tuple(prompt or [1]),
        params=SamplingParams(**values),
        cache_seed=b"",
        resumed_output_token_ids=tuple(output or ()),
    )
    return Request.of(spec)


def random_logits(rows: int, vocab: int = VOCAB, *, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def sample(logits: torch.Tensor, requests: list[Request]) -> list[SampledToken]:
    return [token for token in BatchSampler().sample(logits, requests) if isinstance(token, SampledToken)]


def sample_one(logits: list[float], **params: Any) -> int:
    return sample(torch.tensor([logits]), [request(**params)])[0].token_id


def tokens_drawn(logits: list[float], count: int, **params: Any) -> list[int]:
    requests = [request(choice_index=index, **params) for index in range(count)]
    return [token.token_id for token in sample(torch.tensor([logits] * count), requests)]


token_ids = st.integers(0, VOCAB - 1)


@st.composite
def any_request(draw: st.DrawFn) -> Request:
    return request(
        prompt=draw(st.lists(token_ids, min_size=1, max_size=8)),
        output=draw(st.lists(token_ids, max_size=8)),
        seed=draw(st.integers(0, MAX_SEED)),
        choice_index=draw(st.integers(0, 3)),
        temperature=draw(st.sampled_from([0.0, 0.1, 0.7, 1.0, 1.3, 2.0])),
        top_p=draw(st.sampled_from([1e-6, 0.3, 0.5, 0.9, 0.99, 1.0])),
        top_k=draw(st.sampled_from([0, 1, 2, 5, VOCAB, 1000])),
        min_p=draw(st.sampled_from([0.0, 0.02, 0.2, 1.0])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7, -1.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.3, -0.8])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.8])),
        logit_bias=draw(st.dictionaries(token_ids, st.floats(-100, 100, width=32), max_size=3)),
        min_tokens=draw(st.sampled_from([0, 3, 6])),
        stop_token_ids=draw(st.frozensets(token_ids, max_size=3)),
        logprobs=draw(st.sampled_from([None, 0, 1, 5])),
    )


batches = st.lists(any_request(), min_size=1, max_size=6)
tied = st.booleans()


def logits_for(batch: list[Request], seed: int, is_tied: bool) -> torch.Tensor:
    logits = random_logits(len(batch), seed=seed)
    return logits.round() if is_tied else logits


@settings(max_examples=300, deadline=None)
@given(batches, st.integers(0, 2**31), tied)
def test_every_parameter_agrees_with_the_obvious_reference(batch: list[Request], seed: int, is_tied: bool) -> None:
    logits = logits_for(batch, seed, is_tied)
    expected = [sampling_reference.next_token(row, one) for row, one in zip(logits.numpy(), batch, strict=True)]
    assert [token.token_id for token in sample(logits, batch)] == expected


@settings(max_examples=150, deadline=None)
@given(batches, st.integers(0, 2**31), tied, st.randoms(use_true_random=False))
def test_a_row_is_bitwise_the_same_alone_and_anywhere_in_any_batch(
    batch: list[Request], seed: int, is_tied: bool, random: Any
) -> None:
    logits = logits_for(batch, seed, is_tied)
    alone = [sample(logits[row : row + 1].clone(), [one])[0] for row, one in enumerate(batch)]
    order = list(range(len(batch)))
    random.shuffle(order)
    assert sample(logits, batch) == alone
    assert sample(logits[order], [batch[row] for row in order]) == [alone[row] for row in order]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocab", [1_003, 49_152])
def test_rows_of_real_width_do_not_depend_on_the_batch(vocab: int, threads: int) -> None:
    rows = 21
    logits = random_logits(rows, vocab, seed=5, scale=2.0)
    top_ps, top_ks = [1.0, 0.9, 0.999], [0, 40]
    batch = [
        request(seed=row, temperature=0.5 + row / 20, top_p=top_ps[row % 3], top_k=top_ks[row % 2], logprobs=3)
        for row in range(rows)
    ]
    torch.set_num_threads(threads)
    try:
        alone = [sample(logits[row : row + 1].clone(), [batch[row]])[0] for row in range(rows)]
        assert sample(logits, batch) == alone
        assert sample(logits[3:].clone(), batch[3:]) == alone[3:]
        assert sample(logits.flip(0), batch[::-1]) == alone[::-1]
    finally:
        torch.set_num_threads(1)


@settings(max_examples=100, deadline=None)
@given(any_request(), st.integers(1, 10), st.integers(0, 10), st.integers(0, 2**31))
def test_a_resumed_sequence_continues_as_the_undisturbed_one(one: Request, steps: int, cut: int, seed: int) -> None:
    logits = random_logits(steps, seed=seed)
    whole = Request.of(one.spec)
    for row in logits:
        whole.token_ids.append(sample(row[None], [whole])[0].token_id)
    cut = min(cut, steps)
    emitted = whole.output_token_ids[: one.num_output_tokens + cut]
    resumed = Request.of(replace(one.spec, request_id="again", resumed_output_token_ids=tuple(emitted)))
    for row in logits[cut:]:
        resumed.token_ids.append(sample(row[None], [resumed])[0].token_id)
    assert resumed.token_ids == whole.token_ids


@settings(max_examples=50, deadline=None)
@given(batches, st.integers(0, 2**31))
def test_the_given_logits_are_not_changed(batch: list[Request], seed: int) -> None:
    logits = logits_for(batch, seed, False)
    before = logits.clone()
    sample(logits, batch)
    assert torch.equal(logits, before)


def chi_square(drawn: list[int], expected: list[float]) -> float:
    observed = np.bincount(drawn, minlength=len(expected))
    wanted = np.array(expected) * len(drawn)
    assert (observed[wanted == 0.0] == 0).all()
    kept = wanted > 0.0
    return float(((observed[kept] - wanted[kept]) ** 2 / wanted[kept]).sum())


# Bounds are chi-square quantiles at p = 0.001 for the degrees of freedom named.
LOGITS = [2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, 1.5]


def test_draws_follow_the_softmax() -> None:
    expected = torch.softmax(torch.tensor(LOGITS), 0).tolist()
    assert chi_square(tokens_drawn(LOGITS, 20_000, seed=11), expected) < 24.32  # 7


def test_draws_follow_the_distribution_at_another_temperature_and_over_positions() -> None:
    expected = torch.softmax(torch.tensor(LOGITS) / 1.7, 0).tolist()
    requests = [request(output=[0] * position, temperature=1.7, max_tokens=9_999) for position in range(5_000)]
    drawn = [token.token_id for token in sample(torch.tensor([LOGITS] * 5_000), requests)]
    assert chi_square(drawn, expected) < 24.32  # 7


def test_draws_follow_the_filtered_distribution() -> None:
    kept = torch.softmax(torch.tensor([2.0, 1.0, -math.inf, -math.inf, -math.inf, -math.inf, -math.inf, 1.5]), 0)
    assert chi_square(tokens_drawn(LOGITS, 20_000, seed=3, top_k=3), kept.tolist()) < 13.82  # 2


def test_greedy_takes_the_lowest_of_tied_ids() -> None:
    assert sample_one([0.0, 5.0, 5.0, 1.0], temperature=0.0) == 1


def test_a_tiny_temperature_takes_the_most_likely_token() -> None:
    assert set(tokens_drawn(LOGITS, 50, temperature=1e-45)) == {0}


def test_top_k_keeps_ties_with_the_last_one_kept() -> None:
    assert set(tokens_drawn([3.0, 1.0, 1.0, -9.0], 500, top_k=2, temperature=2.0)) == {0, 1, 2}


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    logits = [math.log(share) for share in (0.1, 0.5, 0.25, 0.15)]
    assert set(tokens_drawn(logits, 500, top_p=0.6)) == {1, 2}
    assert set(tokens_drawn(logits, 500, top_p=0.45)) == {1}


def test_top_p_over_a_flat_distribution_looks_beyond_the_first_candidates() -> None:
    logits = torch.zeros(300, 2_000)
    logits[:, 1_000:] = -0.1
    requests = [request(seed=seed, top_p=0.5) for seed in range(300)]
    drawn = [token.token_id for token in sample(logits, requests)]
    assert max(drawn) < 1_000
    assert len(set(drawn)) > 200


def test_min_p_drops_what_is_far_below_the_best() -> None:
    logits = [math.log(share) for share in (0.6, 0.3, 0.05, 0.05)]
    assert set(tokens_drawn(logits, 500, min_p=0.2)) == {0, 1}


def test_min_tokens_forbids_end_tokens_until_reached() -> None:
    params: dict[str, Any] = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": frozenset({1})}
    logits = torch.tensor([[0.0, 5.0, 1.0]] * 2)
    early, late = request(output=[0], **params), request(output=[0, 0], **params)
    assert [token.token_id for token in sample(logits, [early, late])] == [2, 1]


def test_presence_and_frequency_count_output_only_and_repetition_counts_the_prompt_too() -> None:
    logits = torch.tensor([[1.0, 0.9, -5.0]])
    assert sample(logits, [request(prompt=[0], temperature=0.0, presence_penalty=2.0)])[0].token_id == 0
    assert sample(logits, [request(output=[0], temperature=0.0, presence_penalty=2.0)])[0].token_id == 1
    assert sample(logits, [request(prompt=[0], temperature=0.0, repetition_penalty=2.0)])[0].token_id == 1


def test_ids_beyond_the_logits_are_ignored() -> None:
    params: dict[str, Any] = {
        "logit_bias": {999: 5.0},
        "stop_token_ids": frozenset({999}),
        "min_tokens": 1,
        "temperature": 0.0,
    }
    assert sample_one([0.0, 1.0], prompt=[999], repetition_penalty=1.5, **params) == 1


def test_logprobs_are_those_of_the_unmodified_distribution() -> None:
    logits = torch.tensor([LOGITS])
    token = sample(logits, [request(logprobs=3, temperature=0.0, logit_bias={4: 50.0})])[0]
    expected = torch.log_softmax(logits[0].double(), 0)
    assert token.token_id == 4
    assert token.logprob == pytest.approx(float(expected[4]), abs=1e-6)
    assert [top.token_id for top in token.top] == [0, 7, 1]
    assert [top.logprob for top in token.top] == pytest.approx(expected[[0, 7, 1]].tolist(), abs=1e-6)


def test_tied_top_logprobs_are_ordered_by_id_and_bounded_by_the_vocabulary() -> None:
    flat = torch.zeros(1, 5)
    assert [top.token_id for top in sample(flat, [request(logprobs=2)])[0].top] == [0, 1]
    assert len(sample(flat, [request(logprobs=20)])[0].top) == 5


def test_logprobs_none_reports_nothing_and_zero_only_the_token() -> None:
    none, zero = sample(torch.tensor([LOGITS] * 2), [request(), request(logprobs=0)])
    assert (none.logprob, none.top) == (None, ())
    assert zero.logprob is not None and zero.top == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused_by_request_id(bad: float) -> None:
    logits = random_logits(2)
    logits[1, 3] = bad
    broken = replace(request().spec, request_id="broken")
    with pytest.raises(InternalError, match="broken"):
        sample(logits, [request(), Request.of(broken)])


def test_a_row_with_every_token_forbidden_is_refused() -> None:
    with pytest.raises(InternalError, match="No token"):
        sample_one([0.0, 1.0], min_tokens=1, stop_token_ids=frozenset({0, 1}))


def test_an_empty_batch_gives_nothing() -> None:
    assert sample(torch.empty(0, VOCAB), []) == []
