"""A decode worker lost after any token: sampler, penalties, limits and log probabilities go on exactly."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from services.errors import InternalError
from services.gateway.sequence import Ended, FinishReason, GeneratedToken, NewTokens
from services.kv.sampling import SamplingParams
from tests.chaos.gateway import gateway
from tests.inprocess.client import GREEDY, SEEDED, expected, expected_ids, prompt
from tests.inprocess.cluster import cluster, until
from tests.inprocess.fake_grammar import END, LENGTH, SCHEMA, FakeGrammar
from tests.inprocess.hash_model import VOCAB_SIZE

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
    "grammar": replace(FREE, json_schema=SCHEMA, stop_token_ids=frozenset([END])),
    "greedy grammar": replace(GREEDY, json_schema=SCHEMA, stop_token_ids=frozenset([END]), logprobs=1),
}
BORDERS = range(1, 9)
"""Tokens heard before the worker is lost."""


def as_heard(params: SamplingParams) -> list[GeneratedToken]:
    return [
        GeneratedToken(token.token_id, token.logprob, tuple((top.token_id, top.logprob) for top in token.top or ()))
        for token in expected(PROMPT, params)
    ]


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("border", BORDERS)
async def test_the_answer_goes_on_as_if_nothing_had_happened(name: str, border: int) -> None:
    params = SAMPLINGS[name]
    async with cluster() as running:
        heir = await running.add_decode()
        lost = running.decodes[0]
        lost.model.gate.close()
        lost.model.gate.allow(border - 1)  # the first token comes from the prefill worker
        sequence, heard, ends = gateway(running, busy=[heir]).generation(PROMPT, params), list[GeneratedToken](), []

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
        assert heard == as_heard(params)
        assert ends == [reason_of(params)]
        await running.settled()


def reason_of(params: SamplingParams) -> FinishReason:
    return "stop" if expected_ids(PROMPT, params)[-1] in params.stop_token_ids else "length"


def test_the_stop_tokens_would_have_ended_the_answer_earlier() -> None:
    without = expected_ids(PROMPT, replace(SAMPLINGS["min tokens"], min_tokens=0))
    assert len(without) < SAMPLINGS["min tokens"].min_tokens
    assert reason_of(SAMPLINGS["min tokens"]) == "stop"


def test_the_grammar_would_have_been_left_without_it() -> None:
    constrained = expected_ids(PROMPT, SAMPLINGS["grammar"])
    assert (len(constrained), constrained[-1]) == (LENGTH + 1, END)
    FakeGrammar().consume(constrained[:-1])
    free = expected_ids(PROMPT, replace(SAMPLINGS["grammar"], json_schema=None))
    assert free != constrained
    with pytest.raises(InternalError, match="its grammar does not allow"):
        FakeGrammar().consume(free[:LENGTH])
