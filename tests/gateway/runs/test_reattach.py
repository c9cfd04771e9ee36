"""Clients that come back: each event once, from any position, on any gateway."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.gateway.store.kinds import RUN
from tests.gateway.apis.stored import refusal
from tests.gateway.runs.client import names, seen
from tests.gateway.runs.live import live
from tests.gateway.runs.pair import Pair, long_answer, pair, until_hanging


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair(tmp_path, run_flush_s=0) as gateways:
        yield gateways


async def test_an_ended_run_is_read_from_every_position(both: Pair) -> None:
    thread = await both.a.thread()
    whole = await both.a.stream(thread, await both.a.assistant())
    run = whole[-1].data["id"]

    assert len(whole) >= 11
    for after in range(len(whole) + 1):
        assert await both.b.events(thread, run, after) == whole[after:]


async def test_a_running_one_is_read_from_every_position_while_it_goes_on(both: Pair) -> None:
    both.first.decode.first = [long_answer(hang_after=20)]
    thread, assistant = await both.a.thread(), await both.a.assistant()
    path = f"/v1/threads/{thread}/runs"
    async with live(both.first, "POST", path, assistant_id=assistant, stream=True) as stream:
        await until_hanging(both.first, 20)
        [run] = [each["id"] for each in (await both.a.get(path))["data"]]
        last = int(stream.text.rsplit("id: ", 1)[1].split("\n")[0])
        readers = [
            asyncio.create_task(caller.events(thread, run, after))
            for caller in (both.a, both.b)
            for after in range(last + 1)
        ]
        both.first.decode.release.set()
        logs = [await reader for reader in readers]
        await stream.until("[DONE]")

    whole = seen(stream.text)
    assert [event.number for event in whole] == list(range(1, len(whole) + 1))
    for after, log in enumerate(logs[: last + 1]):
        assert log == logs[after + last + 1] == whole[after:]


async def test_a_client_that_leaves_does_not_end_the_run(both: Pair) -> None:
    both.first.decode.first = [long_answer(hang_after=20)]
    thread, assistant = await both.a.thread(), await both.a.assistant()
    path = f"/v1/threads/{thread}/runs"
    async with live(both.first, "POST", path, assistant_id=assistant, stream=True) as stream:
        await stream.until("thread.message.delta")
        cut = stream.text
    [run] = [each["id"] for each in (await both.a.get(path))["data"]]
    both.first.decode.release.set()
    ended = await both.a.settled(thread, run)
    last = int(cut.rsplit("id: ", 1)[1].split("\n")[0])
    headers = [(b"last-event-id", str(last).encode())]
    async with live(both.second, "GET", f"{path}/{run}/events", headers=headers) as again:
        await again.until("[DONE]")

    assert ended["status"] == "completed"
    first, rest = seen(cut + "event: done\ndata: [DONE]\n\n"), seen(again.text)
    assert [event.number for event in (*first, *rest)] == list(range(1, len(first) + len(rest) + 1))
    assert names(rest)[-1] == "run.completed"


@pytest.mark.parametrize(("url", "header"), [(2, 5), (5, 2), (0, 5)])
async def test_who_reconnects_goes_on_behind_the_last_event_that_came(both: Pair, url: int, header: int) -> None:
    thread = await both.a.thread()
    whole = await both.a.stream(thread, await both.a.assistant())
    path = f"/v1/threads/{thread}/runs/{whole[-1].data['id']}/events"
    params, headers = {"starting_after": url}, {"last-event-id": str(header)}

    assert seen(await both.b.w.client.get(path, params=params, headers=headers)) == whole[5:]
    refused = await both.b.w.client.get(path, params=params, headers={"last-event-id": "x"})
    assert (refusal(refused)[0], "'Last-Event-ID'" in refusal(refused)[1]["message"]) == (400, True)


@pytest.mark.parametrize("position", ["-1", "x", "1.5", "99999999999999999999", "500"])
async def test_a_position_that_no_event_has_is_refused(both: Pair, position: str) -> None:
    thread = await both.a.thread()
    run = (await both.a.stream(thread, await both.a.assistant()))[-1].data["id"]
    path = f"/v1/threads/{thread}/runs/{run}/events"

    status, error = refusal(await both.first.client.get(path, params={"starting_after": position}))
    assert (status, error["param"]) == (400, "starting_after")


async def test_events_that_are_not_kept_any_more_are_said_to_be_gone(both: Pair) -> None:
    thread = await both.a.thread()
    run = (await both.a.stream(thread, await both.a.assistant()))[-1].data["id"]
    async with both.first.gateway.jobs._storage._objects.state.reaching() as client:
        [key] = [key for key in await client.keys("*/events") if isinstance(key, bytes)]
        retention_s = await client.ttl(key)
        await client.delete(key)

    assert 6 * 86400 < retention_s <= 7 * 86400
    status, error = refusal(await both.second.client.get(f"/v1/threads/{thread}/runs/{run}/events"))
    assert (status, error["message"]) == (404, f"The events of the run '{run}' are not kept any more.")
    assert RUN.ref(run).id in (await both.b.get(f"/v1/threads/{thread}/runs/{run}"))["id"]


async def test_a_thread_that_is_deleted_ends_its_run_and_its_streams(both: Pair) -> None:
    both.first.decode.first = [long_answer(hang_after=5)]
    thread, assistant = await both.a.thread(), await both.a.assistant()
    path = f"/v1/threads/{thread}/runs"
    async with live(both.first, "POST", path, assistant_id=assistant, stream=True) as stream:
        await stream.until("thread.message.delta")
        await both.second.client.delete(f"/v1/threads/{thread}")
        both.first.decode.release.set()
        await stream.until("[DONE]")
    both.clock.advance(700)
    await both.second.gateway.sweeper.sweep()

    assert "event: error\n" in stream.text
    assert both.first.gateway.jobs.held() == both.second.gateway.jobs.held() == {}
    assert await both.second.gateway.sweeper._storage.due(2**50, 10) == []
