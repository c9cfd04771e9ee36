"""Outputs held to a grammar: masks follow the output alone, and what cannot be followed fails its own request only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from services.engine.constraints import constrained
from services.engine.grammar import Grammar, NoGrammars
from services.engine.llguidance_grammar import LLGuidanceGrammars
from services.engine.output import SampledToken
from services.engine.request import NewRequest, Request
from services.engine.sampler import BatchSampler
from services.errors import InternalError, InvalidRequest, TandemError
from services.kv.sampling import SamplingParams

VOCAB_SIZE = 49152
END, OTHER_END = 2, 0
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def json_grammar(schema: dict[str, Any]) -> str:
    return json.dumps({"grammars": [{"json_schema": {**schema, "x-guidance": STYLE}}]})


def properties(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {f"{name}{index}": {"type": "string"} for index in range(40)}}


PERSON = json_grammar(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
TOO_MANY_STATES = json_grammar({"type": "string", "pattern": "^.*a.{200}$"})
"""Which of the last 200 characters were an ``a`` is as many states."""


@pytest.fixture(scope="module")
def tokenizer_json(smollm2: Callable[[str], Path]) -> str:
    return (smollm2("bfloat16") / "tokenizer.json").read_text()


@pytest.fixture(scope="module")
def grammars(tokenizer_json: str) -> LLGuidanceGrammars:
    return LLGuidanceGrammars(tokenizer_json, vocab_size=VOCAB_SIZE, end_token_ids=(END, OTHER_END))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json: str) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json)


@pytest.fixture
def person(grammars: LLGuidanceGrammars) -> Grammar:
    return grammars.compile(PERSON)


def request(grammar: Grammar | None, output: list[int] | None = None, **params: Any) -> Request:
    values = {"seed": 1, "max_tokens": 200, "stop_token_ids": frozenset([END]), **params}
    return Request.of(NewRequest("r", (5,), SamplingParams(**values), b"", tuple(output or ()), grammar=grammar))


def logits(step: int) -> torch.Tensor:
    return torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(step)) * 4


def sampled(each: Request) -> SampledToken | TandemError:
    return BatchSampler().sample(logits(each.num_output_tokens), [each])[0]


def generated(each: Request) -> list[int]:
    """Sample from noise until the end."""
    while not each.output_token_ids or each.finish_reason is None:
        token = sampled(each)
        assert isinstance(token, SampledToken), token
        each.token_ids.append(token.token_id)
    return each.output_token_ids


def test_noise_becomes_what_the_schema_describes(grammars: LLGuidanceGrammars, tokenizer: Tokenizer) -> None:
    for temperature in (0.0, 1.0):
        token_ids = generated(request(grammars.compile(PERSON), temperature=temperature))
        value = json.loads(tokenizer.decode(token_ids[:-1]))
        assert token_ids[-1] == END
        assert value.keys() == {"name", "age"}
        assert len(value["name"]) <= 12
        assert value["age"] <= 99


def test_there_is_one_way_to_write_a_value(person: Grammar, tokenizer: Tokenizer) -> None:
    text = tokenizer.decode(generated(request(person))[:-1])
    assert text == json.dumps(json.loads(text), ensure_ascii=False)


def test_whoever_takes_over_goes_on_with_the_same_tokens(grammars: LLGuidanceGrammars) -> None:
    whole = generated(request(grammars.compile(PERSON)))
    assert len(whole) > 6
    for border in (1, 2, len(whole) // 2, len(whole) - 1):
        heard, start = whole[:border], grammars.compile(PERSON)
        start.consume(heard)
        assert generated(request(start, heard)) == whole


def test_neighbours_without_a_grammar_are_free(person: Grammar) -> None:
    scores = torch.cat((logits(1), logits(1)))
    kept = scores.clone()
    masked = constrained(scores, [request(person), request(None)])
    assert torch.equal(scores, kept)
    assert torch.equal(masked.scores[1], scores[1])
    assert 0 < int(masked.scores[0].isfinite().sum()) < 10
    assert not masked.failures


def test_the_models_end_tokens_are_allowed_where_the_output_may_end(grammars: LLGuidanceGrammars) -> None:
    each = request(grammars.compile('start: "a" "b"?'))
    for text, may_end, may_go_on in (("", False, True), ("a", True, True), ("b", True, False)):
        if text:
            each.token_ids.append({"a": 81, "b": 82}[text])
        allowed = constrained(logits(0), [each]).scores[0].isfinite()
        assert bool(allowed[END]) == bool(allowed[OTHER_END]) == may_end
        assert int(allowed.sum()) > 2 * may_end or not may_go_on


def test_a_clients_stop_token_ends_the_output_but_is_allowed_only_as_text(
    grammars: LLGuidanceGrammars, tokenizer: Tokenizer
) -> None:
    special = tokenizer.token_to_id("<|im_start|>")
    quote = generated(request(grammars.compile(PERSON)))[4]
    whole = generated(request(grammars.compile(PERSON)))
    stopped = generated(request(grammars.compile(PERSON), stop_token_ids=frozenset([END, quote, special])))
    assert stopped == whole[: whole.index(quote) + 1]
    assert special not in whole


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "strang"}, "Invalid type: strang"),
        ({"type": 5}, "type"),
        ({"not": {"type": "string"}, "if": {}}, 'Unimplemented keys: ["if", "not"]'),
        ({"type": "array", "uniqueItems": True}, 'Unimplemented keys: ["uniqueItems"]'),
        ({"type": "string", "format": "isbn"}, "Unknown format: isbn"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "http://x/y"}, "http://x/y"),
        ({"$ref": "#/nowhere"}, "/nowhere"),
        ({"allOf": [{"anyOf": [properties(f"{i}{j}") for j in range(9)]} for i in range(3)]}, "schema too large"),
    ],
)
def test_what_cannot_be_enforced_is_named(grammars: LLGuidanceGrammars, schema: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        grammars.compile(json_grammar(schema))
    assert problem in raised.value.message
    assert raised.value.param == "grammar"


@pytest.mark.parametrize("definition", ["", "{", "[]", '{"grammars": []}', "start: nowhere", 'start: "a" "b'])
def test_what_is_no_grammar_is_refused(grammars: LLGuidanceGrammars, definition: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be enforced"):
        grammars.compile(definition)


def test_a_grammar_that_costs_too_much_fails_its_own_request(grammars: LLGuidanceGrammars, person: Grammar) -> None:
    costly, neighbour = request(grammars.compile(TOO_MANY_STATES), temperature=0.0), request(person)
    for step in range(200):
        scores = torch.cat((logits(step), logits(step)))
        token, other = BatchSampler().sample(scores, [costly, neighbour])
        assert isinstance(other, SampledToken)
        if isinstance(token, TandemError):
            break
        costly.token_ids.append(token.token_id)
    assert isinstance(token, InvalidRequest)
    assert "too many states" in token.message
    assert token.param == "grammar"
    again = request(grammars.compile(TOO_MANY_STATES), temperature=0.0)
    assert isinstance(sampled(again), SampledToken)  # others with the same definition have states of their own


def test_an_output_that_left_its_grammar_fails_its_own_request(grammars: LLGuidanceGrammars, person: Grammar) -> None:
    lost, neighbour = request(person), request(grammars.compile(PERSON))
    lost.token_ids.append(17)
    error, token = BatchSampler().sample(torch.cat((logits(0), logits(0))), [lost, neighbour])
    assert isinstance(error, InternalError)
    assert "its grammar does not allow" in error.message
    assert isinstance(token, SampledToken)


def test_logits_that_are_no_numbers_are_a_defect_with_a_grammar_too(person: Grammar) -> None:
    with pytest.raises(InternalError, match="not finite"):
        BatchSampler().sample(torch.full((1, VOCAB_SIZE), torch.nan), [request(person)])


def test_a_worker_without_grammars_says_so() -> None:
    with pytest.raises(InvalidRequest, match="cannot be held to a grammar"):
        NoGrammars().compile(PERSON)


@pytest.mark.parametrize("values", [{"min_tokens": 2}, {"stop_token_ids": frozenset()}, {"grammar": "x" * (2**20 + 1)}])
def test_parameters_that_contradict_a_grammar_are_refused(values: dict[str, Any]) -> None:
    params: dict[str, Any] = {"seed": 1, "max_tokens": 9, "grammar": "x", "stop_token_ids": frozenset([END])}
    SamplingParams(**params)
    with pytest.raises(InvalidRequest):
        SamplingParams(**{**params, **values})
