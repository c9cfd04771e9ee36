"""Redis is killed under many clients, gateways under many runs: what was acknowledged is there, in order, once."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.chaos.conftest import Say
from tests.chaos.gateways import POLL_S, SAID, TIMEOUT_S, Gateway, StoredCluster, text_in
from tests.gateway.runs.client import text_of

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(900)]
NUM_CLIENTS, NUM_RUNS = 50, 200
MAX_ATTEMPTS = 1000
KILLS = [4, pytest.param(60, marks=pytest.mark.chaos_long)]
WRITES_BETWEEN_KILLS = 40
"""Acknowledged writes after which Redis is killed again."""


@dataclass
class Writer:
    """A client that makes a thread and then writes to it; each attempt has a text of its own."""

    name: str
    gateways: Sequence[Gateway]
    thread: str = ""
    attempted: list[str] = field(default_factory=list)
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    """Id and text of the messages that a gateway said to be written."""
    refused: list[str] = field(default_factory=list)
    """What the others were told, in order."""
    _num_attempts: int = 0

    async def make_thread(self) -> None:
        self.thread = str((await self._until_acknowledged("/v1/threads"))["id"])

    async def write(self) -> None:
        body = await self._until_acknowledged(f"/v1/threads/{self.thread}/messages")
        self.acknowledged.append((body["id"], text_in(body)))

    async def _until_acknowledged(self, path: str) -> Any:
        """Try with another text, at another gateway, until one answers that it is written."""
        for _ in range(MAX_ATTEMPTS):
            self._num_attempts += 1
            text = f"{self.name}, attempt {self._num_attempts}"
            body: dict[str, Any] = {"metadata": {"text": text}}
            if path.endswith("/messages"):
                self.attempted.append(text)
                body = {"role": "user", "content": text}
            gateway = self.gateways[self._num_attempts % len(self.gateways)]
            response = await gateway.client.post(path, json=body)
            if response.status_code == 200:
                return response.json()
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (503, "state_unavailable")
            self.refused.append(error["message"])
            await asyncio.sleep(POLL_S)
        raise AssertionError(f"{path} was never acknowledged")


async def kill_redis(stored: StoredCluster) -> None:
    assert stored.redis.pid is not None
    os.kill(stored.redis.pid, signal.SIGKILL)
    assert await stored.redis.wait_exit() == -signal.SIGKILL
    await stored.redis.start()


async def kill_again_and_again(stored: StoredCluster, writers: Sequence[Writer], kills: int) -> None:
    """Kill Redis whenever enough was acknowledged since it came back."""
    for _ in range(kills):
        begun = num_acknowledged(writers)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while num_acknowledged(writers) < begun + WRITES_BETWEEN_KILLS:
                    await asyncio.sleep(0.001)
        except TimeoutError:
            told = [(writer.name, len(writer.refused), writer.refused[-1:]) for writer in writers]
            logs = "\n".join(gateway.process.log_tail() for gateway in writers[0].gateways)
            num_more = num_acknowledged(writers) - begun
            raise AssertionError(f"Only {num_more} writes since Redis came back. Refusals: {told}\n{logs}") from None
        await kill_redis(stored)


def num_acknowledged(writers: Sequence[Writer]) -> int:
    return sum(len(writer.acknowledged) for writer in writers)


@pytest.mark.parametrize("kills", KILLS)
async def test_redis_dies_again_and_again_under_fifty_writers(stored: StoredCluster, kills: int, say: Say) -> None:
    async with stored.gateways() as gateways:
        writers = [Writer(f"client {number}", gateways) for number in range(NUM_CLIENTS)]

        async def write_on(writer: Writer) -> None:
            await writer.make_thread()
            while not killing.done():
                await writer.write()
            await writer.write()  # and once more, over a Redis that stays

        async with asyncio.TaskGroup() as tasks:
            killing = tasks.create_task(kill_again_and_again(stored, writers, kills))
            for writer in writers:
                tasks.create_task(write_on(writer))
        await kill_redis(stored)  # nothing is only in memory

        for writer in writers:
            await assert_all_there(gateways, writer)
        attempted = sum(len(writer.attempted) for writer in writers)
        acknowledged = num_acknowledged(writers)
        assert acknowledged >= kills * WRITES_BETWEEN_KILLS
        say(f"killed {kills + 1} times: {acknowledged} of {attempted} writes acknowledged, all of them there")


async def assert_all_there(gateways: Sequence[Gateway], writer: Writer) -> None:
    first, second = [await gateway.messages(writer.thread) for gateway in gateways]
    assert first == second
    there = [(message["id"], text_in(message)) for message in first]
    wanted = set(writer.acknowledged)
    assert [each for each in there if each in wanted] == writer.acknowledged
    assert max(Counter(text for _, text in there).values(), default=0) <= 1
    assert {text for _, text in there} <= set(writer.attempted)


async def test_two_hundred_runs_at_once_and_a_gateway_dies(stored: StoredCluster, say: Say) -> None:
    async with stored.gateways() as [first, second]:
        model = (await first.get("/v1/models"))["data"][0]["id"]
        assistant = (await first.post("/v1/assistants", model=model, temperature=0))["id"]
        threads = [await second.thread(f"Say only the number {number}.") for number in range(NUM_RUNS)]
        bodies = {"assistant_id": assistant, "max_completion_tokens": 256}
        gateways = [first, second] * (NUM_RUNS // 2)
        runs = await asyncio.gather(
            *(
                gateway.post(f"/v1/threads/{thread}/runs", **bodies)
                for gateway, thread in zip(gateways, threads, strict=True)
            )
        )
        first.process.kill()
        ended = [
            await second.settled(f"/v1/threads/{thread}/runs/{run['id']}")
            for thread, run in zip(threads, runs, strict=True)
        ]
        messages = [await second.messages(thread) for thread in threads]
        logs = [
            await second.events(f"/v1/threads/{thread}/runs/{run['id']}", 0)
            for thread, run in zip(threads, runs, strict=True)
        ]
        taken = len(second.process.events("job.taken"))

    assert {run["status"] for run in ended} <= {"completed", "incomplete"}
    assert [[message["role"] for message in each] for each in messages] == [["user", "assistant"]] * NUM_RUNS
    assert [text_in(each[0]) for each in messages] == [f"Say only the number {number}." for number in range(NUM_RUNS)]
    assert [each[1]["run_id"] for each in messages] == [run["id"] for run in runs]
    for log, run, said in zip(logs, ended, messages, strict=True):
        assert [event.number for event in log] == list(range(1, len(log) + 1))
        assert log[-1].data == run
        assert text_of(log) == text_in(said[1])
    say(f"{taken} of {NUM_RUNS} runs went on at another gateway")


async def test_fifty_clients_of_two_gateways_race_for_one_thread(stored: StoredCluster) -> None:
    stored.hold(len(SAID) // 2)
    async with stored.gateways() as [first, second]:
        model = (await first.get("/v1/models"))["data"][0]["id"]
        assistant = (await first.post("/v1/assistants", model=model, temperature=0))["id"]
        thread = await first.thread("hello")
        path = f"/v1/threads/{thread}/runs"
        body = {"assistant_id": assistant, "additional_messages": [{"role": "user", "content": "me"}]}
        responses: list[httpx.Response] = await asyncio.gather(
            *(gateway.client.post(path, json=body) for gateway in [first, second] * (NUM_CLIENTS // 2))
        )
        [winner] = [response.json() for response in responses if response.status_code == 200]
        refused = [response for response in responses if response.status_code != 200]
        stored.go_on()
        ended = await first.settled(f"{path}/{winner['id']}")
        listed = (await second.get(path))["data"]
        messages = await second.messages(thread)

    message = f"Thread {thread} already has an active run {winner['id']}."
    assert [(response.status_code, response.json()["error"]["message"]) for response in refused] == [(400, message)] * (
        NUM_CLIENTS - 1
    )
    assert [run["id"] for run in listed] == [winner["id"]]
    assert ended["status"] in ("completed", "incomplete")
    assert [message["role"] for message in messages] == ["user", "user", "assistant"]
