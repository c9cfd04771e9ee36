"""The official client against the application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest

from services.errors import Overloaded
from tests.gateway.twins import END_ID, MODEL, Script, World, card, tokens, world


@asynccontextmanager
async def client_of(w: World, key: str = "My API Key") -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx2.ASGITransport(w.gateway.app)
    async with httpx2.AsyncClient(transport=transport) as http:
        yield openai.AsyncOpenAI(base_url="http://gateway/v1", api_key=key, http_client=http, max_retries=0)


async def test_a_whole_chat() -> None:
    async with world() as w, client_of(w) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])

    assert answer.choices[0].message.content == "Paris"
    assert answer._request_id == "req_" + answer.id.removeprefix("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.to_dict()["tandem"]["path"] == "pd"  # type: ignore[index]


async def test_a_streamed_chat_through_the_helper() -> None:
    async with (
        world() as w,
        client_of(w) as client,
        client.chat.completions.stream(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], stream_options={"include_usage": True}
        ) as stream,
    ):
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()

    assert final.choices[0].message.content == "Paris"
    assert final.choices[0].finish_reason == "stop"
    assert "content.done" in kinds
    assert final.usage is not None


async def test_streamed_tool_calls_through_the_helper() -> None:
    model = card(context_length=8192)
    parameters = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    tool: Any = {"type": "function", "function": {"name": "now", "strict": True, "parameters": parameters}}
    async with (
        world(model=model) as w,
        client_of(w) as client,
    ):
        call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
        w.decode.default = Script([*tokens(f"{call}\n{call}"), END_ID])
        async with client.chat.completions.stream(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], tools=[tool], tool_choice="required"
        ) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()

    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "now", "{}")
    ] * 2
    assert len({call.id for call in calls}) == 2
    assert final.choices[0].finish_reason == "tool_calls"
    assert kinds.count("tool_calls.function.arguments.done") == 2


async def test_completions_and_models() -> None:
    async with world() as w, client_of(w) as client:
        answer = await client.completions.create(model=MODEL, prompt="hello", logprobs=1)
        listed = [model.id async for model in client.models.list()]
        one = await client.models.retrieve(MODEL)

    assert answer.choices[0].text == "Paris"
    assert listed == [one.id] == [MODEL]


async def test_errors_become_the_clients_own() -> None:
    async with world() as w, client_of(w) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="x", messages=[{"role": "user", "content": "hello"}])
        with pytest.raises(openai.BadRequestError) as empty:
            await client.chat.completions.create(model=MODEL, messages=[])
        await w.keys.create("team")
        w.clock.advance(10)
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()

    assert unknown.value.code == "model_not_found"
    assert empty.value.param == "messages"


async def test_a_failure_in_mid_stream_raises() -> None:
    async with world(max_replays=0) as w, client_of(w) as client:
        w.decode.default = Script(tokens("Paris"), error=Overloaded("full"), fail_after=1)
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}], stream=True
        )
        seen = ""
        with pytest.raises(openai.APIError):
            async for chunk in stream:
                seen += chunk.choices[0].delta.content or ""

    assert seen == "Pa"
