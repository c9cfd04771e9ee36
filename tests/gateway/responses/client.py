"""What a client of responses does."""

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from services.gateway.jobs.events import PAUSES
from tests.gateway.twins import MODEL, World

DEADLINE_S = 60.0
WHOLE = [
    *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
    *("output_text.done", "content_part.done", "output_item.done", "completed"),
]
"""The events of an answer of text, deltas that follow each other as one."""


@dataclass(frozen=True)
class Seen:
    """One event of a stream."""

    name: str
    data: dict[str, Any]

    @property
    def number(self) -> int:
        return int(self.data["sequence_number"])


def seen(response: httpx.Response | str) -> list[Seen]:
    """The events of a whole stream; asserts that each says what it is."""
    text = response if isinstance(response, str) else response.text
    assert isinstance(response, str) or response.status_code == 200, response.text
    events = [parsed(block) for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(event.data["type"] == event.name for event in events)
    return events


def parsed(block: str) -> Seen:
    lines = dict(line.split(": ", 1) for line in block.split("\n"))
    return Seen(lines["event"], orjson.loads(lines["data"]))


def shape(events: list[Seen]) -> list[str]:
    """The names of events, deltas that follow each other as one."""
    names = [event.name.removeprefix("response.") for event in events]
    return [name for place, name in enumerate(names) if not name.endswith("delta") or names[place - 1] != name]


def text_of(events: list[Seen]) -> str:
    """The text that the deltas of a stream add up to."""
    return "".join(event.data["delta"] for event in events if event.name == "response.output_text.delta")


def said(response: Any) -> str:
    """The text of a response."""
    items = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in items for part in item["content"])


@dataclass
class Caller:
    """One client of one gateway."""

    w: World

    async def create(self, asked: Any = "hello", **body: Any) -> Any:
        response = await self.w.post("/v1/responses", {"model": MODEL, "input": asked, "temperature": 0, **body})
        assert response.status_code == 200, response.text
        return response.json()

    async def refused(self, **body: Any) -> dict[str, Any]:
        response = await self.w.post("/v1/responses", {"model": MODEL, **body})
        return {"status": response.status_code, **response.json()["error"]}

    async def stream(self, asked: Any = "hello", **body: Any) -> list[Seen]:
        body = {"model": MODEL, "input": asked, "temperature": 0, "stream": True, **body}
        return seen(await self.w.post("/v1/responses", body))

    async def events(self, response: str, after: int | None = None) -> list[Seen]:
        params = {"stream": "true"} if after is None else {"stream": "true", "starting_after": str(after)}
        return seen(await self.w.client.get(f"/v1/responses/{response}", params=params))

    async def post(self, path: str, **body: Any) -> Any:
        response = await self.w.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    async def get(self, path: str, **params: Any) -> Any:
        response = await self.w.client.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    async def settled(self, response: str) -> Any:
        """The response, once it has ended."""
        async with asyncio.timeout(DEADLINE_S):
            while (body := await self.get(f"/v1/responses/{response}"))["status"] not in PAUSES:
                await asyncio.sleep(0.005)
        return body

    async def items(self, conversation: str) -> list[Any]:
        """The items of a conversation, oldest first."""
        page = await self.get(f"/v1/conversations/{conversation}/items", order="asc", limit=100)
        return list(page["data"])

    async def conversation(self, *items: Any) -> str:
        return str((await self.post("/v1/conversations", items=list(items)))["id"])
