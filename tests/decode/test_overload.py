"""What a worker holds is bounded, whatever its callers do: calls in progress, and tokens that nobody reads."""

import asyncio
from dataclasses import replace
from functools import partial
from itertools import count

import pytest

from services.errors import Overloaded
from services.worker import engine_thread
from services.worker.engine_thread import EngineStream, EngineThread
from tests.decode.test_reserving import spec
from tests.inprocess.client import GREEDY, begin, expected_ids, prompt
from tests.inprocess.cluster import Cluster, Shape, cluster, until

LONG = replace(GREEDY, max_tokens=200)


async def test_calls_beyond_those_that_run_and_wait_are_refused_at_once() -> None:
    async with cluster(prefills=0, shape=Shape(max_running=1), decode={"max_waiting": 2}) as running:
        running.decode.model.gate.close()
        calls = [begin(running, prompt(30, seed=number)) for number in range(3)]
        await until(lambda: running.decode.servicer.num_live == 3)
        with pytest.raises(Overloaded) as refused:
            await begin(running, prompt(30)).finish()
        assert refused.value.retry_after_s == 1.0
        running.decode.model.gate.open()
        for number, call in enumerate(calls):
            assert (await call.finish()).ids == expected_ids(prompt(30, seed=number))
        await running.settled()


async def test_the_stream_that_is_furthest_behind_is_given_up_when_too_much_is_unread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_thread, "MAX_UNREAD", 50)
    async with cluster(prefills=0) as running:
        engine, gate = running.decode.node.engine, running.decode.model.gate
        gate.close()
        slow = engine.subscribe("slow")  # its servicer never takes anything
        adding = engine.call(lambda scheduler: scheduler.add(replace(spec(running.decode, "slow"), params=LONG)))
        call = begin(running, prompt(30, seed=5), LONG)
        stepping = asyncio.create_task(step_when_read(running, slow))
        await adding
        answer = await call.finish()
        stepping.cancel()
        gate.open()
        await until(lambda: slow.num_unread == 1)
        with pytest.raises(Overloaded):
            await slow.next()
        assert answer.ids == expected_ids(prompt(30, seed=5), LONG)  # who reads is not disturbed
        assert engine.unread.count == 0
        engine.unsubscribe("slow")
        await running.settled()  # its blocks are free


async def step_when_read(running: Cluster, slow: EngineStream) -> None:
    """Let the engine go on by one step whenever everybody but ``slow`` has read everything, for ever."""
    engine = running.decode.node.engine
    for num_allowed in count(engine.num_steps + 1):
        running.decode.model.gate.allow(1)
        await until(partial(_is_read, engine, slow, num_allowed))


def _is_read(engine: EngineThread, slow: EngineStream, num_steps: int) -> bool:
    return engine.num_steps >= num_steps and engine.unread.count == slow.num_unread
