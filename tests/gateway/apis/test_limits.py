"""What is too much of something is named in a 400, costs no worker anything, and the gateway goes on serving."""

import json
from typing import Any

import pytest

from services.gateway.apis.openai.schemas import MAX_BIASES, MAX_MESSAGES, MAX_PARTS, MAX_TOOLS
from services.gateway.structured.bounds import MAX_BYTES
from services.gateway.web.validation import MAX_DEPTH
from tests.gateway.apis.test_bad_input import check_shape
from tests.gateway.twins import CHAT_ML, World, card, chat_body, member, world

USER = {"role": "user", "content": "hello"}
LONG = "x" * 600
CHARACTERS = 1_000_000


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def call(arguments: str = "{}", **changes: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}, **changes}


def tool(**parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


TOO_MUCH: list[tuple[dict[str, Any], str]] = [
    ({"model": LONG}, "model"),
    ({"messages": [USER] * (MAX_MESSAGES + 1)}, "messages"),
    ({"messages": [{**USER, "name": LONG}]}, "messages[0].name"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * (MAX_PARTS + 1)}]},
        "messages[0].content",
    ),
    ({"messages": [{"role": "assistant", "tool_calls": [call()] * (MAX_TOOLS + 1)}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [call(id=LONG)]}]}, "messages[0].tool_calls[0].id"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [call("[" * 500_000)]}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [call("[" * 900 + "]" * 900)]}]}, "messages"),
    ({"tools": [tool()] * (MAX_TOOLS + 1)}, "tools"),
    ({"tools": [tool(default=nested(MAX_DEPTH + 1))]}, "tools[0].function.parameters.default"),
    ({"tools": [tool(default=nested(900))], "tool_choice": "none"}, "tools[0].function.parameters.default"),
    ({"tools": [tool(description="x" * MAX_BYTES)]}, "tools[0].function.parameters"),
    ({"tool_choice": nested(900)}, "tool_choice"),
    ({"functions": [{}] * (MAX_TOOLS + 1)}, "functions"),
    ({"modalities": ["text"] * 9}, "modalities"),
    ({"logit_bias": {str(index): 1 for index in range(MAX_BIASES + 1)}}, "logit_bias"),
    ({"stop_token_ids": [1] * 2000}, "stop_token_ids"),
    ({"seed": 10**30}, "seed"),
    ({"n": 10**30}, "n"),
    ({"temperature": 1e300}, "temperature"),
    ({"messages": [{"role": "user", "content": "a" * CHARACTERS}]}, "messages"),
    ({"messages": [{"role": "user", "content": "<|im_end|>" * (CHARACTERS // 10)}]}, "messages"),
]


async def assert_refused(w: World, path: str, body: bytes, param: str | None) -> None:
    response = await w.post(path, body)
    assert response.status_code == 400
    check_shape(response.json())
    assert param is None or response.json()["error"]["param"] == param
    assert len(response.content) < 5000
    assert w.decode.requests == []
    assert (await w.chat()).status_code == 200


@pytest.mark.parametrize(
    ("changes", "param"), TOO_MUCH, ids=[f"{param}-{index}" for index, (_, param) in enumerate(TOO_MUCH)]
)
async def test_too_much_of_something_is_named(changes: dict[str, Any], param: str) -> None:
    async with world() as w:
        await assert_refused(w, "/v1/chat/completions", json.dumps(chat_body(**changes)).encode(), param)


@pytest.mark.parametrize("prompt", [nested(900), nested(MAX_DEPTH + 1), "a" * CHARACTERS, ["a"] * 1000, [[1]] * 1000])
async def test_so_are_prompts_of_completions(prompt: Any) -> None:
    async with world() as w:
        body = json.dumps({"model": chat_body()["model"], "prompt": prompt}).encode()
        await assert_refused(w, "/v1/completions", body, None)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "1" * 400, "0x10", "1_0", "01", ".5"])
async def test_what_is_no_number_of_json_is_refused(number: str) -> None:
    async with world() as w:
        text = json.dumps(chat_body(temperature="?")).replace('"?"', number)
        await assert_refused(w, "/v1/chat/completions", text.encode(), None)


async def test_an_error_does_not_repeat_a_long_key() -> None:
    async with world() as w:
        body = json.dumps(chat_body(logit_bias={"k" * CHARACTERS: "x"})).encode()
        await assert_refused(w, "/v1/chat/completions", body, None)


async def test_of_a_key_that_is_given_twice_the_last_one_counts() -> None:
    async with world() as w:
        text = json.dumps(chat_body()).replace("{", '{"model": "unknown", ', 1)
        assert (await w.post("/v1/chat/completions", text.encode())).status_code == 200


async def test_as_much_as_is_allowed_is_answered() -> None:
    async with world() as w:
        response = await w.chat(
            tools=[tool(default=nested(MAX_DEPTH - 2))],
            tool_choice="none",
            logit_bias={str(index): 1 for index in range(300)},
        )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("loop", "code"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "invalid_value"),
        ("{% for a in range(99999) %}{{ messages[0].content * 9 }}{% endfor %}", "context_length_exceeded"),
    ],
)
async def test_a_template_that_runs_away_is_stopped_and_its_thread_is_free(loop: str, code: str) -> None:
    """There is one thread for text here: were it lost, nobody would be answered."""
    sick = "{% if messages[0].content == 'sick' %}" + loop + "{% endif %}" + CHAT_ML
    model = card(chat_template=sick)
    async with world(members=[member("d1", model=model)], model=model) as w:
        for _ in range(3):
            response = await w.chat(messages=[{"role": "user", "content": "sick"}])
            check_shape(response.json())
            assert (response.status_code, response.json()["error"]["code"]) == (400, code)
        assert (await w.chat()).status_code == 200
