"""Bad input gets an answer in the shape of the OpenAI API and costs no worker anything."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.gateway.twins import MODEL, card, chat_body, member, world

USER = {"role": "user", "content": "hello"}
BAD_BODIES: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("no JSON", b"{"),
    ("a list", b"[]"),
    ("a number", b"1"),
    ("null", b"null"),
    ("NaN", b'{"model": "m", "messages": [], "temperature": NaN}'),
    ("infinity", b'{"model": "m", "messages": [], "temperature": Infinity}'),
    ("no UTF-8", b'{"model": "\xff"}'),
    ("half a surrogate", b'{"model": "\\ud800", "messages": []}'),
    ("deep", b"[" * 200_000),
    ("deep object", b'{"model": ' * 5_000 + b"1" + b"}" * 5_000),
]
TOOL = {"type": "function", "function": {"name": "f"}}
BAD_FIELDS: list[tuple[dict[str, Any], str, int]] = [
    ({"model": "unknown"}, "model", 404),
    ({"model": None}, "model", 400),
    ({"model": 5}, "model", 400),
    ({"messages": None}, "messages", 400),
    ({"messages": []}, "messages", 400),
    ({"messages": "hello"}, "messages", 400),
    ({"messages": [5]}, "messages[0]", 400),
    ({"messages": [{"content": "x"}]}, "messages[0].role", 400),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", 400),
    ({"messages": [USER, {"role": "user"}]}, "messages[1].content", 400),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", 400),
    ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]", 400),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", 400),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", 400),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", 400),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]}, "messages[0].tool_calls[0].id", 400),
    ({"max_tokens": -1}, "max_tokens", 400),
    ({"max_tokens": 0}, "max_tokens", 400),
    ({"max_tokens": 10**9}, "messages", 400),
    ({"max_tokens": 10**18}, "max_tokens", 400),
    ({"max_tokens": "5"}, "max_tokens", 400),
    ({"max_tokens": 5.5}, "max_tokens", 400),
    ({"max_completion_tokens": -1}, "max_completion_tokens", 400),
    ({"temperature": 3}, "temperature", 400),
    ({"temperature": "hot"}, "temperature", 400),
    ({"top_p": 0}, "top_p", 400),
    ({"top_p": 1.1}, "top_p", 400),
    ({"n": 0}, "n", 400),
    ({"n": 1000}, "n", 400),
    ({"stream": "yes"}, "stream", 400),
    ({"stream_options": {"include_usage": True}}, "stream_options", 400),
    ({"stop": 5}, "stop", 400),
    ({"stop": ["x"] * 100}, "stop", 400),
    ({"stop": [5]}, "stop[0]", 400),
    ({"seed": "x"}, "seed", 400),
    ({"priority": "high"}, "priority", 400),
    ({"priority": 1.5}, "priority", 400),
    ({"priority": True}, "priority", 400),
    ({"priority": 2**60}, "priority", 400),
    ({"presence_penalty": 5}, "presence_penalty", 400),
    ({"repetition_penalty": 0}, "repetition_penalty", 400),
    ({"min_tokens": -1}, "min_tokens", 400),
    ({"min_tokens": 9, "max_tokens": 4}, "min_tokens", 400),
    ({"logit_bias": {"x": 1}}, "logit_bias", 400),
    ({"logit_bias": {"1": 101}}, "logit_bias", 400),
    ({"logit_bias": {"99999": 1}}, "logit_bias", 400),
    ({"stop_token_ids": [-1]}, "stop_token_ids", 400),
    ({"top_logprobs": 2}, "top_logprobs", 400),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", 400),
    ({"logprobs": 1}, "logprobs", 400),
    ({"response_format": {"type": "yaml"}}, "response_format.type", 400),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", 400),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
        "response_format.json_schema.name",
        400,
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"multipleOf": 7777}}}},
        "response_format.json_schema.schema",
        400,
    ),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", 400),
    ({"response_format": {"type": "json_object"}, "min_tokens": 2}, "min_tokens", 400),
    ({"tools": [{"type": "function"}]}, "tools[0].function", 400),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", 400),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", 400),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name", 400),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
        "tools[0].function.parameters",
        400,
    ),
    (
        {"tools": [TOOL, {"type": "function", "function": {"name": "g", "parameters": {"multipleOf": 7777}}}]},
        "tools[1].function.parameters",
        400,
    ),
    ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", 400),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice", 400),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", 400),
    (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        "tool_choice",
        400,
    ),
    ({"tool_choice": "required"}, "tool_choice", 400),
    ({"tools": [TOOL], "tool_choice": "required", "ignore_eos": True}, "ignore_eos", 400),
    ({"tools": [TOOL], "min_tokens": 3}, "min_tokens", 400),
    ({"functions": [{}]}, "functions", 400),
    ({"modalities": ["audio"]}, "modalities", 400),
]


def check_shape(body: Any) -> None:
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("body", [body for _, body in BAD_BODIES], ids=[name for name, _ in BAD_BODIES])
async def test_a_body_that_is_no_request_is_400(path: str, body: bytes) -> None:
    async with world() as w:
        response = await w.post(path, body)

    assert response.status_code == 400
    check_shape(response.json())
    assert w.decode.requests == []


@pytest.mark.parametrize(
    ("changes", "param", "status"), BAD_FIELDS, ids=[f"{each[1]}-{index}" for index, each in enumerate(BAD_FIELDS)]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_field_is_named(changes: dict[str, Any], param: str, status: int, stream: bool) -> None:
    streamed = {"stream": True} if stream and "stream_options" not in changes else {}
    body = {**chat_body(**streamed), **changes}
    async with world() as w:
        response = await w.post("/v1/chat/completions", body)

    check_shape(response.json())
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    assert w.decode.requests == []


async def test_unknown_models_are_told_as_clients_know_it() -> None:
    async with world() as w:
        error = (await w.chat(model="x")).json()["error"]

    assert error["message"] == "The model 'x' does not exist or you do not have access to it."
    assert error["code"] == "model_not_found"


@pytest.mark.parametrize("changes", [{"messages": [{"role": "user", "content": "hello " * 600}]}, {"max_tokens": 600}])
async def test_a_context_overflow_is_refused_before_any_work(changes: dict[str, Any]) -> None:
    async with world() as w:
        response = await w.chat(**changes)

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "maximum context length is 512 tokens" in error["message"]
    assert w.decode.requests == []


async def test_fields_that_are_null_or_unknown_are_ignored() -> None:
    nothing = dict.fromkeys(
        ("stop", "n", "seed", "temperature", "max_tokens", "logit_bias", "tools", "stream_options", "response_format")
    )
    async with world() as w:
        response = await w.chat(**nothing, store=True, metadata={"a": "b"}, tool_choice="none", functions=[])
        with_tools = await w.chat(tools=[TOOL], tool_choice="none")

    assert (response.status_code, with_tools.status_code) == (200, 200)


async def test_a_model_without_a_template_says_what_to_use() -> None:
    model = card(chat_template=None)
    async with world(members=[member("d1", model=model)], model=model) as w:
        response = await w.chat()

    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]["message"]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_that_is_too_large_is_413(is_chunked: bool) -> None:
    async def chunks() -> Any:
        for _ in range(30):
            yield b"x" * 100

    async with world(max_body_bytes=1000) as w:
        content = chunks() if is_chunked else b"x" * 3000
        response = await w.client.post("/v1/chat/completions", content=content)

    assert response.status_code == 413
    check_shape(response.json())
    assert response.headers["connection"] == "close"
    assert w.metrics.get_sample_value("tandem_refusals_total", {"code": "payload_too_large"}) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/nothing", 404),
        ("GET", "/", 404),
    ],
)
async def test_what_is_not_served_is_said_in_the_same_shape(method: str, path: str, status: int) -> None:
    async with world() as w:
        response = await w.client.request(method, path)

    assert response.status_code == status
    check_shape(response.json())
    assert response.headers["x-request-id"].startswith("req_")


async def test_a_trailing_slash_makes_no_difference() -> None:
    async with world() as w:
        response = await w.post("/v1/chat/completions/", chat_body())
        listed = await w.client.get("/v1/models/")

    assert (response.status_code, listed.json()["data"][0]["id"]) == (200, MODEL)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_body_that_does_not_arrive_is_408(path: str) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await asyncio.Event().wait()

    async with world(body_timeout_s=0.01) as w:
        response = await w.client.post(path, content=stuck())

    assert response.status_code == 408
    check_shape(response.json())
    assert response.json()["error"]["code"] == "request_timeout"
    assert response.headers["connection"] == "close"
    assert (w.decode.requests, w.gateway.drain.num_open) == ([], 0)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "nonsense"])
async def test_the_body_counts_and_not_its_declared_type(content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    async with world() as w:
        response = await w.post("/v1/chat/completions", chat_body(), headers=headers)

    assert response.status_code == 200
