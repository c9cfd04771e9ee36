"""A full gateway as clients see it: 429 with Retry-After, never a broken stream; priorities; fair turns."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from services.errors import Draining, NoDecodeWorker, Overloaded, PoolExhausted, StateUnavailable, TandemError
from services.gateway.web.errors import headers_of
from services.gateway.web.replies import error_reply
from tests.gateway.twins import END_ID, Script, World, chat_body, member, tokens, world


@dataclass
class Crowd:
    """Callers with keys of their own, and one request that holds the only turn until ``w.decode.release`` is set."""

    w: World
    keys: dict[str, str] = field(default_factory=dict)
    calls: "list[asyncio.Task[httpx.Response]]" = field(default_factory=list)

    async def post(self, project: str = "team", **changes: Any) -> httpx.Response:
        if project not in self.keys:
            self.keys[project] = await self.w.keys.create(project)
            await self.w.gateway.keys.refresh()
        headers = {"authorization": f"Bearer {self.keys[project]}"}
        return await self.w.post("/v1/chat/completions", chat_body(**changes), headers=headers)

    async def enqueue(self, project: str = "team", **changes: Any) -> "asyncio.Task[httpx.Response]":
        """Send one request and wait until it waits."""
        waiting = self.num_waiting
        call = asyncio.create_task(self.post(project, **changes))
        self.calls.append(call)
        async with asyncio.timeout(30):
            while self.num_waiting == waiting:
                await asyncio.sleep(0.001)
        return call

    @property
    def num_waiting(self) -> float:
        return self.w.metrics.get_sample_value("tandem_requests_waiting") or 0.0


@asynccontextmanager
async def full(**settings: Any) -> AsyncIterator[Crowd]:
    """A gateway whose only turn is taken."""
    async with world(max_concurrent_requests=1, **settings) as w:
        crowd = Crowd(w)
        w.decode.first = [Script([*tokens("Paris"), END_ID], hang_after=0)]
        first = asyncio.create_task(crowd.post("first"))
        await w.decode.hanging.wait()
        try:
            yield crowd
        finally:
            w.decode.release.set()
            answers = await asyncio.gather(first, *crowd.calls)
        assert answers[0].status_code == 200


def check_refusal(response: httpx.Response) -> None:
    assert response.status_code == 429
    assert 1 <= int(response.headers["retry-after"]) <= 60
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_finds_the_queue_full_costs_nothing(stream: bool) -> None:
    async with full(max_queue=2) as crowd:
        await crowd.enqueue("a")
        await crowd.enqueue("b")
        response = await crowd.post("c", stream=stream)
        assert len(crowd.w.decode.requests) == 1
    check_refusal(response)


async def test_a_project_that_filled_its_part_of_the_queue_leaves_the_rest_to_others() -> None:
    async with full(max_queue=4) as crowd:
        await crowd.enqueue("crowd")
        await crowd.enqueue("crowd")
        refused = await crowd.post("crowd")
        await crowd.enqueue("single")
    check_refusal(refused)
    assert [call.result().status_code for call in crowd.calls] == [200, 200, 200]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_that_does_not_come_is_429_and_not_the_beginning_of_a_stream(stream: bool) -> None:
    async with full(queue_timeout_s=2.5, keep_alive_s=2.0) as crowd:
        response = await crowd.post("late", stream=stream)
    check_refusal(response)
    counted = crowd.w.metrics.get_sample_value("tandem_admission_refusals_total", {"reason": "timeout"})
    assert counted == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_full_workers_are_429(stream: bool) -> None:
    async with world(queue_timeout_s=0.05) as w:
        w.decode.default = Script(refuse=PoolExhausted("no blocks"))
        response = await w.chat(stream=stream)
        counted = w.metrics.get_sample_value("tandem_admission_refusals_total", {"reason": "workers_full"})
    check_refusal(response)
    assert counted == 1


async def test_more_open_requests_than_allowed_are_refused_unread_but_health_is_answered() -> None:
    async with world(max_open_requests=1) as w:
        w.decode.first = [Script([*tokens("Paris"), END_ID], hang_after=0)]
        first = asyncio.create_task(w.chat())
        await w.decode.hanging.wait()
        refused, health = await w.chat(), await w.client.get("/livez")
        w.decode.release.set()
        assert (await first).status_code == 200
        assert (await w.chat()).status_code == 200
    check_refusal(refused)
    assert health.status_code == 200
    assert w.metrics.get_sample_value("tandem_admission_refusals_total", {"reason": "too_many_open"}) == 1


async def test_no_more_is_sent_to_workers_than_they_run_at_once() -> None:
    async with world(members=[member("d1", max_sequences=2)]) as w:
        w.decode.default = Script([*tokens("Paris"), END_ID], hang_after=0)
        calls = [asyncio.create_task(w.chat()) for _ in range(5)]
        async with asyncio.timeout(30):
            while w.metrics.get_sample_value("tandem_requests_waiting") != 3:
                await asyncio.sleep(0.001)
        assert len(w.decode.requests) == 2
        w.decode.release.set()
        answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [200] * 5


async def test_priority_orders_the_waiting_requests_of_one_project() -> None:
    async with full() as crowd:
        for priority in (5, None, -5, 0):
            await crowd.enqueue("team", max_tokens=20 + (priority or 0), priority=priority)
    sent = [request.sampling.max_tokens for request in crowd.w.decode.requests[1:]]
    assert sent == [15, 20, 20, 25]


async def test_a_project_with_many_requests_is_served_in_turns_with_one_that_has_few() -> None:
    async with full(max_queue=40) as crowd:
        for _ in range(12):
            await crowd.enqueue("crowd")
        for _ in range(3):
            await crowd.enqueue("few")
    order = [request.project for request in crowd.w.decode.requests[1:]]
    assert sorted(order[:6]) == ["crowd"] * 3 + ["few"] * 3


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Overloaded("full"), 429),
        (Overloaded("full", retry_after_s=0.01), 429),
        (Overloaded("full", retry_after_s=1e9), 429),
        (PoolExhausted("full"), 429),
        (NoDecodeWorker("none"), 503),
        (Draining("leaving"), 503),
        (StateUnavailable("away"), 503),
    ],
)
def test_every_refusal_says_when_to_come_back(error: TandemError, status: int) -> None:
    assert error_reply(error).status_code == status
    assert 1 <= int(headers_of(error)["retry-after"]) <= 60


async def test_what_was_refused_is_served_when_it_comes_back() -> None:
    async with full(max_queue=0) as crowd:
        refused = await crowd.post("team")
        crowd.w.decode.release.set()
        statuses: Sequence[int] = []
        async with asyncio.timeout(30):
            while not statuses or statuses[-1] == 429:
                statuses = [*statuses, (await crowd.post("team")).status_code]
    check_refusal(refused)
    assert statuses[-1] == 200
