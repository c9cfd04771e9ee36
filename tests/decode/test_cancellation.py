"""A caller that goes away at any step of the protocol leaves nothing behind, on either worker."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from services.faults.plan import Action
from tests.inprocess.client import GREEDY, GenerateCall, begin, expected_ids, generate, prompt
from tests.inprocess.cluster import Cluster, Shape, cluster, until
from tests.inprocess.faults import scripted

STALLED = scripted(pushes=dict.fromkeys(range(9), Action.STALL))


async def waits_for_blocks(running: Cluster) -> GenerateCall:
    running.prefill.model.gate.close()
    owner = begin(running, prompt(200, seed=3))
    await owner.read_until("accepted")
    call = begin(running, prompt(200, seed=4))
    await until(lambda: running.decode.node.engine._streams.keys() >= {call.request.request_id})
    owner.cancel()
    return call


async def waits_for_its_turn(running: Cluster) -> GenerateCall:
    running.decode.model.gate.close()
    await begin(running, prompt(5, seed=9)).read_tokens(1)
    await until(lambda: running.decode.model.gate.num_waiting)
    return begin(running, prompt(30))


async def is_accepted(running: Cluster) -> GenerateCall:
    call = begin(running, prompt(30))
    await call.read_until("accepted")
    return call


async def waits_for_prefill(running: Cluster) -> GenerateCall:
    running.prefill.model.gate.close()
    call = await is_accepted(running)
    await until(lambda: running.prefill.model.gate.num_waiting)
    return call


async def has_its_first_chunk(running: Cluster) -> GenerateCall:
    running.prefill.model.gate.close()
    call = await is_accepted(running)
    running.prefill.model.gate.allow(1)
    await until(lambda: [arrival.num_arrived for arrival in running.decode.arrivals._open.values()] == [2])
    return call


async def has_its_first_token(running: Cluster) -> GenerateCall:
    running.decode.model.gate.close()
    call = begin(running, prompt(30))
    await call.read_tokens(1)
    return call


async def has_a_stalled_push(running: Cluster) -> GenerateCall:
    running.prefill.faults.plan = STALLED
    call = begin(running, prompt(30))
    await call.read_tokens(1)
    await until(lambda: running.prefill.faults.injected[Action.STALL] == 4)
    return call


async def lost_a_notice(running: Cluster) -> GenerateCall:
    running.decode.faults.plan = scripted(notices={1: Action.DROP})
    call = begin(running, prompt(30))
    await call.read_tokens(1)
    await until(lambda: not running.prefill.servicer.num_live)
    return call


async def generates(running: Cluster) -> GenerateCall:
    running.decode.model.gate.close()
    call = begin(running, prompt(30), replace(GREEDY, max_tokens=50))
    running.decode.model.gate.allow(3)
    await call.read_tokens(4)
    return call


async def computes_here(running: Cluster) -> GenerateCall:
    running.decode.model.gate.close()
    call = begin(running, prompt(30), candidates=())
    running.decode.model.gate.allow(2)
    await until(lambda: running.decode.model.num_computed_tokens >= 16)
    return call


STEPS = [
    waits_for_blocks,
    waits_for_its_turn,
    is_accepted,
    waits_for_prefill,
    has_its_first_chunk,
    has_its_first_token,
    has_a_stalled_push,
    lost_a_notice,
    generates,
    computes_here,
]


@pytest.mark.parametrize("reach", STEPS, ids=lambda reach: reach.__name__)
async def test_a_cancel_leaves_nothing_behind(reach: Callable[[Cluster], Awaitable[GenerateCall]]) -> None:
    async with cluster() as running:
        call = await reach(running)
        call.cancel()
        running.prefill.model.gate.open()
        running.decode.model.gate.open()
        running.prefill.faults.plan = scripted()
        running.prefill.faults.resume()
        await running.settled()
        answer = await generate(running, prompt(30))
        assert answer.ids == expected_ids(prompt(30))
        await running.settled()


async def test_after_a_cancel_at_most_the_running_step_computes_the_prompt() -> None:
    async with cluster() as running:
        call = await waits_for_prefill(running)
        call.cancel()
        await until(lambda: not running.prefill.node.engine._streams)
        running.prefill.model.gate.open()
        await running.settled()
        assert running.prefill.model.num_computed_tokens == Shape().max_step_tokens


async def test_blocks_of_a_stalled_push_stay_in_quarantine_until_it_ended() -> None:
    async with cluster() as running:
        call = await has_a_stalled_push(running)
        call.cancel()
        await until(lambda: not running.decode.servicer.num_live)
        assert (await running.decode.ledger()).quarantined == 8
        assert (await running.prefill.ledger()).leased == 8
        assert (running.decode.servicer.num_live, running.prefill.servicer.num_live) == (0, 1)
        running.prefill.faults.resume()
        await running.settled()
        await until(lambda: running.decode.counted("stale_notices") == 4)
        assert running.decode.counted("quarantined_blocks") == 8


async def test_quarantined_blocks_are_not_given_to_others() -> None:
    async with cluster(shape=Shape(num_blocks=16)) as running:
        call = await has_a_stalled_push(running)
        call.cancel()
        await until(lambda: not running.decode.servicer.num_live)
        running.prefill.faults.plan = scripted()
        others = [await generate(running, prompt(20, seed=seed)) for seed in range(1, 4)]
        assert (await running.decode.ledger()).quarantined == 8
        running.prefill.faults.resume()
        await running.settled()
        for seed, answer in enumerate(others, 1):
            assert answer.ids == expected_ids(prompt(20, seed=seed))


async def test_bytes_that_land_late_harm_nobody() -> None:
    """The blocks of a given-up push are all overwritten while another sequence runs beside them."""
    async with cluster(shape=Shape(num_blocks=24)) as running:
        call = await has_a_stalled_push(running)
        call.cancel()
        running.prefill.faults.plan = scripted()
        running.decode.model.gate.close()
        other = begin(running, prompt(30, seed=2))
        await other.read_tokens(1)
        running.prefill.faults.resume()
        await until(lambda: running.decode.counted("stale_notices") == 4)
        running.decode.model.gate.open()
        assert (await other.finish()).ids == expected_ids(prompt(30, seed=2))
        await running.settled()
