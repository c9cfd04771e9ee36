import math

import pytest

from services.errors import InvalidRequest
from services.kv.sampling import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 2**64),
        ("max_tokens", 0),
        ("min_tokens", 11),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0.0),
        ("logprobs", 21),
        ("logit_bias", {1: 101.0}),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{"seed": 0, "max_tokens": 10, name: value})  # type: ignore[arg-type]
    assert caught.value.param == name


def test_temperature_zero_is_greedy() -> None:
    assert SamplingParams(seed=0, max_tokens=1, temperature=0.0).is_greedy
