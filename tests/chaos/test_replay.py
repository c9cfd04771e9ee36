"""A decode worker lost after any token: sampler, penalties, limits and log probabilities go on exactly."""

import asyncio
import json
import re
from contextlib import aclosing
from dataclasses import replace

import pytest

from services.errors import InternalError
from services.gateway.answering.sequence import Ended, FinishReason, GeneratedToken, NewTokens
from tests.chaos.gateway import gateway
from tests.inprocess import real_grammar
from tests.inprocess.client import GREEDY, SEEDED, expected, expected_ids, prompt
from tests.inprocess.cluster import Shape, cluster, until
from tests.inprocess.fake_grammar import DEFINITION, END, LENGTH, FakeGrammar
from tests.inprocess.hash_model import VOCAB_SIZE
from tests.inprocess.real_grammar import CITY, definition, real_grammars

PROMPT = prompt(30)
FREE = replace(SEEDED, presence_penalty=0.0, frequency_penalty=0.0)
STOPS = frozenset(range(0, VOCAB_SIZE, 3))
"""So many that an answer does not get far without one of them."""
SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": FREE,
    "penalties": replace(SEEDED, presence_penalty=1.2, frequency_penalty=0.9, repetition_penalty=1.3),
    "logprobs": replace(SEEDED, logprobs=5),
    "greedy logprobs": replace(GREEDY, logprobs=0, repetition_penalty=1.2),
    "min tokens": replace(FREE, max_tokens=60, min_tokens=9, stop_token_ids=STOPS),
    "bias and top k": replace(SEEDED, top_k=12, logit_bias=dict.fromkeys(STOPS, -4.0)),
    "another choice": replace(SEEDED, choice_index=3),
    "grammar": replace(FREE, grammar=DEFINITION, stop_token_ids=frozenset([END])),
    "greedy grammar": replace(GREEDY, grammar=DEFINITION, stop_token_ids=frozenset([END]), logprobs=1),
    "schema": replace(
        FREE, max_tokens=60, grammar=definition(CITY), stop_token_ids=frozenset([real_grammar.END]), logprobs=2
    ),
}
REAL = Shape(grammars=real_grammars())
SHAPES = {"schema": REAL}
"""Of the workers; the others know the fake grammar."""
BORDERS = range(1, 9)
"""Tokens heard before the worker is lost."""


def as_heard(name: str) -> list[GeneratedToken]:
    return [
        GeneratedToken(token.token_id, token.logprob, tuple((top.token_id, top.logprob) for top in token.top or ()))
        for token in expected(PROMPT, SAMPLINGS[name], SHAPES.get(name))
    ]


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("border", BORDERS)
async def test_the_answer_goes_on_as_if_nothing_had_happened(name: str, border: int) -> None:
    params, shape = SAMPLINGS[name], SHAPES.get(name)
    async with cluster(shape=shape) as running:
        heir = await running.add_decode(shape)
        lost = running.decodes[0]
        lost.model.gate.close()
        lost.model.gate.allow(border - 1)  # the first token comes from the prefill worker
        sequence, heard = gateway(running, busy=[heir]).generation(PROMPT, params), list[GeneratedToken]()
        ends: list[FinishReason] = []

        async def read() -> None:
            async with aclosing(sequence.events()) as events:
                async for event in events:
                    if isinstance(event, NewTokens):
                        heard.extend(event.tokens)
                    elif isinstance(event, Ended):
                        ends.append(event.reason)

        reading = asyncio.create_task(read())
        await until(lambda: len(heard) == border)
        await lost.server.stop(None)
        await reading
        lost.model.gate.open()
        assert sequence.replay_codes == ["peer_gone"]
        assert sequence.proof.decode == heir.node.member_id
        assert heard == as_heard(name)
        assert ends == ["stop" if heard[-1].token_id in params.stop_token_ids else "length"]
        await running.settled()


def test_the_stop_tokens_would_have_ended_the_answer_earlier() -> None:
    without = expected_ids(PROMPT, replace(SAMPLINGS["min tokens"], min_tokens=0))
    assert len(without) < SAMPLINGS["min tokens"].min_tokens
    assert expected_ids(PROMPT, SAMPLINGS["min tokens"])[-1] in STOPS


def test_the_grammar_would_have_been_left_without_it() -> None:
    constrained = expected_ids(PROMPT, SAMPLINGS["grammar"])
    assert (len(constrained), constrained[-1]) == (LENGTH + 1, END)
    FakeGrammar().consume(constrained[:-1])
    free = expected_ids(PROMPT, replace(SAMPLINGS["grammar"], grammar=None))
    assert free != constrained
    with pytest.raises(InternalError, match="its grammar does not allow"):
        FakeGrammar().consume(free[:LENGTH])


def test_the_schema_is_satisfied_by_noise() -> None:
    city = json.loads(real_grammar.text_of(expected_ids(PROMPT, SAMPLINGS["schema"], REAL)))
    assert re.fullmatch("[A-Z][a-z]{2,9}", city["city"])
    assert isinstance(city["big"], bool)
