"""With streams all the time: flipped bits over NIXL, a Redis that dies, and a restart of every worker."""

import asyncio
import os
import signal

import pytest
from redis.asyncio import Redis

from services.faults.steps import DECODE, PREFILL
from tests.chaos.conftest import Say
from tests.chaos.fleet import NUM_QUESTIONS, Fleet
from tests.chaos.load import Load

pytestmark = [pytest.mark.chaos_long, pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(1200)]
FLEET = {PREFILL: 2, DECODE: 2}
NUM_STREAMS = 32
REST_TIMEOUT_S = 120.0
CORRUPTIONS = [
    *(("transfer.push.posted", "corrupt", nth) for nth in (1, 2, 3)),
    *(("transfer.push.posted", "swap", nth) for nth in (1, 2)),
    *(("transfer.notice.received", "corrupt", nth) for nth in (1, 2, 3)),
]
"""Where and what; the prompts of the fleet have three pushes each."""


async def test_a_bit_flipped_on_the_way_is_refused_once_and_changes_no_token(fleet: Fleet, say: Say) -> None:
    for step, action, nth in CORRUPTIONS:
        before = await fleet.integrity_failures()
        role = PREFILL if step == "transfer.push.posted" else DECODE
        victim = fleet.members(role)[0]
        fleet.caller.busy = [worker.member_id for worker in fleet.members(role) if worker is not victim]
        await fleet.trusted()
        fleet.arm([victim], {"step": step, "action": action, "nth": nth})
        answer = await fleet.caller.ask(fleet.question(nth))
        fleet.check(nth, answer.token_ids)
        assert len(victim.events("faults.injected", step=step, action=action, occurrence=nth)) == 1
        fleet.disarm()
        await fleet.audit()
        refused = await fleet.integrity_failures() - before
        assert sum(refused.values()) >= 1
        assert sum(count for kind, count in refused.items() if kind != "stale") <= 1
        assert answer.proof is not None
        say(f"{action} at {step} {nth}: path {answer.proof.path}, refused {dict(refused)}, no token changed")
    fleet.caller.busy = ()


async def test_redis_killed_and_restarted_disturbs_no_stream(fleet: Fleet, say: Say) -> None:
    redis, load = fleet.cluster.redis, Load(fleet, NUM_STREAMS // 2)
    workers = fleet.living()
    async with load.running():
        await answers(load, NUM_QUESTIONS)
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGKILL)
        await redis.wait_exit()
        before = load.num_answers
        for worker in workers:
            await worker.wait_event("registry.away")
        await answers(load, before + NUM_STREAMS)
        served = load.num_answers - before
        joined = {worker.process.pid: len(worker.events("member.joined")) for worker in workers}
        await redis.start()
        async with Redis.from_url(redis.url) as client:
            await client.flushall()
        for worker in workers:
            await worker.wait_until(
                lambda worker=worker: len(worker.events("member.joined")) > joined[worker.process.pid],  # type: ignore[misc]
                "second joining",
            )
        await answers(load, load.num_answers + NUM_STREAMS)
    await fleet.cluster.wait_members(workers)
    assert load.num_replayed == 0
    await fleet.audit()
    say(f"Redis killed: {served} streams answered without it, {load.num_answers} in all, 0 replayed, no token changed")


async def test_a_restart_of_every_worker_ends_no_stream(fleet: Fleet, say: Say) -> None:
    load, restarted = Load(fleet, NUM_STREAMS), list(fleet.living())
    async with load.running():
        await answers(load, NUM_STREAMS)
        for worker in restarted:
            await fleet.ready(**{worker.role: FLEET[worker.role] + 1})
            assert await worker.terminate(timeout_s=90.0) == 0
            drained = worker.events("worker.drained")
            assert [event["remaining"] for event in drained] == [0]
            say(f"{worker} drained and ended, {load.num_answers} streams so far")
            await answers(load, load.num_answers + NUM_STREAMS)
    assert not {worker.process.pid for worker in restarted} & {worker.process.pid for worker in fleet.living()}
    await fleet.audit()
    say(
        f"{len(restarted)} workers restarted: {load.num_answers} streams, {load.num_replayed} replayed, "
        f"{fleet.tokens_compared} tokens compared, 0 errors, 0 truncated, 0 changed"
    )


async def answers(load: Load, count: int) -> None:
    """Wait until so many streams ended."""
    async with asyncio.timeout(REST_TIMEOUT_S):
        while load.num_answers < count:
            await asyncio.sleep(0.05)
