"""Grammars through prefill and decode: the tokens of one engine, and a grammar's failure is its own request's."""

import asyncio
import json
from dataclasses import replace

import pytest

from services.engine.grammar import NoGrammars
from services.errors import InvalidRequest
from services.kv.sampling import SamplingParams
from tests.inprocess import real_grammar
from tests.inprocess.client import GREEDY, SEEDED, begin, expected_ids, generate, prompt
from tests.inprocess.cluster import Shape, cluster
from tests.inprocess.fake_grammar import DEAD_END, END, LENGTH
from tests.inprocess.real_grammar import CITY, definition, real_grammars, text_of

REAL = Shape(grammars=real_grammars())
ENDLESS = replace(GREEDY, max_tokens=30, grammar=DEAD_END, stop_token_ids=frozenset([END]))


def city(params: SamplingParams) -> SamplingParams:
    return replace(
        params, max_tokens=60, grammar=definition(CITY), stop_token_ids=frozenset([real_grammar.END]), logprobs=1
    )


@pytest.mark.parametrize("params", [city(GREEDY), city(SEEDED), replace(city(SEEDED), choice_index=2)])
@pytest.mark.parametrize("has_prefill", [True, False])
async def test_a_schema_gives_the_tokens_of_one_engine(params: SamplingParams, has_prefill: bool) -> None:
    async with cluster(shape=REAL) as running:
        answer = await generate(running, prompt(30), params, candidates=running.prefills if has_prefill else [])
        assert answer.ids == expected_ids(prompt(30), params, REAL)
        assert answer.proof.path == ("pd" if has_prefill else "fallback")
        assert json.loads(text_of(answer.ids)).keys() == {"city", "big"}
        await running.settled()


async def test_the_first_token_of_a_prefill_worker_is_held_to_the_grammar() -> None:
    async with cluster(shape=REAL) as running:
        call = begin(running, prompt(30), city(SEEDED))
        await call.read_tokens(1)
        assert text_of(call.answer.ids[:1]) == "{"
        await call.finish()
        await running.settled()


async def test_an_output_without_a_way_on_fails_alone() -> None:
    async with cluster() as running:
        lost, neighbour = begin(running, prompt(30), ENDLESS), begin(running, prompt(20))
        neighbours = asyncio.create_task(neighbour.finish())
        with pytest.raises(InvalidRequest, match="No token of this model goes on") as raised:
            await lost.finish()
        assert raised.value.param == "grammar"
        whole = expected_ids(prompt(30), ENDLESS)
        assert len(whole) == LENGTH
        assert lost.answer.ids == whole[: len(lost.answer.ids)]
        assert (await neighbours).ids == expected_ids(prompt(20))
        assert not running.decode.defects
        assert (await generate(running, prompt(30))).ids == expected_ids(prompt(30))
        await running.settled()


async def test_a_grammar_that_cannot_be_enforced_is_refused_before_anybody_computes() -> None:
    async with cluster(shape=REAL) as running:
        call = begin(running, prompt(30), replace(city(GREEDY), grammar=definition({"not": {}})))
        with pytest.raises(InvalidRequest, match=r'Unimplemented keys: \["not"\]'):
            await call.finish()
        assert call.answer.frames == []
        assert running.decode.model.num_computed_tokens == running.prefill.model.num_computed_tokens == 0
        await running.settled()


async def test_a_prefill_worker_that_does_not_know_the_grammar_is_not_to_blame() -> None:
    async with cluster(shape=REAL, prefills=0) as running:
        await running.add_prefill(Shape(grammars=NoGrammars()))
        answer = await generate(running, prompt(30), city(SEEDED))
        assert (answer.proof.path, answer.proof.reason) == ("fallback", "incompatible_peer")
        assert not answer.proof.failed_prefill
        assert answer.ids == expected_ids(prompt(30), city(SEEDED), REAL)
        await running.settled()
