"""Outputs that a schema describes: masks follow the output alone, and what cannot be enforced is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from services.engine.grammar.grammar import Constraints, Grammars, NoGrammars
from services.engine.grammar.llguidance import LLGuidanceGrammars
from services.engine.request import NewRequest, Request
from services.engine.sampler import BatchSampler
from services.errors import InternalError, InvalidRequest
from services.kv.sampling import SamplingParams

VOCAB_SIZE = 49152
END = 2
PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def tokenizer_json(smollm2: Callable[[str], Path]) -> str:
    return (smollm2("bfloat16") / "tokenizer.json").read_text()


@pytest.fixture(scope="module")
def grammars(tokenizer_json: str) -> Grammars:
    return LLGuidanceGrammars(tokenizer_json, VOCAB_SIZE)


@pytest.fixture(scope="module")
def text_of(tokenizer_json: str) -> Callable[[list[int]], str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    return lambda token_ids: str(tokenizer.decode(token_ids))


def spec(schema: str | None, output: list[int] | None = None, **params: Any) -> NewRequest:
    values = {"seed": 1, "max_tokens": 200, "stop_token_ids": frozenset([END]), "json_schema": schema, **params}
    return NewRequest("r", (5,), SamplingParams(**values), b"", tuple(output or ()))


def logits(step: int) -> torch.Tensor:
    return torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(step)) * 4


def generated(grammars: Grammars, wanted: NewRequest, *, restart_at: int | None = None) -> list[int]:
    """Sample from noise until the end; at ``restart_at`` another worker takes over."""
    sampler, request = BatchSampler(grammars), Request.of(wanted)
    while not request.output_token_ids or request.finish_reason is None:
        step = request.num_output_tokens
        if step == restart_at:
            sampler, request = BatchSampler(grammars), Request.of(spec(PERSON, request.output_token_ids))
        request.token_ids.append(sampler.sample(logits(step), [request])[0].token_id)
    return request.output_token_ids


def test_noise_becomes_what_the_schema_describes(grammars: Grammars, text_of: Callable[[list[int]], str]) -> None:
    for temperature in (0.0, 1.0):
        token_ids = generated(grammars, spec(PERSON, temperature=temperature))
        person = json.loads(text_of(token_ids[:-1]))
        assert token_ids[-1] == END
        assert person.keys() == {"name", "age"}
        assert len(person["name"]) <= 12
        assert person["age"] <= 99


def test_whoever_takes_over_goes_on_with_the_same_tokens(grammars: Grammars) -> None:
    whole = generated(grammars, spec(PERSON))
    assert len(whole) > 6
    for border in (1, 2, len(whole) // 2, len(whole) - 1):
        assert generated(grammars, spec(PERSON), restart_at=border) == whole


def test_neighbours_without_a_schema_are_free(grammars: Grammars) -> None:
    constrained, free = Request.of(spec(PERSON)), Request.of(spec(None))
    scores = torch.cat((logits(1), logits(1)))
    kept = scores.clone()
    masked = Constraints(grammars).apply(scores, [constrained, free])
    assert torch.equal(scores, kept)
    assert torch.equal(masked[1], scores[1])
    assert 0 < int(masked[0].isfinite().sum()) < 10


def test_a_value_that_is_whole_ends_even_before_min_tokens(grammars: Grammars) -> None:
    request = Request.of(spec('{"const": true}', min_tokens=50))
    sampler = BatchSampler(grammars)
    while not request.output_token_ids or request.token_ids[-1] != END:
        request.token_ids.append(sampler.sample(logits(request.num_output_tokens), [request])[0].token_id)
        assert request.num_output_tokens < 10


@pytest.mark.parametrize("schema", ['{"type": "strang"}', "no json", "[", '{"type": 5}', '{"$ref": "http://x/y"}', "7"])
def test_what_is_no_schema_is_refused(grammars: Grammars, schema: str) -> None:
    with pytest.raises(InvalidRequest, match="schema cannot be"):
        BatchSampler(grammars).check(spec(schema))


def test_a_resumed_output_has_to_fit(grammars: Grammars) -> None:
    whole = generated(grammars, spec(PERSON))
    BatchSampler(grammars).check(spec(PERSON, whole[:4]))
    with pytest.raises(InvalidRequest, match="does not fit its schema"):
        BatchSampler(grammars).check(spec(PERSON, [*whole[:2], 17]))
    with pytest.raises(InternalError, match="its grammar does not allow"):
        BatchSampler(grammars).sample(logits(0), [Request.of(spec(PERSON, [17]))])


def test_a_worker_without_grammars_says_so() -> None:
    with pytest.raises(InvalidRequest, match="cannot hold an output to a schema"):
        BatchSampler(NoGrammars()).check(spec(PERSON))
    BatchSampler(NoGrammars()).check(spec(None))


def test_what_never_ends_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="has to end by a stop token"):
        spec(PERSON, stop_token_ids=frozenset())


def test_there_is_one_way_to_write_a_value(grammars: Grammars, text_of: Callable[[list[int]], str]) -> None:
    text = text_of(generated(grammars, spec(PERSON))[:-1])
    assert text == json.dumps(json.loads(text), ensure_ascii=False)
