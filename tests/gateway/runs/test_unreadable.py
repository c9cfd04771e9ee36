"""A job whose private state no gateway can read is ended all the same: when its client says so, or its time is over."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.gateway.redis_state import RedisState
from services.gateway.store.keys import attached_key, record_key
from services.gateway.store.kinds import RESPONSE, RUN, Ref
from tests.gateway.responses.client import Caller as ResponseCaller
from tests.gateway.responses.client import said
from tests.gateway.runs.client import names
from tests.gateway.runs.pair import LONG, Pair, long_answer, pair, until_hanging

EXPIRY_S = 600.0


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair(tmp_path, run_flush_s=0, run_expiry_s=EXPIRY_S, response_expiry_s=EXPIRY_S) as gateways:
        yield gateways


async def spoil(both: Pair, job: Ref) -> None:
    """Let the gateway that works on a job die, and make what it kept with it unreadable."""
    await both.first.gateway.jobs.close()
    state = RedisState(both.redis.url, 30.0)
    async with state.reaching() as client:
        await client.hset(record_key("default", job), "private", b'{"plan": 1, "job": 1}')
    await state.close()


async def spoiled_run(both: Pair) -> tuple[str, str]:
    """Thread and run."""
    both.first.decode.first = [long_answer(hang_after=9)]
    thread = await both.a.thread()
    run = (await both.a.run(thread, await both.a.assistant()))["id"]
    await until_hanging(both.first, 9)
    await spoil(both, RUN.ref(run))
    return thread, run


async def assert_ended(both: Pair, thread: str, run: str, status: str) -> None:
    """The run, its step and its message are closed, and its thread is free."""
    [step] = (await both.b.get(f"/v1/threads/{thread}/runs/{run}/steps"))["data"]
    message = (await both.b.messages(thread))[-1]
    events = await both.b.events(thread, run)
    assert (step["status"], message["status"]) == (status, "incomplete")
    assert LONG.startswith(message["content"][0]["text"]["value"])
    assert message["content"][0]["text"]["value"]
    assert names(events)[-1] == f"run.{status}"
    again = await both.b.run(thread, await both.b.assistant())
    assert (await both.b.settled(thread, again["id"]))["status"] == "completed"


async def test_a_run_that_cannot_be_read_can_be_cancelled(both: Pair) -> None:
    thread, run = await spoiled_run(both)
    assert (await both.b.post(f"/v1/threads/{thread}/runs/{run}/cancel"))["status"] == "cancelling"
    assert (await both.b.get(f"/v1/threads/{thread}/runs/{run}"))["status"] == "cancelled"
    await assert_ended(both, thread, run, "cancelled")


async def test_a_run_that_cannot_be_read_is_left_to_others_until_it_expires(both: Pair) -> None:
    thread, run = await spoiled_run(both)
    await both.lapse()
    assert (await both.b.get(f"/v1/threads/{thread}/runs/{run}"))["status"] == "in_progress"

    both.clock.advance(EXPIRY_S)
    await both.second.gateway.sweeper.sweep()
    await both.b.settled(thread, run, "expired")
    await assert_ended(both, thread, run, "expired")


async def test_an_expired_run_whose_log_cannot_be_read_either_is_told_of(
    both: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    thread, run = await spoiled_run(both)
    state = RedisState(both.redis.url, 30.0)
    async with state.reaching() as client:
        key = attached_key("default", RUN.ref(run), "events")
        await client.delete(key)
        await client.xadd(key, {"no": "event"}, id="1-0")
    await state.close()
    both.clock.advance(EXPIRY_S + 1)
    await both.second.gateway.sweeper.sweep()
    async with asyncio.timeout(60):
        while "job.not_ended" not in (messages := [record.getMessage() for record in caplog.records]):
            await asyncio.sleep(0.01)
    assert "job.unreadable" in messages
    assert (await both.b.get(f"/v1/threads/{thread}/runs/{run}"))["status"] == "in_progress"


@pytest.mark.parametrize("ending", ["cancelled", "failed"])
async def test_a_response_that_cannot_be_read_ends_with_what_it_said(both: Pair, ending: str) -> None:
    both.first.decode.first = [long_answer(hang_after=9)]
    a, b = ResponseCaller(both.first), ResponseCaller(both.second)
    response: Any = (await a.create(background=True))["id"]
    await until_hanging(both.first, 9)
    await spoil(both, RESPONSE.ref(response))
    if ending == "cancelled":
        await both.b.post(f"/v1/responses/{response}/cancel")
    else:
        both.clock.advance(EXPIRY_S + 1)
        await both.second.gateway.sweeper.sweep()
    ended = await b.settled(response)
    assert ended["status"] == ending
    assert said(ended) and LONG.startswith(said(ended))
