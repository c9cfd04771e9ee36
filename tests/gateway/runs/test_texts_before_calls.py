"""A turn that says something and then calls stays one message, in the prompts of runs and of responses."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.gateway.tools.formats import format_named
from tests.gateway.apis.stored import stored_world
from tests.gateway.responses.client import Caller as Responses
from tests.gateway.responses.test_tools import TOOLS as FUNCTIONS
from tests.gateway.responses.test_tools import prompt_of
from tests.gateway.runs.client import Caller
from tests.gateway.runs.test_function_calls import NOON, PARIS, TOOLS, output
from tests.gateway.runs.test_tools import outputs
from tests.gateway.tools.samples import written
from tests.gateway.twins import CHAT_ML, END_ID, Script, World, card, tokens

HERMES = format_named("hermes").syntax
ALTERNATING = (
    "{% set spoken = messages[1:] if messages[0]['role'] == 'system' else messages %}"
    "{% for message in spoken %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{% endfor %}" + CHAT_ML
)
FIRST = [token_id for letter in "Let me see.\n" + written(HERMES, [PARIS]) for token_id in tokens(letter)] + [END_ID]
"""Cut into tokens as no tokenizer cuts it."""
SECOND = output(NOON, lead="And the time.\n")
ANSWER = [*tokens("Sunny."), END_ID]


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    model = card(context_length=8192, chat_template=ALTERNATING)
    async with stored_world(tmp_path, model=model) as stored:
        stored.decode.first = [Script(FIRST), Script(SECOND), Script(ANSWER)]
        stored.decode.default = Script([*tokens("Bye."), END_ID])
        yield stored


def assert_prompts_go_on(w: World) -> None:
    """Each prompt begins with the very tokens of the one before it and of what was said then."""
    prompts = [list(request.prompt_token_ids) for request in w.decode.requests]
    assert len(prompts) == 4
    for before, after, said in zip(prompts, prompts[1:], [FIRST, SECOND, ANSWER], strict=False):
        assert after[: len(before) + len(said)] == [*before, *said]


async def answered(caller: Caller, thread: str) -> None:
    """A run that says and calls twice, and answers."""
    run = (await caller.stream(thread, await caller.assistant(tools=TOOLS)))[-1].data
    for _ in range(2):
        ids = [call["id"] for call in run["required_action"]["submit_tool_outputs"]["tool_calls"]]
        path = f"/v1/threads/{thread}/runs/{run['id']}"
        await caller.post(f"{path}/submit_tool_outputs", tool_outputs=outputs(ids))
        run = await caller.settled(thread, run["id"])
    assert (run["status"], run["last_error"]) == ("completed", None)


async def test_a_run_and_the_next_one_begin_with_the_very_tokens_of_each_turn(w: World) -> None:
    caller = Caller(w)
    thread = await caller.thread("What is it like in Paris?")
    await answered(caller, thread)
    await caller.post(f"/v1/threads/{thread}/messages", role="user", content="Thanks")
    later = (await caller.stream(thread, await caller.assistant(tools=TOOLS)))[-1].data

    assert (later["status"], later["last_error"]) == ("completed", None)
    assert_prompts_go_on(w)
    assert [words for _, words in await caller.texts(thread)][1:4] == ["Let me see.", "And the time.", "Sunny."]


async def test_the_usage_of_all_steps_adds_up_to_that_of_the_run(w: World) -> None:
    caller = Caller(w)
    thread = await caller.thread("What is it like in Paris?")
    await answered(caller, thread)
    [run] = (await caller.get(f"/v1/threads/{thread}/runs"))["data"]
    steps = (await caller.get(f"/v1/threads/{thread}/runs/{run['id']}/steps", order="asc"))["data"]

    assert [step["type"] for step in steps] == [*["message_creation", "tool_calls"] * 2, "message_creation"]
    written = len("Let me see.")
    assert steps[0]["usage"]["completion_tokens"] in (written, written + 1)  # white space shows nothing yet
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert sum(step["usage"][name] for step in steps) == run["usage"][name]


async def test_a_text_that_was_deleted_is_not_read_again_and_its_call_is(w: World) -> None:
    caller = Caller(w)
    thread = await caller.thread("What is it like in Paris?")
    await answered(caller, thread)
    said = (await caller.messages(thread))[1]
    await w.client.delete(f"/v1/threads/{thread}/messages/{said['id']}")
    await caller.post(f"/v1/threads/{thread}/messages", role="user", content="Thanks")
    later = (await caller.stream(thread, await caller.assistant(tools=TOOLS)))[-1].data

    assert later["status"] == "completed"
    assert "Let me see." not in prompt_of(w) and "And the time." in prompt_of(w)
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather"' in prompt_of(w)


@pytest.mark.parametrize("is_conversation", [True, False])
async def test_responses_go_on_from_texts_and_calls_as_one_message(w: World, is_conversation: bool) -> None:
    caller = Responses(w)
    conversation = await caller.conversation()
    goes_on: dict[str, Any] = {"conversation": conversation} if is_conversation else {}
    asked: Any = "What is it like in Paris?"
    for _ in range(3):
        response = await caller.create(asked, tools=FUNCTIONS, **goes_on)
        goes_on = goes_on if is_conversation else {"previous_response_id": response["id"]}
        asked = [
            {"type": "function_call_output", "call_id": item["call_id"], "output": "22"}
            for item in response["output"]
            if item["type"] == "function_call"
        ]
    await caller.create("Thanks", tools=FUNCTIONS, **goes_on)

    assert_prompts_go_on(w)
    assert prompt_of(w).count("<|im_start|>assistant") == 4
    assert "Let me see.\n<tool_call>" in prompt_of(w)


async def test_a_conversation_reads_a_run_of_its_thread_so(w: World) -> None:
    caller = Caller(w)
    thread = await caller.thread("What is it like in Paris?")
    await answered(caller, thread)
    await Responses(w).create("Thanks", conversation=thread.replace("thread_", "conv_"), tools=FUNCTIONS)

    assert prompt_of(w).count("<|im_start|>assistant") == 4
