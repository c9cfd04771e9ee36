import math

import pytest

from services.errors import InvalidRequest
from services.kv.sampling import SamplingParams
from services.rpc import tandem_pb2 as pb
from services.rpc.convert import duration_from_message, sampling_from_message, sampling_to_message


def test_parameters_survive_the_wire() -> None:
    params = SamplingParams(
        seed=2**64 - 1,
        max_tokens=7,
        min_tokens=2,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        presence_penalty=-1.0,
        frequency_penalty=0.5,
        repetition_penalty=1.2,
        logit_bias={5: -100.0, 9: 3.5},
        logprobs=0,
        stop_token_ids=frozenset({2, 3}),
        choice_index=4,
    )
    message = pb.SamplingParams.FromString(sampling_to_message(params).SerializeToString())
    assert sampling_from_message(message) == params


def test_no_logprobs_is_not_zero_logprobs() -> None:
    params = SamplingParams(seed=0, max_tokens=1)
    assert sampling_from_message(sampling_to_message(params)).logprobs is None


@pytest.mark.parametrize(("given_s", "expected_s"), [(0.0, 60.0), (5.0, 5.0), (61.0, 60.0), (math.inf, 60.0)])
def test_a_duration_is_bounded(given_s: float, expected_s: float) -> None:
    assert duration_from_message("timeout_s", given_s, 60.0) == expected_s


@pytest.mark.parametrize("given_s", [-1.0, -math.inf, math.nan])
def test_what_is_no_duration_is_refused(given_s: float) -> None:
    with pytest.raises(InvalidRequest):
        duration_from_message("timeout_s", given_s, 60.0)
