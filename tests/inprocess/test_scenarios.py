"""Many requests, cancels, faults and deaths at once: nobody gets a wrong token, and nothing is left behind."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest

from services.errors import TandemError
from services.faults.plan import Action, FaultPlan, ScriptedFault
from tests.inprocess.client import SEEDED, begin, expected_ids, prompt
from tests.inprocess.cluster import Cluster, Shape, Worker, cluster
from tests.inprocess.faults import STALL_S, scripted

NUM_REQUESTS = 24
SHARES = {
    Action.DELAY: 0.1,
    Action.STALL: 0.05,
    Action.DROP: 0.05,
    Action.CORRUPT: 0.1,
    Action.DUPLICATE: 0.1,
}
STEPS = ("transfer.push.posted", "transfer.notice.received")
MISREPORTED = ScriptedFault(step="transfer.push.done", action=Action.CORRUPT, nth=5, times=3)
HONEST = {"rate_limit_exceeded", "pool_exhausted"}
"""What a request may end with although nobody cancelled it: fullness."""


@dataclass(frozen=True)
class Plan:
    """One request of a scenario."""

    token_ids: list[int]
    max_tokens: int
    seed: int
    begins_after_s: float
    cancels_after_tokens: int | None
    num_resumed: int


def planned(randomness: random.Random) -> Plan:
    max_tokens = randomness.randint(1, 24)
    cancels = randomness.random() < 0.25
    return Plan(
        token_ids=prompt(randomness.randint(1, 70), seed=randomness.randrange(4)),
        max_tokens=max_tokens,
        seed=randomness.randrange(3),
        begins_after_s=randomness.random() * 0.2,
        cancels_after_tokens=randomness.randint(0, max_tokens) if cancels else None,
        num_resumed=randomness.randrange(max_tokens) if randomness.random() < 0.2 else 0,
    )


async def play(running: Cluster, plan: Plan, order: list[Worker]) -> str:
    """Run one request and return how it ended; its tokens are those of an undisturbed run, however far it came."""
    await asyncio.sleep(plan.begins_after_s)
    params = replace(SEEDED, seed=plan.seed, max_tokens=plan.max_tokens)
    wanted = expected_ids(plan.token_ids, params)
    resumed = wanted[: plan.num_resumed]
    call = begin(running, plan.token_ids, params, candidates=order, resumed_output_token_ids=resumed)
    try:
        if plan.cancels_after_tokens is None:
            await call.finish()
        else:
            await call.read_tokens(min(plan.cancels_after_tokens, plan.max_tokens - plan.num_resumed))
            call.cancel()
            return "cancelled"
    except TandemError as error:
        return error.code
    finally:
        ids = resumed + call.answer.ids
        assert ids == wanted[: len(ids)]
    assert ids == wanted
    return call.answer.proof.path


async def resume_now_and_then(running: Cluster) -> None:
    while True:
        await asyncio.sleep(0.02)
        for worker in [running.decode, *running.prefills]:
            worker.faults.resume()


async def replace_a_prefill_worker(running: Cluster, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await running.prefill.stop()
    await running.add_prefill()


@pytest.mark.parametrize("seed", range(6))
async def test_nobody_gets_a_wrong_token_and_nothing_is_left_behind(seed: int) -> None:
    randomness = random.Random(seed)
    shape = Shape(num_blocks=48, max_step_tokens=16)
    decode = {"prefill_step_timeout_s": 2.0, "local_prefill_tokens": 8, "reserve_timeout_s": 20.0}
    async with cluster(prefills=2, shape=shape, decode=decode) as running:
        for index, worker in enumerate([running.decode, *running.prefills]):
            worker.faults.plan = FaultPlan(
                faults=(MISREPORTED,), seed=10 * seed + index, shares=SHARES, steps=STEPS, stall_s=STALL_S
            )
        helpers = [asyncio.create_task(resume_now_and_then(running))]
        if seed % 2:
            helpers.append(asyncio.create_task(replace_a_prefill_worker(running, randomness.random() * 0.2)))
        plans = [planned(randomness) for _ in range(NUM_REQUESTS)]
        orders = [randomness.sample(running.prefills, 2) for _ in plans]
        ends = Counter(
            await asyncio.gather(*(play(running, plan, order) for plan, order in zip(plans, orders, strict=True)))
        )
        for worker in [running.decode, *running.prefills]:
            worker.faults.plan = scripted()
        await running.settled([running.decode, *running.prefills[seed % 2 :]])
        helpers[0].cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        assert ends.keys() <= HONEST | {"pd", "fallback", "local", "cancelled"}, ends
        assert ends["pd"] > 0
        assert sum(ends[code] for code in HONEST) < NUM_REQUESTS / 2
