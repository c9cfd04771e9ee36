"""Hostile HTTP: every request gets an answer that is not our fault, or its connection ends; nothing is left of it."""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.chaos import hostile_json
from tests.chaos.fuzzing import Budget
from tests.chaos.hostile_messages import damaged
from tests.chaos.whole import DEADLINE_S, Whole, whole
from tests.gateway.twins import MODEL, chat_body

SETTINGS: dict[str, Any] = {
    "default_max_tokens": 8,
    "max_choices": 8,
    "max_concurrent_requests": 4,
    "max_queue": 0,
    "max_body_bytes": 200_000,
    "max_header_bytes": 8192,
    "header_timeout_s": 0.5,
    "body_timeout_s": 0.5,
}
"""Four turns and no queue: a turn that is not given back is one that later requests do not get."""
CHAT = chat_body(
    messages=[
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "me"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            "content": "hm",
        },
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ],
    stream=False,
    stream_options=None,
    max_tokens=6,
    max_completion_tokens=None,
    n=2,
    temperature=0.7,
    top_p=0.9,
    top_k=5,
    min_p=0.0,
    seed=3,
    stop=["zz", "yy"],
    presence_penalty=0.1,
    frequency_penalty=0.1,
    repetition_penalty=1.1,
    logit_bias={"5": 1.0},
    logprobs=True,
    top_logprobs=2,
    min_tokens=1,
    stop_token_ids=[7],
    ignore_eos=False,
    response_format={"type": "text", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
    tools=[{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"enum": [1]}}}}}],
    tool_choice="none",
    parallel_tool_calls=True,
    modalities=["text"],
    user="u",
    metadata={"a": "b"},
)
COMPLETION = {
    "model": MODEL,
    "prompt": ["hello", "world"],
    "echo": True,
    "max_tokens": 5,
    "n": 1,
    "best_of": 1,
    "stream": False,
    "stop": "q",
    "suffix": None,
    "logprobs": None,
    "temperature": 0,
    "logit_bias": {},
    "seed": -1,
}
POSTS = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION}
PATHS = [
    *POSTS,
    "/v1/models",
    f"/v1/models/{MODEL}",
    "/v1/requests/req_x/timeline",
    "/metrics",
    "/readyz",
    "/",
    "//",
    "/v1",
]
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"]


@dataclass
class Target:
    """A gateway with its cluster, and the loop that they live in."""

    runner: asyncio.Runner
    whole: Whole


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """One gateway for all examples, so that what one leaves behind meets the next."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        opened = runner.run(stack.enter_async_context(whole(**SETTINGS)))
        yield Target(runner, opened)
        runner.run(stack.aclose())


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("stream", [False, True])
def test_bodies_with_hostile_values(target: Target, path: str, stream: bool, budget: Budget) -> None:
    async def check(value: tuple[bytes, int | None]) -> None:
        await assert_answered(target.whole, "POST", path, body=value[0], num_chunks=value[1])

    bodies = hostile_json.mutated({**POSTS[path], "stream": stream})
    budget.run(target.runner, st.tuples(bodies, st.none() | st.integers(0, 5)), check, examples=25)
    target.runner.run(assert_unharmed(target.whole))


@pytest.mark.parametrize("path", POSTS)
def test_bodies_that_are_no_json(target: Target, path: str, budget: Budget) -> None:
    async def check(body: bytes) -> None:
        await assert_answered(target.whole, "POST", path, body=body)

    bodies = (
        st.binary(max_size=100)
        | damaged(json.dumps(POSTS[path]).encode())
        | hostile_json.values.map(hostile_json.encoded)
    )
    budget.run(target.runner, bodies, check, examples=25)
    target.runner.run(assert_unharmed(target.whole))


def test_methods_paths_and_headers(target: Target, budget: Budget) -> None:
    async def check(value: tuple[str, str, str, dict[str, str], bytes]) -> None:
        method, path, rest, headers, body = value
        await assert_answered(target.whole, method, path + rest, headers=headers, body=body)

    segments = st.sampled_from(["", "/", "/..", "/%2e%2e/", "/%00", "/%ff", "?a=%", "?" + "q" * 3000, "/x" * 500, "/é"])
    words = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)
    names = ["authorization", "content-type", "accept", "expect", "x-request-id", "cookie", "content-encoding", "range"]
    headers = st.dictionaries(st.sampled_from(names), words.map(str.strip), max_size=4)
    bodies = st.just(b"") | st.just(json.dumps(CHAT).encode())
    values = st.tuples(st.sampled_from(METHODS), st.sampled_from(PATHS), segments, headers, bodies)
    budget.run(target.runner, values, check, examples=40)
    target.runner.run(assert_unharmed(target.whole))


def http(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


POST = "POST /v1/chat/completions HTTP/1.1"
BODY = json.dumps(chat_body(max_tokens=4)).encode()
LENGTH = f"content-length: {len(BODY)}"
SMUGGLED = http("GET /v1/models HTTP/1.1", "host: a")
RAW = {
    "nothing": b"",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a long request line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    "a request line without an end": b"GET /" + b"a" * 300_000,
    "a header without an end": b"GET / HTTP/1.1\r\nx: " + b"a" * 300_000,
    "many headers": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000 + b"\r\n",
    "half a head": b"GET / HTTP/1.1\r\nhost: ",
    "half a body": http(POST, "host: a", LENGTH, body=BODY[:5]),
    "two lengths": http(POST, "host: a", LENGTH, "content-length: 3", body=BODY),
    "a negative length": http(POST, "host: a", "content-length: -1", body=BODY),
    "a signed length": http(POST, "host: a", f"content-length: +{len(BODY)}", body=BODY),
    "a huge length": http(POST, "host: a", "content-length: 99999999999999999999999", body=BODY),
    "length and chunks": http(POST, "host: a", LENGTH, "transfer-encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "chunks that are not the last coding": http(
        POST, "host: a", "transfer-encoding: chunked, identity", body=b"0\r\n\r\n" + SMUGGLED
    ),
    "an obfuscated coding": http(POST, "host: a", "transfer-encoding: xchunked", LENGTH, body=BODY),
    "a folded header": http(POST, "host: a", "transfer-encoding:\r\n chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "a space before the colon": http(POST, "host: a", f"content-length : {len(BODY)}", body=BODY),
    "bare line feeds": http(POST, "host: a", LENGTH, body=BODY).replace(b"\r\n", b"\n"),
    "a zero in a header": http(POST, "host: a\0b", LENGTH, body=BODY),
    "chunks of no size": http(POST, "host: a", "transfer-encoding: chunked", body=b"zz\r\nabc\r\n0\r\n\r\n"),
    "chunks of any size": http(POST, "host: a", "transfer-encoding: chunked", body=b"ffffffffffffffffff\r\nabc"),
    "many trailers": http(
        POST, "host: a", "transfer-encoding: chunked", body=b"0\r\n" + b"a: b\r\n" * 20_000 + b"\r\n"
    ),
    "an upgrade": http(POST, "host: a", "connection: upgrade", "upgrade: websocket", LENGTH, body=BODY),
    "a tunnel": http("CONNECT a:1 HTTP/1.1", "host: a"),
    "an absolute address": http("GET http://other/v1/models HTTP/1.1", "host: a"),
    "a star": http("OPTIONS * HTTP/1.1", "host: a"),
    "an unknown method": http("BREW / HTTP/1.1", "host: a"),
    "an old version": http("GET /v1/models HTTP/1.0"),
    "a pipeline": http(POST, "host: a", LENGTH, body=BODY) + SMUGGLED * 5,
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_hardly_http(target: Target, name: str) -> None:
    target.runner.run(assert_raw_answered(target.whole, RAW[name]))
    target.runner.run(assert_unharmed(target.whole))


def test_damaged_requests(target: Target, budget: Budget) -> None:
    async def check(data: bytes) -> None:
        await assert_raw_answered(target.whole, data)

    valid = http(POST, "host: a", "connection: close", LENGTH, body=BODY)
    chunked = http(POST, "host: a", "transfer-encoding: chunked", body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
    budget.run(target.runner, damaged(valid) | damaged(chunked) | st.binary(max_size=60), check, examples=60)
    target.runner.run(assert_unharmed(target.whole))


@pytest.mark.parametrize("name", ["length and chunks", "chunks that are not the last coding", "two lengths"])
def test_nothing_is_smuggled_in(target: Target, name: str) -> None:
    """Where two readers could disagree about the end of a body, nothing after it is a request."""
    assert statuses(target.runner.run(target.whole.send(RAW[name]))) == [400]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [(b"", []), (b"GET / HT", [408]), (http(POST, "host: a", LENGTH, body=BODY[:9]), [408])],
    ids=["silence", "half a line", "half a body"],
)
def test_who_is_silent_is_not_waited_for(target: Target, sent: bytes, expected: list[int]) -> None:
    assert statuses(target.runner.run(target.whole.send(sent, half_close=False))) == expected
    target.runner.run(assert_unharmed(target.whole))


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"GET / HTTP/1.1\r\nx: ", 408),
        (http(POST, "host: a", "content-length: 100000"), 408),
        (http("POST /nothing HTTP/1.1", "host: a", "content-length: 100000"), 404),
    ],
    ids=["a head", "a body", "a body that was answered"],
)
def test_who_drips_is_not_waited_for(target: Target, start: bytes, status: int) -> None:
    """Every byte comes soon after the one before, and yet the whole has its deadline."""

    async def drip() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.whole.port)
        reading = asyncio.create_task(reader.read())
        writer.write(start)
        while not reading.done():
            writer.write(b"a")
            await asyncio.wait((reading,), timeout=0.02)
        writer.close()
        return reading.result() if reading.exception() is None else b""

    assert statuses(target.runner.run(asyncio.wait_for(drip(), DEADLINE_S))) in ([status], [])
    target.runner.run(assert_unharmed(target.whole))


async def assert_answered(
    whole: Whole,
    method: str,
    path: str,
    *,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    num_chunks: int | None = None,
) -> None:
    """Send a request and read its answer, or leave after ``num_chunks``; then nothing is left of it."""
    async with whole.client.stream(method, path, content=body, headers=headers) as response:
        assert response.status_code < 500 and response.status_code != 429, response.status_code
        text = b""
        async for chunk in response.aiter_bytes():
            text += chunk
            num_chunks = None if num_chunks is None else num_chunks - 1
            if num_chunks is not None and num_chunks < 0:
                break
        else:
            check_answer(method, response.status_code, response.headers.get("content-type", ""), text)
    await whole.assert_nothing_left()


def check_answer(method: str, status: int, content_type: str, text: bytes) -> None:
    if method == "HEAD":
        assert text == b""
    elif status >= 400:
        error = json.loads(text)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"] and error["type"] == "invalid_request_error"
    elif content_type.startswith("text/event-stream"):
        assert text.endswith(b"data: [DONE]\n\n")
        assert b"server_error" not in text


async def assert_raw_answered(whole: Whole, data: bytes) -> None:
    assert all(status < 500 and status != 429 for status in statuses(await whole.send(data)))
    await whole.assert_nothing_left()


def statuses(data: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", data, re.MULTILINE)]


async def assert_unharmed(whole: Whole) -> None:
    """Every turn is there: as many as may run at once are answered together."""
    asked = [whole.client.post("/v1/chat/completions", json=chat_body(max_tokens=5, seed=1)) for _ in range(4)]
    answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
    await whole.assert_nothing_left()
