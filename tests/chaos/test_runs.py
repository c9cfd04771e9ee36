"""Gateways die or stand still in the middle of a streamed run: another goes on, and nobody can tell from the log.

The short form has a worker in this process that waits while a gateway is hit; the long one has real workers.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.chaos.conftest import Say
from tests.chaos.gateways import Gateway, StoredCluster
from tests.gateway.runs.client import Seen, names, text_of

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(900)]
QUESTION = "Tell me a long story about a fox who wants to cross a river."
NUM_TOKENS = 256
MOMENTS = [40, *(pytest.param(number, marks=pytest.mark.chaos_long) for number in (1, 150))]
"""Characters that a client has seen when its gateway is hit."""


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happens to."""

    assistant: str
    events: list[Seen]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def undisturbed(stored: StoredCluster) -> AsyncIterator[Undisturbed]:
    async with stored.gateways(1) as [gateway]:
        name = (await gateway.get("/v1/models"))["data"][0]["id"]
        assistant = (await gateway.post("/v1/assistants", model=name, temperature=0))["id"]
        events, _ = await begun(gateway, assistant, num_characters=None)
    assert len(text_of(events)) > 160
    assert names(events)[-1] in ("run.completed", "run.incomplete")
    yield Undisturbed(assistant, events)


async def begun(gateway: Gateway, assistant: str, *, num_characters: int | None) -> tuple[list[Seen], str]:
    """What a client has seen of a new run when so much text came, and the path of the run."""
    thread, seen = await gateway.thread(QUESTION), []
    body = {"assistant_id": assistant, "stream": True, "max_completion_tokens": NUM_TOKENS}
    async with gateway.stream("POST", f"/v1/threads/{thread}/runs", json=body) as events:
        async for event in events:
            seen.append(event)
            if num_characters is not None and len(text_of(seen)) >= num_characters:
                break
    return seen, f"/v1/threads/{thread}/runs/{seen[0].data['id']}"


def shape(events: list[Seen]) -> list[str]:
    told = names(events)
    return [name for place, name in enumerate(told) if name != "message.delta" or told[place - 1] != name]


def assert_undisturbed(undisturbed: Undisturbed, events: list[Seen], run: Any) -> None:
    expected = undisturbed.events
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert shape(events) == shape(expected)
    assert text_of(events) == text_of(expected)
    assert run == events[-1].data
    assert run["usage"]["completion_tokens"] == expected[-1].data["usage"]["completion_tokens"]


@pytest.mark.parametrize("num_characters", MOMENTS)
async def test_a_killed_gateway_costs_no_event(
    stored: StoredCluster, undisturbed: Undisturbed, num_characters: int, say: Say
) -> None:
    stored.hold(num_characters)
    async with stored.gateways() as [first, second]:
        seen, path = await begun(first, undisturbed.assistant, num_characters=num_characters)
        watched = asyncio.create_task(second.events(path, 0))
        first.process.kill()
        rest = await second.events(path, seen[-1].number)
        run = await second.settled(path)

        assert_undisturbed(undisturbed, [*seen, *rest], run)
        for after in range(len(seen) + len(rest) + 1):
            assert await second.events(path, after) == [*seen, *rest][after:]
        assert await watched == [*seen, *rest]
        assert second.process.events("job.taken", job=run["id"])
        say(f"killed after {len(seen)} events, {len(rest)} came from another gateway")


@pytest.mark.parametrize("num_characters", MOMENTS)
async def test_a_gateway_that_wakes_up_writes_nothing_more(
    stored: StoredCluster, undisturbed: Undisturbed, num_characters: int, say: Say
) -> None:
    stored.hold(num_characters)
    async with stored.gateways() as [first, second]:
        seen, path = await begun(first, undisturbed.assistant, num_characters=num_characters)
        first.process.pause()
        run = await second.settled(path)
        log = await second.events(path, 0)
        stored.go_on()  # what the worker says now reaches the first gateway as soon as that wakes up
        first.process.resume()
        await first.process.wait_until(
            lambda: bool(
                first.process.events("job.left", job=run["id"]) + first.process.events("job.lost", job=run["id"])
            ),
            "end of its work on the run",
        )

        assert_undisturbed(undisturbed, log, run)
        assert log[: len(seen)] == seen
        assert await first.events(path, 0) == await second.events(path, 0) == log
        assert await first.settled(path) == await second.settled(path) == run
        say(f"stopped after {len(seen)} events of {len(log)}")


async def test_a_leaving_gateway_hands_its_run_over(stored: StoredCluster, undisturbed: Undisturbed) -> None:
    stored.hold(20)
    async with stored.gateways() as [first, second]:
        seen, path = await begun(first, undisturbed.assistant, num_characters=20)
        assert await first.process.terminate() == 0
        rest = await second.events(path, seen[-1].number)

        assert_undisturbed(undisturbed, [*seen, *rest], await second.settled(path))
