"""The official client's helpers for runs: streams with handlers, polling, tools."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncAssistantEventHandler
from openai._streaming import SSEDecoder

from tests.gateway.apis.stored import stored_world
from tests.gateway.apis.test_openai_client import client_of
from tests.gateway.runs.fake_turns import FakeTurns, calls, text
from tests.gateway.runs.live import live
from tests.gateway.twins import END_ID, MODEL, Script, World, tokens


@pytest.fixture(autouse=True)
def _deprecated() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class Heard(AsyncAssistantEventHandler):
    """Notes what the handler is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    async def on_text_created(self, text: Any) -> None:
        self.told.append("text created")

    async def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.told.append(delta.value)

    async def on_tool_call_done(self, tool_call: Any) -> None:
        self.told.append(tool_call.function.arguments)

    async def on_message_done(self, message: Any) -> None:
        self.told.append("message done")


async def made(client: openai.AsyncOpenAI) -> tuple[str, str]:
    """Thread and assistant."""
    assistant = await client.beta.assistants.create(model=MODEL, temperature=0)
    thread = await client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    return thread.id, assistant.id


async def test_a_stream_with_a_handler(w: World) -> None:
    async with client_of(w) as client:
        thread, assistant = await made(client)
        heard = Heard()
        async with client.beta.threads.runs.stream(
            thread_id=thread, assistant_id=assistant, event_handler=heard
        ) as stream:
            await stream.until_done()
            run = stream.current_run
            [message] = await stream.get_final_messages()

    assert heard.told == ["text created", "Paris", "message done"]
    assert run is not None and run.status == "completed" and run.usage is not None
    assert message.content[0].type == "text" and message.content[0].text.value == "Paris"


async def test_a_run_is_polled_to_its_end(w: World) -> None:
    async with client_of(w) as client:
        thread, assistant = await made(client)
        run = await client.beta.threads.runs.create_and_poll(thread_id=thread, assistant_id=assistant)
        listed = [message.content async for message in client.beta.threads.messages.list(thread)]
        steps = [step.type async for step in client.beta.threads.runs.steps.list(run.id, thread_id=thread)]

    assert (run.status, len(listed), steps) == ("completed", 2, ["message_creation"])


async def test_tools_through_the_helpers(tmp_path: Path) -> None:
    turns = FakeTurns(calls(("weather", '{"city": "Paris"}')), text("Sun", "ny."))
    async with stored_world(tmp_path, turns=lambda services: turns) as w, client_of(w) as client:
        thread, assistant = await made(client)
        first = Heard()
        async with client.beta.threads.runs.stream(
            thread_id=thread, assistant_id=assistant, event_handler=first
        ) as stream:
            await stream.until_done()
            run = stream.current_run
        assert run is not None and run.required_action is not None
        [call] = run.required_action.submit_tool_outputs.tool_calls
        second = Heard()
        async with client.beta.threads.runs.submit_tool_outputs_stream(
            run_id=run.id,
            thread_id=thread,
            tool_outputs=[{"tool_call_id": call.id, "output": "22 degrees"}],
            event_handler=second,
        ) as stream:
            await stream.until_done()

    assert first.told == ['{"city": "Paris"}']
    assert call.function.arguments == '{"city": "Paris"}'
    assert second.told == ["text created", "Sunny.", "message done"]


async def test_refusals_have_their_texts(w: World) -> None:
    async with client_of(w) as client:
        thread, assistant = await made(client)
        run = await client.beta.threads.runs.create_and_poll(thread_id=thread, assistant_id=assistant)
        with pytest.raises(openai.BadRequestError, match="Cannot cancel run with status 'completed'"):
            await client.beta.threads.runs.cancel(run.id, thread_id=thread)


async def test_comments_of_a_silent_stream_are_no_events(tmp_path: Path) -> None:
    async with stored_world(tmp_path, keep_alive_s=0.01) as w, client_of(w) as client:
        w.decode.default = Script([*tokens("Paris"), END_ID], hang_after=2)
        thread, assistant = await made(client)
        async with live(w, "POST", f"/v1/threads/{thread}/runs", assistant_id=assistant, stream=True) as stream:
            await stream.until("thread.run.in_progress")
            await stream.until("keep-alive\n: keep-alive")
            w.decode.release.set()
            await stream.until("[DONE]")
        read = list(SSEDecoder().iter_bytes(iter([stream.text.encode()])))

    assert all(event.data for event in read)
    assert read[-2].event == "thread.run.completed"
