"""The official client's own ways with responses: streams, polling, structured outputs, functions, conversations."""

from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.gateway.apis.stored import stored_world
from tests.gateway.apis.test_openai_client import client_of
from tests.gateway.runs.fake_turns import FakeTurns, calls, text
from tests.gateway.twins import MODEL, World


class City(BaseModel):
    """A structured output."""

    name: str


async def test_a_stream_is_put_together(w: World) -> None:
    async with client_of(w) as client, client.responses.stream(model=MODEL, input="hello") as stream:
        kinds = [event.type async for event in stream]
        response = await stream.get_final_response()

    assert response.output_text == "Paris"
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.done") == 1


async def test_a_response_in_the_background_is_streamed_again(w: World) -> None:
    async with client_of(w) as client:
        started = await client.responses.create(model=MODEL, input="hello", background=True)
        async with client.responses.stream(response_id=started.id) as stream:
            numbers = [event.sequence_number async for event in stream]
            response = await stream.get_final_response()
        async with client.responses.stream(response_id=started.id, starting_after=numbers[3]) as stream:
            rest = [event.sequence_number async for event in stream]

    assert (started.status, response.status, response.output_text) == ("queued", "completed", "Paris")
    assert numbers == list(range(len(numbers)))
    assert rest == numbers[4:]


async def test_a_schema_is_parsed(tmp_path: Path) -> None:
    turns = FakeTurns(text('{"name": ', '"Paris"}'))
    async with stored_world(tmp_path, turns=lambda services: turns) as w, client_of(w) as client:
        response = await client.responses.parse(model=MODEL, input="Where?", text_format=City)

    assert response.output_parsed == City(name="Paris")
    wanted = turns.requests[0].run["response_format"]
    assert (wanted["type"], wanted["json_schema"]["name"], wanted["json_schema"]["strict"]) == (
        "json_schema",
        "City",
        True,
    )
    assert wanted["json_schema"]["schema"]["required"] == ["name"]


async def test_functions_are_called_and_answered(tmp_path: Path) -> None:
    turns = FakeTurns(calls(("weather", '{"city": "Paris"}')), text("Sun", "ny."))
    async with stored_world(tmp_path, turns=lambda services: turns) as w, client_of(w) as client:
        asked = await client.responses.create(
            model=MODEL,
            input="Weather?",
            tools=[{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}],
            tool_choice={"type": "function", "name": "weather"},
        )
        [call] = asked.output
        assert call.type == "function_call"
        answer = await client.responses.create(
            model=MODEL,
            previous_response_id=asked.id,
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees"}],
        )

    assert (call.name, call.arguments) == ("weather", '{"city": "Paris"}')
    assert answer.output_text == "Sunny."
    assert turns.requests[0].run["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


async def test_a_conversation_is_gone_through(w: World) -> None:
    async with client_of(w) as client:
        conversation = await client.conversations.create(items=[{"role": "user", "content": "hello"}])
        await client.responses.create(model=MODEL, input="What?", conversation=conversation.id)
        items = [item async for item in client.conversations.items.list(conversation.id, order="asc", limit=1)]
        deleted = await client.conversations.delete(conversation.id)

    assert [item.type for item in items] == ["message"] * 3
    assert deleted.deleted


async def test_refusals_have_their_texts(w: World) -> None:
    async with client_of(w) as client:
        response = await client.responses.create(model=MODEL, input="hello")
        with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
            await client.responses.cancel(response.id)
        with pytest.raises(openai.NotFoundError, match="Response with id 'resp_none' not found"):
            await client.responses.retrieve("resp_none")


async def test_what_was_compacted_is_gone_on_from(tmp_path: Path) -> None:
    turns = FakeTurns(text("It is ", "Paris."), text("They asked ", "for Paris."), text("It still ", "is."))
    async with stored_world(tmp_path, turns=lambda services: turns) as w, client_of(w) as client:
        first = await client.responses.create(model=MODEL, input="Where?")
        compacted = await client.responses.compact(model=MODEL, previous_response_id=first.id)
        # The client's type of a message in an output has no user.
        asked: list[Any] = [item.to_dict(warnings=False) for item in compacted.output]
        second = await client.responses.create(model=MODEL, input=[*asked, {"role": "user", "content": "And now?"}])

    assert [item.type for item in compacted.output] == ["message", "compaction"]
    assert (compacted.object, compacted.usage.output_tokens) == ("response.compaction", 3)
    assert second.output_text == "It still is."
    told = [message for entry in turns.requests[-1].history for message in entry.messages]
    assert [message["role"] for message in told] == ["user", "system", "user"]
    assert told[0]["content"] == "Where?"
    assert told[1]["content"].endswith(":\n\nThey asked for Paris.")
