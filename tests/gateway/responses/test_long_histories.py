"""What is gone on from where not all that was before is read, or there any more."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.apis.stored import stored_world
from tests.gateway.responses.client import Caller, said
from tests.gateway.runs.fake_turns import FakeTurns, calls, text
from tests.gateway.twins import World, card

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
LONG = "22 " * 200
SHORT_CONTEXT = card(context_length=64)


@pytest.fixture
def turns() -> FakeTurns:
    return FakeTurns(*(calls(("weather", "{}")) for _ in range(6)), text("Sunny."))


@pytest.fixture
async def w(tmp_path: Path, turns: FakeTurns) -> AsyncIterator[World]:
    async with stored_world(tmp_path, model=SHORT_CONTEXT, turns=lambda services: turns) as stored:
        yield stored


def output_of(response: Any) -> list[dict[str, str]]:
    return [
        {"type": "function_call_output", "call_id": item["call_id"], "output": LONG}
        for item in response["output"]
        if item["type"] == "function_call"
    ]


def roles(turns: FakeTurns) -> list[str]:
    return [message["role"] for entry in turns.requests[-1].history for message in entry.messages]


@pytest.mark.parametrize("is_conversation", [True, False])
async def test_an_agent_goes_on_when_its_first_calls_are_too_far_back(
    w: World, turns: FakeTurns, is_conversation: bool
) -> None:
    caller = Caller(w)
    goes_on: dict[str, Any] = {"conversation": await caller.conversation()} if is_conversation else {}
    asked: Any = "Weather?"
    for _ in range(7):
        response = await caller.create(asked, tools=[WEATHER], truncation="auto", **goes_on)
        goes_on = goes_on if is_conversation else {"previous_response_id": response["id"]}
        asked = output_of(response)

    assert (response["status"], said(response)) == ("completed", "Sunny.")
    assert "user" not in roles(turns) and len(roles(turns)) < 12
    assert roles(turns) == ["assistant", "tool"] * (len(roles(turns)) // 2)


async def test_an_output_of_the_input_needs_its_call_all_the_same(w: World) -> None:
    caller = Caller(w)
    conversation = await caller.conversation(*({"role": "user", "content": LONG} for _ in range(5)))
    answers = [{"type": "function_call_output", "call_id": "call_none", "output": "22"}]
    refused = await caller.refused(input=answers, conversation=conversation, truncation="auto")

    assert refused["message"] == "No tool call found for function call output with call_id call_none."


async def test_a_conversation_that_is_not_read_whole_is_refused_unless_it_may_be_truncated(w: World) -> None:
    caller = Caller(w)
    conversation = await caller.conversation(*({"role": "user", "content": LONG} for _ in range(5)))
    refused = await caller.refused(input="x", conversation=conversation)

    assert (refused["status"], refused["code"]) == (400, "context_length_exceeded")


async def test_a_deleted_response_takes_what_was_before_it_along(w: World, turns: FakeTurns) -> None:
    caller = Caller(w)
    first = await caller.create("hello", tools=[WEATHER])
    answered = [{"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "22"}]
    second = await caller.create(answered, previous_response_id=first["id"], tools=[WEATHER])
    await w.client.delete(f"/v1/responses/{first['id']}")
    answered = [{**answered[0], "call_id": second["output"][0]["call_id"]}]
    third = await caller.create(answered, previous_response_id=second["id"], tools=[WEATHER])
    refused = await caller.refused(input="x", previous_response_id=first["id"])

    assert (third["status"], third["previous_response_id"]) == ("completed", second["id"])
    assert roles(turns) == ["assistant", "tool"]
    assert refused["message"] == f"Previous response with id '{first['id']}' not found."
