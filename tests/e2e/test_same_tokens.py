"""Through prefill, NIXL and decode come the tokens of one local engine, and in float32 those of transformers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from services.engine.weights.sources import ModelFolder
from services.kv.sampling import SamplingParams
from tests.e2e.conftest import MAX_STEP_TOKENS
from tests.e2e.harness import Answer, Ask, Pair, greedy, seeded
from tests.e2e.prompts import Prompts, first_difference
from tests.e2e.reference import CLOSE_GAP, Expected, Question, generate_all

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Group:
    """Prompts that are asked at the same time."""

    name: str
    prompts: list[list[int]]
    num_tokens: int
    project: str = ""
    """Groups of one project share prefix blocks."""


def groups(prompts: Prompts) -> list[Group]:
    text, ids = prompts.text, prompts.ids
    shared = text(240, seed=900)
    single = [Group("single", [text(length, seed=length)], 10) for length in (5, 7, 24, 61, 200)]
    borders = [Group("block border", [text(n - 1, n), text(n, n), text(n + 1, n)], 8, f"at {n}") for n in (16, 32, 128)]
    return [
        *single,
        *borders,
        Group("random ids", [ids(length, seed=length) for length in (5, 16, 40, 63, 95, 160)], 10),
        Group("batch", [text(length, seed=length) for length in range(20, 200, 18)], 12, "batch"),
        Group("shared prefix, first", [shared + ids(10, seed=1)], 8, "shared"),
        Group("shared prefix", [shared + ids(length, seed=length) for length in (1, 16, 17, 33, 50)], 8, "shared"),
        Group("chunk borders", [text(MAX_STEP_TOKENS + n, seed=n) for n in (-1, 0, 1)], 8),
        Group("several chunks", [ids(2 * MAX_STEP_TOKENS, seed=3), text(700, seed=4)], 8),
        Group("3,000 tokens", [text(3000, seed=5)], 8),
    ]


async def test_float32_greedy_tokens_are_those_of_generate(
    float32_pair: Pair, float32_model: ModelFolder, pytestconfig: pytest.Config
) -> None:
    asked = groups(await float32_pair.cluster.prompts())
    assert sum(len(group.prompts) for group in asked) >= 40
    expecting = asyncio.create_task(asyncio.to_thread(_expected, float32_model, asked))
    answers = [answer for group in asked for answer in await _ask_all(float32_pair, group)]
    expected = await expecting
    close = [_compare(answer, reference) for answer, reference in zip(answers, expected, strict=True)]
    pytestconfig.get_terminal_writer().line(
        f"\n{len(answers)} prompts equal to generate; excused by a top-2 gap below {CLOSE_GAP:g}: {sum(close)}"
    )
    for answer in answers:
        assert answer.proof.path == "pd"
        assert answer.proof.transport == "nixl"
        assert answer.proof.verified
        assert answer.proof.kv_bytes > 0


async def _ask_all(pair: Pair, group: Group) -> list[Answer]:
    asks = [Ask(prompt, greedy(group.num_tokens), project=group.project or group.name) for prompt in group.prompts]
    return await asyncio.gather(*(pair.away(ask) for ask in asks))


def _expected(model: ModelFolder, asked: Sequence[Group]) -> list[Expected]:
    return generate_all(model.path, [Question(prompt, group.num_tokens) for group in asked for prompt in group.prompts])


def _compare(answer: Answer, expected: Expected) -> bool:
    """Fail on a difference that rounding cannot explain; return whether there is one that it can."""
    index = first_difference(answer.token_ids, expected.token_ids)
    if index is None:
        return False
    assert index < len(expected.gaps), (answer.token_ids, expected.token_ids)
    assert expected.gaps[index] < CLOSE_GAP, (index, expected.gaps[index], answer.token_ids, expected.token_ids)
    return True


LOCAL_TOKENS = 64
"""Shorter prompts are computed by the decode worker unless somebody insists: its default."""
NUM_TOKENS = 10
SAMPLINGS = {"greedy": greedy(NUM_TOKENS), "seeded": seeded(NUM_TOKENS, seed=20_25)}
NUM_RESUMED = (0, 1, 6, NUM_TOKENS - 1)


@pytest.fixture(params=["float32", "bfloat16"])
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(f"{request.param}_pair")
    return found


@pytest.mark.parametrize("sampling", SAMPLINGS)
async def test_pd_equals_the_local_engine_and_every_replay(pair: Pair, sampling: str) -> None:
    prompts = await pair.cluster.prompts()
    for prompt in (prompts.ids(37, seed=2), prompts.text(MAX_STEP_TOKENS + 30, seed=3)):
        ask = Ask(prompt, SAMPLINGS[sampling], project=sampling)
        undisturbed = await pair.away(ask)
        assert undisturbed.proof.path == "pd"
        assert undisturbed.proof.kv_bytes > 0
        assert len(undisturbed.token_ids) == NUM_TOKENS
        here = await pair.here(replace(ask, project=f"{sampling} here"))
        assert here.proof.path == ("local" if len(prompt) <= LOCAL_TOKENS else "fallback")
        assert here.proof.kv_bytes == 0
        assert here.token_ids == undisturbed.token_ids
        await _replay(pair, ask, undisturbed.token_ids)


async def _replay(pair: Pair, ask: Ask, token_ids: list[int]) -> None:
    """Go on after none, one, some and all but one of the tokens: away and here, with cached blocks and without."""
    cached = [replace(ask, resumed=token_ids[:count]) for count in NUM_RESUMED]
    fresh = [replace(replay, project=f"{ask.project} after {len(replay.resumed)}") for replay in cached[1:3]]
    replays = [*cached, *fresh]
    away = await asyncio.gather(*(pair.away(replay) for replay in replays))
    here = await asyncio.gather(*(pair.here(replace(replay, project=f"{replay.project} here")) for replay in replays))
    for replay, *answers in zip(replays, away, here, strict=True):
        for answer in answers:
            assert answer.token_ids == token_ids[len(replay.resumed) :], (len(replay.resumed), replay.project)


async def test_batch_neighbours_change_nothing(bfloat16_pair: Pair) -> None:
    prompts = await bfloat16_pair.cluster.prompts()
    asks = [Ask(prompts.text(30 + 23 * index, seed=index), _mixed(index), project="alone") for index in range(8)]
    alone = [await bfloat16_pair.away(ask) for ask in asks]
    together = await asyncio.gather(*(bfloat16_pair.away(replace(ask, project="together")) for ask in asks))
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def _mixed(index: int) -> SamplingParams:
    return greedy(12) if index % 2 else seeded(12, seed=index)
