"""Timelines are written behind the answers, and read from memory until then."""

import asyncio
from typing import Any

import pytest

from services.errors import NotFound, StateUnavailable
from services.gateway.answering.recorder import MAX_PENDING, TimelineRecorder
from services.gateway.answering.timeline import MemoryTimelineStore
from services.gateway.web.exchange import Exchange, new_token, open_exchange
from services.telemetry.clock import ManualClock
from services.telemetry.timeline import TimelineRecord
from tests.gateway.twins import world


class Store(MemoryTimelineStore):
    """A store that can hang and go away."""

    def __init__(self) -> None:
        super().__init__(ManualClock(), 900)
        self.answers = asyncio.Event()
        self.is_reachable = True
        self.num_written = 0
        self.num_defects = 0

    async def put(self, record: TimelineRecord) -> None:
        await self.answers.wait()
        if not self.is_reachable:
            raise StateUnavailable("away")
        if self.num_defects:
            self.num_defects -= 1
            raise ValueError("a defect")
        self.num_written += 1
        await super().put(record)

    async def get(self, project: str, any_id: str) -> dict[str, Any]:
        if not self.is_reachable:
            raise StateUnavailable("away")
        return await super().get(project, any_id)


class Books:
    def __init__(self, close_timeout_s: float = 30.0) -> None:
        self.store = Store()
        self.num_lost = 0
        self.recorder = TimelineRecorder(self.store, ManualClock(), close_timeout_s=close_timeout_s, on_lost=self._lose)

    def record(self) -> Exchange:
        exchange = open_exchange(new_token(), "team", ManualClock(), started_s=0.0, timeout_s=60.0)
        with self.recorder.recording(exchange):
            exchange.timeline.event("encode")
        return exchange

    def _lose(self) -> None:
        self.num_lost += 1


async def test_while_the_store_hangs_a_timeline_is_read_from_memory_by_its_project_only() -> None:
    books = Books()
    async with books.recorder:
        exchange = books.record()
        found = await books.recorder.find("team", f"chatcmpl-{exchange.token}")
        with pytest.raises(NotFound):
            await books.recorder.find("other", exchange.request_id)
        books.store.answers.set()

    assert [step["name"] for step in found["steps"]] == ["encode"]
    assert await books.store.get("team", exchange.request_id) == found


async def test_leaving_writes_what_still_waits() -> None:
    books = Books()
    async with books.recorder:
        for _ in range(3):
            books.record()
        books.store.answers.set()

    assert (books.store.num_written, books.num_lost) == (3, 0)


async def test_leaving_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    books = Books(close_timeout_s=0.01)
    async with books.recorder:
        books.record()

    assert (books.store.num_written, books.num_lost) == (0, 1)
    assert caplog.messages == ["timeline.lost"]


async def test_a_bounded_number_waits_and_the_rest_is_lost_and_counted() -> None:
    books = Books()
    async with books.recorder:
        for _ in range(MAX_PENDING + 2):
            books.record()
        assert books.num_lost == 2
        books.store.answers.set()

    assert books.store.num_written == MAX_PENDING


async def test_a_store_that_is_away_costs_the_timeline_and_not_the_next_one() -> None:
    books = Books()
    books.store.answers.set()
    books.store.is_reachable = False
    async with books.recorder:
        lost = books.record()
        while not books.num_lost:
            await asyncio.sleep(0)
        with pytest.raises(StateUnavailable):
            await books.recorder.find("team", lost.request_id)
        books.store.is_reachable = True
        books.record()

    assert (books.store.num_written, books.num_lost) == (1, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_does_not_wait_for_its_timeline(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    release = asyncio.Event()
    async with world() as w:
        put = w.timelines.put

        async def slow(record: TimelineRecord) -> None:
            await release.wait()
            await put(record)

        monkeypatch.setattr(w.timelines, "put", slow)
        response = await w.chat(stream=stream)
        timeline = await w.client.get(f"/v1/requests/{response.headers['x-request-id']}/timeline")
        release.set()

    assert (response.status_code, timeline.status_code) == (200, 200)


async def test_a_defect_costs_one_timeline_and_not_those_behind_it(caplog: pytest.LogCaptureFixture) -> None:
    books = Books()
    books.store.num_defects = 1
    books.store.answers.set()
    async with books.recorder:
        for _ in range(3):
            books.record()
    assert (books.num_lost, books.store.num_written) == (1, 2)
    assert [record.message for record in caplog.records if record.exc_info] == ["timeline.defect"]
