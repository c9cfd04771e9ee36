"""Many runs at once, and many who want the same thread."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.errors import StateUnavailable
from services.gateway.jobs.held import HeldJob
from tests.gateway.apis.stored import refusal, stored_world
from tests.gateway.runs.client import DEADLINE_S, Caller
from tests.gateway.runs.pair import LEASE_S, Pair, long_answer, pair, until_hanging
from tests.gateway.twins import Script, World

NUM_RUNS, NUM_RIVALS = 200, 50


async def test_two_hundred_runs_on_two_hundred_threads(tmp_path: Path) -> None:
    async with stored_world(tmp_path, max_queue=NUM_RUNS, max_project_queue=NUM_RUNS) as w:
        caller = Caller(w)
        assistant = await caller.assistant()
        threads = [await caller.thread(f"question {number}") for number in range(NUM_RUNS)]
        runs = await asyncio.gather(*(caller.run(thread, assistant) for thread in threads))
        ended = await asyncio.gather(
            *(caller.settled(thread, run["id"]) for thread, run in zip(threads, runs, strict=True))
        )
        texts = [await caller.texts(thread) for thread in threads]

    assert {run["status"] for run in ended} == {"completed"}
    assert texts == [[("user", f"question {number}"), ("assistant", "Paris")] for number in range(NUM_RUNS)]
    assert len(w.decode.requests) == NUM_RUNS


async def rivals(both: Pair, thread: str, assistant: str, **body: Any) -> list[httpx.Response]:
    """Fifty clients of two gateways that want one thread at once."""
    path = f"/v1/threads/{thread}/runs"
    gateways: list[World] = [both.first, both.second] * (NUM_RIVALS // 2)
    return await asyncio.gather(*(w.post(path, {"assistant_id": assistant, **body}) for w in gateways))


async def test_fifty_clients_race_for_one_thread(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        for w in (both.first, both.second):
            w.decode.default = long_answer(hang_after=5)
        thread, assistant = await both.a.thread(), await both.a.assistant()
        replies = await rivals(both, thread, assistant, additional_messages=[{"role": "user", "content": "me"}])
        [winner] = [reply.json() for reply in replies if reply.status_code == 200]
        refusals = [refusal(reply) for reply in replies if reply.status_code != 200]
        listed = await both.a.get(f"/v1/threads/{thread}/runs")
        both.first.decode.release.set()
        both.second.decode.release.set()
        ended = await both.a.settled(thread, winner["id"])
        texts = await both.a.texts(thread)

    message = f"Thread {thread} already has an active run {winner['id']}."
    expected = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    assert refusals == [(400, expected)] * (NUM_RIVALS - 1)
    assert [run["id"] for run in listed["data"]] == [winner["id"]]
    assert ended["status"] == "completed"
    assert [role for role, _ in texts] == ["user", "user", "assistant"]


async def test_runs_that_may_wait_take_turns(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        for w in (both.first, both.second):
            w.decode.default = Script(w.decode.default.output[:3])
        thread, assistant = await both.a.thread(), await both.a.assistant()
        further = [{"role": "user", "content": "me"}]
        replies = await rivals(both, thread, assistant, additional_messages=further, if_active="queue")
        runs = [reply.json()["id"] for reply in replies]
        async with asyncio.timeout(2 * DEADLINE_S):
            while True:
                listed = (await both.a.get(f"/v1/threads/{thread}/runs", limit=100))["data"]
                if all(run["status"] == "completed" for run in listed):
                    break
                await both.second.gateway.sweeper.sweep()
                await asyncio.sleep(0.01)
        messages = await both.a.messages(thread)

    assert sorted(run["id"] for run in listed) == sorted(runs)
    assert [message["role"] for message in messages] == ["user", *(["user", "assistant"] * NUM_RIVALS)]
    assert sorted(message["run_id"] for message in messages if message["run_id"]) == sorted(runs)


@pytest.mark.parametrize("status", ["queued", "in_progress"])
async def test_a_run_that_is_cancelled_gives_its_thread_to_the_next(tmp_path: Path, status: str) -> None:
    async with pair(tmp_path) as both:
        both.first.decode.default = long_answer(hang_after=5)
        thread, assistant = await both.a.thread(), await both.a.assistant()
        first, second, third = [(await both.a.run(thread, assistant, if_active="queue"))["id"] for _ in range(3)]
        cancelled = first if status == "in_progress" else second
        await both.a.settled(thread, first, "in_progress")
        await both.b.post(f"/v1/threads/{thread}/runs/{cancelled}/cancel")
        both.first.decode.release.set()
        for run in {first, second, third} - {cancelled}:
            await both.b.settled(thread, run)
        states = {
            run: (await both.a.get(f"/v1/threads/{thread}/runs/{run}"))["status"] for run in (first, second, third)
        }

    assert states == {first: "completed", second: "completed", third: "completed"} | {cancelled: "cancelled"}


async def test_a_run_that_could_not_be_cancelled_goes_on_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(*_: Any, **__: Any) -> None:
        raise StateUnavailable("Redis cannot be reached.")

    async with pair(tmp_path) as both:
        both.first.decode.default = long_answer(hang_after=5)
        thread, assistant = await both.a.thread(), await both.a.assistant()
        first, second = [(await both.a.run(thread, assistant, if_active="queue"))["id"] for _ in range(2)]
        await until_hanging(both.first, 5)
        with monkeypatch.context() as patch:
            patch.setattr(HeldJob, "commit", unavailable)
            refused = await both.second.post(f"/v1/threads/{thread}/runs/{second}/cancel", {})
        lapsed_ms = round(1e3 * (both.clock.wall() + LEASE_S + 1))
        due = await both.second.gateway.sweeper._storage.due(lapsed_ms, 10)
        both.first.decode.release.set()
        ended = [(await both.a.settled(thread, run))["status"] for run in (first, second)]

    assert refusal(refused)[0] == 503
    assert [run.id for _, run in due] == [first]
    assert ended == ["completed", "completed"]
