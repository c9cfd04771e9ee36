"""What a client of runs does."""

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from services.gateway.jobs.events import PAUSES
from tests.gateway.twins import MODEL, World

DEADLINE_S = 60.0


@dataclass(frozen=True)
class Seen:
    """One event of a stream."""

    number: int
    name: str
    data: dict[str, Any]


def seen(response: httpx.Response | str) -> list[Seen]:
    """The events of a whole stream; asserts that it ends as streams end."""
    text = response if isinstance(response, str) else response.text
    assert isinstance(response, str) or response.status_code == 200, response.text
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert blocks[-1] == "event: done\ndata: [DONE]"
    return [parsed(block) for block in blocks[:-1]]


def parsed(block: str) -> Seen:
    """One event, from its lines."""
    lines = dict(line.split(": ", 1) for line in block.split("\n"))
    return Seen(int(lines.get("id", 0)), lines["event"], orjson.loads(lines["data"]))


def names(events: list[Seen]) -> list[str]:
    return [event.name.removeprefix("thread.") for event in events]


def text_of(events: list[Seen]) -> str:
    """The text that the deltas of a stream add up to."""
    deltas = [event.data["delta"] for event in events if event.name == "thread.message.delta"]
    return "".join(part["text"]["value"] for delta in deltas for part in delta["content"])


@dataclass
class Caller:
    """One client of one gateway."""

    w: World

    async def post(self, path: str, **body: Any) -> Any:
        response = await self.w.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    async def get(self, path: str, **params: Any) -> Any:
        response = await self.w.client.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    async def assistant(self, **body: Any) -> str:
        made = await self.post("/v1/assistants", **{"model": MODEL, "temperature": 0.0, **body})
        return str(made["id"])

    async def thread(self, *texts: str) -> str:
        messages = [{"role": "user", "content": text} for text in texts or ("hello",)]
        return str((await self.post("/v1/threads", messages=messages))["id"])

    async def run(self, thread: str, assistant: str, **body: Any) -> Any:
        return await self.post(f"/v1/threads/{thread}/runs", assistant_id=assistant, **body)

    async def stream(self, thread: str, assistant: str, **body: Any) -> list[Seen]:
        path = f"/v1/threads/{thread}/runs"
        return seen(await self.w.post(path, {"assistant_id": assistant, "stream": True, **body}))

    async def events(self, thread: str, run: str, after: int = 0) -> list[Seen]:
        path = f"/v1/threads/{thread}/runs/{run}/events"
        return seen(await self.w.client.get(path, params={"starting_after": after}))

    async def settled(self, thread: str, run: str, *statuses: str) -> Any:
        """The run, once it has paused or has one of the statuses."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                body = await self.get(f"/v1/threads/{thread}/runs/{run}")
                if body["status"] in (statuses or PAUSES):
                    return body
                await asyncio.sleep(0.005)

    async def messages(self, thread: str) -> list[Any]:
        """All messages, oldest first."""
        path = f"/v1/threads/{thread}/messages"
        found: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            page = await self.get(path, order="asc", limit=100, **cursor)
            found += page["data"]
            if not page["has_more"]:
                return found
            cursor = {"after": page["last_id"]}

    async def texts(self, thread: str) -> list[tuple[str, str]]:
        """Role and text of all messages, oldest first."""
        return [
            (each["role"], "".join(part["text"]["value"] for part in each["content"]))
            for each in await self.messages(thread)
        ]
