"""Blocks that the pool had no room for are found again in host memory, and nobody can tell the difference."""

import pytest

from services.kv.sampling import SamplingParams
from tests.inprocess.client import GREEDY, SEEDED, begin, expected, generate, prompt
from tests.inprocess.cluster import Cluster, Shape, cluster

SMALL = Shape(num_blocks=24, num_parked=64)


async def crowded_out(running: Cluster, params: SamplingParams = GREEDY) -> None:
    """Compute a prompt of ten blocks on the decode worker, and then others until the pool has none of them any more."""
    await begin(running, prompt(40), params, candidates=[]).finish()
    for seed in (1, 2, 3):
        await begin(running, prompt(60, seed=seed), params, candidates=[]).finish()
    load = await running.decode.node.snapshot()
    assert load.load.num_parked_blocks >= 10


@pytest.mark.parametrize("params", [GREEDY, SEEDED])
async def test_an_idle_conversation_is_found_again(params: SamplingParams) -> None:
    async with cluster(prefills=0, shape=SMALL) as running:
        await crowded_out(running, params)
        before = running.decode.model.num_computed_tokens
        longer = [*prompt(40), 5]
        answer = await begin(running, longer, params, candidates=[]).finish()
        assert answer.tokens == expected(longer, params)
        assert answer.proof.cached_tokens == 40
        assert running.decode.model.num_computed_tokens == before + 1 + params.max_tokens - 1
        await running.settled()


async def test_a_peer_gets_parked_blocks_too() -> None:
    async with cluster(prefills=0, shape=SMALL) as running:
        second = await running.add_decode(SMALL)
        await crowded_out(running)
        longer = [*prompt(40), 5]
        answer = await begin(running, longer, worker=second, kv_source=running.decode.source).finish()
        assert answer.tokens == expected(longer)
        assert answer.proof.fetched_tokens == 40
        await running.settled()


async def test_without_room_there_is_nothing_to_find() -> None:
    async with cluster(prefills=0, shape=Shape(num_blocks=24)) as running:
        await begin(running, prompt(40), candidates=[]).finish()
        for seed in (1, 2, 3):
            await begin(running, prompt(60, seed=seed), candidates=[]).finish()
        answer = await begin(running, [*prompt(40), 5], candidates=[]).finish()
        assert answer.proof.cached_tokens == 0


async def test_restoring_takes_no_block_that_is_in_use() -> None:
    async with cluster(prefills=0, shape=SMALL) as running:
        await crowded_out(running)
        held = begin(running, prompt(72, seed=7), candidates=[])
        asked = begin(running, [*prompt(40), 5], candidates=[])
        assert (await held.finish()).tokens == expected(prompt(72, seed=7))
        assert (await asked.finish()).tokens == expected([*prompt(40), 5])
        await running.settled()


async def test_prefill_workers_park_as_well() -> None:
    async with cluster(shape=Shape(num_blocks=128), prefill={}) as running:
        small = await running.add_prefill(Shape(num_blocks=24, num_parked=64))
        for seed in (0, 1, 2, 3):
            await generate(running, prompt(60, seed=seed), candidates=[small])
        longer = [*prompt(60), *prompt(20, seed=9)]
        second = await running.add_decode(Shape(num_blocks=128))
        answer = await begin(running, longer, worker=second, candidates=[small]).finish()
        assert answer.tokens == expected(longer)
        assert answer.proof.prefill_cached_tokens == 60
        await running.settled()
