"""A response is a durable job: the same text and the same events, whatever becomes of its gateway and its client."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.gateway.store.kinds import RESPONSE
from tests.gateway.apis.stored import refusal
from tests.gateway.responses.client import Caller, Seen, said, seen, shape, text_of
from tests.gateway.runs.live import live
from tests.gateway.runs.pair import LONG, Pair, long_answer, pair, until_hanging
from tests.gateway.twins import MODEL, tokens

DAY_S = 86400.0


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair(tmp_path, run_flush_s=0) as gateways:
        yield gateways


def a(both: Pair) -> Caller:
    return Caller(both.first)


def b(both: Pair) -> Caller:
    return Caller(both.second)


async def interrupted(both: Pair, after: int, **body: object) -> str:
    """A response in the background, with its worker silent after some tokens."""
    both.first.decode.first = [long_answer(hang_after=after)]
    response = await a(both).create(background=True, **body)
    await until_hanging(both.first, after)
    return str(response["id"])


def assert_whole(events: list[Seen], expected: list[Seen]) -> None:
    assert [event.number for event in events] == list(range(len(events)))
    assert shape(events) == shape(expected)
    assert text_of(events) == text_of(expected) == LONG


async def test_a_response_in_the_background_is_polled_and_read(both: Pair) -> None:
    response = await a(both).create(background=True)
    ended = await b(both).settled(response["id"])
    events = await b(both).events(response["id"])

    assert (response["status"], response["output"]) == ("queued", [])
    assert (ended["status"], said(ended)) == ("completed", LONG)
    assert shape(events)[:3] == ["created", "queued", "in_progress"]
    assert events[-1].data["response"] == ended


@pytest.mark.parametrize("after", [0, 1, 7, 30, len(tokens(LONG))])
async def test_a_killed_gateway_leaves_its_response_to_another(both: Pair, after: int) -> None:
    expected = await b(both).stream(background=True)
    response = await interrupted(both, after)
    await both.first.gateway.jobs.close()
    await both.lapse()

    ended = await b(both).settled(response)
    assert (ended["status"], ended["usage"]["output_tokens"]) == ("completed", len(tokens(LONG)) + 1)
    assert_whole(await b(both).events(response), expected)
    resumed, first = both.second.decode.requests[-1], both.first.decode.requests[-1]
    assert list(resumed.resumed_output_token_ids) == list(tokens(LONG))[:after]
    assert (resumed.sampling.seed, resumed.prompt_token_ids) == (first.sampling.seed, first.prompt_token_ids)


async def test_a_gateway_that_stood_still_writes_nothing_more(both: Pair) -> None:
    response = await interrupted(both, after=9)
    await both.lapse()
    await b(both).settled(response)
    log = await b(both).events(response)
    both.first.decode.release.set()
    async with asyncio.timeout(30):
        while both.first.gateway.jobs.held():
            await asyncio.sleep(0.005)

    assert await a(both).events(response) == log
    assert text_of(log) == LONG


async def test_a_conversation_has_each_item_once_after_a_take_over(both: Pair) -> None:
    conversation = await a(both).conversation({"role": "user", "content": "hello"})
    response = await interrupted(both, 9, conversation=conversation)
    await both.first.gateway.jobs.close()
    await both.lapse()
    await b(both).settled(response)
    items = await b(both).items(conversation)

    assert ["".join(part["text"] for part in item["content"]) for item in items] == ["hello", "hello", LONG]
    assert said(await b(both).create("hello", conversation=conversation)) == LONG


async def test_a_response_is_read_from_every_position_while_it_goes_on(both: Pair) -> None:
    response = await interrupted(both, after=12)
    begun = [
        entry.number for entry in await both.second.gateway.jobs._storage.of("default").read(RESPONSE.ref(response), 0)
    ]
    positions = [None, *range(len(begun))]
    readers = [asyncio.create_task(caller.events(response, at)) for caller in (a(both), b(both)) for at in positions]
    both.first.decode.release.set()
    logs = [await reader for reader in readers]
    whole = await a(both).events(response)

    assert [event.number for event in whole] == list(range(len(whole)))
    for place, log in enumerate(logs):
        at = positions[place % len(positions)]
        assert log == (whole if at is None else whole[at + 1 :])


async def test_a_client_that_leaves_does_not_end_a_stored_response(both: Pair) -> None:
    both.first.decode.first = [long_answer(hang_after=20)]
    async with live(both.first, "POST", "/v1/responses", model=MODEL, input="hello", stream=True) as stream:
        await stream.until("output_text.delta")
        cut = seen(stream.text)
    response = cut[0].data["response"]["id"]
    both.first.decode.release.set()
    rest = await b(both).events(response, cut[-1].number)

    assert [event.number for event in (*cut, *rest)] == list(range(len(cut) + len(rest)))
    assert text_of([*cut, *rest]) == LONG


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_a_response_that_is_not_stored(both: Pair, stream: bool) -> None:
    both.first.decode.first = [long_answer(hang_after=20)]
    body: dict[str, Any] = {"model": MODEL, "input": "hello", "store": False, "stream": stream}
    async with live(both.first, "POST", "/v1/responses", **body) as answer:
        await both.first.decode.hanging.wait()
    async with asyncio.timeout(30):
        while both.first.gateway.jobs.held():
            await asyncio.sleep(0.005)

    assert LONG not in answer.text and "response.completed" not in answer.text
    assert both.first.decode.num_closed == len(both.first.decode.requests)
    assert await both.first.gateway.sweeper._storage.due(2**50, 10) == []


async def test_cancelling(both: Pair) -> None:
    response = await interrupted(both, after=12)
    path = f"/v1/responses/{response}/cancel"
    cancelled = await b(both).post(path)
    again = await a(both).post(path)
    both.clock.advance(5)
    await both.first.gateway.sweeper.renew()  # it finds its lease gone
    events = await a(both).events(response)
    synchronous = await a(both).create()

    assert (cancelled["status"], cancelled["output"][0]["status"]) == ("cancelled", "incomplete")
    assert LONG.startswith(said(cancelled)) and said(cancelled) != ""
    assert again == cancelled == events[-1].data["response"]
    assert shape(events)[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert both.first.gateway.jobs.held() == {}
    refused = refusal(await both.first.post(f"/v1/responses/{synchronous['id']}/cancel", {}))
    assert (refused[0], refused[1]["message"]) == (400, "Cannot cancel a synchronous response.")


async def test_a_response_whose_time_is_over_fails(both: Pair) -> None:
    response = await interrupted(both, after=12)
    await both.first.gateway.jobs.close()
    both.clock.advance(601)
    await both.second.gateway.sweeper.sweep()
    ended = await b(both).settled(response)

    assert (ended["status"], ended["error"]["code"]) == ("failed", "server_error")
    assert ended["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("position", ["-1", "x", "1.5", "99999999999999999999", "500"])
async def test_a_position_that_no_event_has_is_refused(both: Pair, position: str) -> None:
    response = await a(both).create()
    params = {"stream": "true", "starting_after": position}

    status, error = refusal(await both.first.client.get(f"/v1/responses/{response['id']}", params=params))
    assert (status, error["param"]) == (400, "starting_after")
    if position == "500":
        last = (await a(both).events(response["id"]))[-1]
        assert error["message"] == f"The last event of the response '{response['id']}' is number {last.number}."


async def test_a_response_is_kept_for_seven_days_after_the_last_that_went_on_from_it(both: Pair) -> None:
    upkeep = both.second.gateway.files.upkeep
    first = await a(both).create()
    both.clock.advance(5 * DAY_S)
    await upkeep.sweep()
    second = await a(both).create(previous_response_id=first["id"])
    both.clock.advance(5 * DAY_S)
    await upkeep.sweep()
    third = await a(both).create(previous_response_id=second["id"])
    both.clock.advance(8 * DAY_S)
    conversation = await a(both).conversation({"role": "user", "content": "hello"})
    await upkeep.sweep()
    gone = [await both.first.client.get(f"/v1/responses/{each['id']}") for each in (first, second, third)]
    both.clock.advance(100 * DAY_S)
    await upkeep.sweep()

    assert third["status"] == "completed"
    assert [each.status_code for each in gone] == [404, 404, 404]
    assert len(await a(both).items(conversation)) == 1


async def test_a_response_waits_in_the_background_for_a_worker(both: Pair) -> None:
    refused = await a(both).refused(input="x", model="tiny/other")
    await both.first.registry.leave("d1")
    await both.first.view.refresh()
    unavailable = await a(both).refused(input="hello")
    response = await a(both).create(background=True)
    async with asyncio.timeout(30):
        while not both.first.gateway.jobs.held():
            await asyncio.sleep(0.005)
    await both.first.gateway.jobs.close()
    await both.lapse()

    assert (refused["status"], unavailable["status"], response["status"]) == (404, 503, "queued")
    assert said(await b(both).settled(response["id"])) == LONG


async def test_what_is_not_over_is_not_gone_on_from(both: Pair) -> None:
    response = await interrupted(both, after=5)
    refused = await b(both).refused(input="x", previous_response_id=response)

    assert (refused["status"], refused["param"]) == (400, "previous_response_id")
    assert (
        refused["message"] == f"Previous response with id '{response}' is in_progress; wait for its end, or cancel it."
    )
