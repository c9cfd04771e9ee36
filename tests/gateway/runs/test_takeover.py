"""Another gateway goes on with a run: the same text, each event once, whatever became of the first gateway."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.runs.client import Caller, Seen, names, text_of
from tests.gateway.runs.pair import LONG, Pair, long_answer, pair, until_hanging
from tests.gateway.twins import tokens


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair(tmp_path) as gateways:
        yield gateways


async def interrupted(both: Pair, after: int) -> tuple[str, str]:
    """Thread and run that the first gateway works on, with its worker silent after some tokens."""
    both.first.decode.first = [long_answer(hang_after=after)]
    thread = await both.a.thread()
    run = await both.a.run(thread, await both.a.assistant())
    await until_hanging(both.first, after)
    return thread, run["id"]


async def undisturbed(caller: Caller) -> list[Seen]:
    return await caller.stream(await caller.thread(), await caller.assistant())


def shape(events: list[Seen]) -> list[str]:
    """The names of events, deltas that follow each other as one."""
    told = names(events)
    return [name for place, name in enumerate(told) if name != "message.delta" or told[place - 1] != name]


def assert_whole(events: list[Seen], expected: list[Seen]) -> None:
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert shape(events) == shape(expected)
    assert text_of(events) == text_of(expected) == LONG


@pytest.mark.parametrize("after", [0, 1, 7, 30, len(tokens(LONG))])
async def test_a_killed_gateway_leaves_its_run_to_another(both: Pair, after: int) -> None:
    expected = await undisturbed(both.b)
    thread, run = await interrupted(both, after)
    await both.first.gateway.jobs.close()
    await both.lapse()

    ended = await both.b.settled(thread, run)
    assert (ended["status"], ended["usage"]["completion_tokens"]) == ("completed", len(tokens(LONG)) + 1)
    assert await both.a.texts(thread) == [("user", "hello"), ("assistant", LONG)]
    assert_whole(await both.b.events(thread, run), expected)
    resumed = both.second.decode.requests[-1]
    assert list(resumed.resumed_output_token_ids) == list(tokens(LONG))[:after]
    assert resumed.sampling.seed == both.first.decode.requests[-1].sampling.seed
    assert resumed.prompt_token_ids == both.first.decode.requests[-1].prompt_token_ids


async def test_a_gateway_that_stood_still_writes_nothing_more(both: Pair) -> None:
    expected = await undisturbed(both.b)
    thread, run = await interrupted(both, after=9)
    await both.lapse()
    await both.b.settled(thread, run)
    log = await both.b.events(thread, run)

    assert both.first.gateway.jobs.held()
    both.first.decode.release.set()  # its worker goes on, and with it the first gateway
    async with asyncio.timeout(30):
        while both.first.gateway.jobs.held():
            await asyncio.sleep(0.005)
    assert await both.a.events(thread, run) == log
    assert_whole(log, expected)


async def test_a_gateway_that_finds_its_lease_gone_stops_its_worker(both: Pair) -> None:
    thread, run = await interrupted(both, after=9)
    await both.lapse()
    await both.b.settled(thread, run)

    await both.first.gateway.sweeper.renew()
    assert both.first.gateway.jobs.held() == {}
    assert both.first.decode.num_closed == len(both.first.decode.requests)


async def test_a_living_gateway_keeps_its_runs(both: Pair) -> None:
    thread, run = await interrupted(both, after=9)
    for _ in range(5):
        both.clock.advance(4.0)
        await both.first.gateway.sweeper.renew()
        await both.second.gateway.sweeper.sweep()
    assert both.second.gateway.jobs.held() == {}

    both.first.decode.release.set()
    assert (await both.b.settled(thread, run))["status"] == "completed"
    assert both.second.decode.requests == []


async def test_a_leaving_gateway_hands_its_runs_over_and_streams_them_on(both: Pair) -> None:
    expected = await undisturbed(both.b)
    both.first.decode.first = [long_answer(hang_after=12)]
    thread, assistant = await both.a.thread(), await both.a.assistant()
    streaming = asyncio.create_task(both.a.stream(thread, assistant))
    await until_hanging(both.first, 12)
    await both.first.gateway.sweeper.leave()
    await both.second.gateway.sweeper.sweep()

    events = await streaming
    assert_whole(events, expected)
    assert len(both.second.decode.requests) == 2


async def test_a_leaving_gateway_without_others_ends_its_runs_itself(both: Pair) -> None:
    thread, run = await interrupted(both, after=12)
    await both.first.gateway.sweeper.leave()
    both.first.decode.release.set()

    assert (await both.a.settled(thread, run))["status"] == "completed"
    assert (await both.a.texts(thread))[-1] == ("assistant", LONG)


async def test_metadata_of_a_client_survive_the_run_and_its_move(both: Pair) -> None:
    thread, run = await interrupted(both, after=9)
    [message] = (await both.a.get(f"/v1/threads/{thread}/messages", run_id=run))["data"]
    path = f"/v1/threads/{thread}"
    await both.b.post(f"{path}/runs/{run}", metadata={"a": "1"})
    await both.b.post(f"{path}/messages/{message['id']}", metadata={"b": "2"})
    await both.first.gateway.jobs.close()
    await both.lapse()

    assert (await both.b.settled(thread, run))["metadata"] == {"a": "1"}
    assert (await both.b.get(f"{path}/messages/{message['id']}"))["metadata"] == {"b": "2"}
