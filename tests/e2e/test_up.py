"""``tandem up``, as a person meets it: real processes, real model, the openai client."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.processes import REPOSITORY
from tests.e2e.up import FRANCE, MODEL, REQUEST_TIMEOUT_S, STOP_TIMEOUT_S, Up, running_up

FACTS = " ".join(f"Fact {number}: the house number {number * 37 % 101} is blue." for number in range(60))
LONG: list[Any] = [{"role": "user", "content": f"{FACTS} What is the capital of France?"}]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    settings = {"TANDEM_PREFILL_STEP_TIMEOUT_S": "10"}  # handed on to the decode worker
    with running_up(tmp_path_factory.mktemp("up"), settings) as cluster:
        yield cluster


def _fresh() -> list[Any]:
    """Return a long prompt that nobody has cached."""
    return [{"role": "user", "content": f"{time.monotonic_ns()} {FACTS} What is the capital of France?"}]


def test_the_capital_of_france_is_paris_streamed(up: Up) -> None:
    with up.chat(stream=True) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 1
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["tandem"]["path"] == "local"


def test_a_long_prompt_goes_to_the_prefill_worker_over_nixl(up: Up) -> None:
    answer = up.chat(LONG)
    proof = answer.usage.tandem
    assert proof["path"] == "pd"
    assert proof["kv_bytes"] > 0
    assert proof["transport"] == "nixl"
    assert proof["verified"] is True
    assert proof["prefill"].startswith("prefill-")
    assert (
        proof["cached_tokens"] + proof["transferred_tokens"] + proof["recomputed_tokens"] == answer.usage.prompt_tokens
    )
    assert set(proof["timings_ms"]) == {
        *("gateway", "route", "reserve", "prefill_queue", "prefill", "transfer", "decode_queue", "first_token")
    }


def test_the_second_time_the_same_prompt_is_cached_and_answered_the_same(up: Up) -> None:
    first, second = up.chat(LONG), up.chat(LONG)
    assert second.choices[0].message.content == first.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens >= second.usage.prompt_tokens - 16


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "is_capital": {"type": "boolean"}},
    "required": ["city", "is_capital"],
    "additionalProperties": False,
}


def test_an_answer_is_what_its_schema_describes_whoever_samples_it(up: Up) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    for messages, path in ((None, "local"), (_fresh(), "pd")):
        answer = up.chat(messages, response_format=wanted, max_tokens=60, temperature=1, seed=7)
        city = json.loads(answer.choices[0].message.content)
        assert city.keys() == {"city", "is_capital"}
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.tandem["path"] == path, answer.usage.tandem


def test_a_schema_that_cannot_be_enforced_is_the_callers_mistake(up: Up) -> None:
    endless = {"allOf": [{"type": "integer", "multipleOf": factor} for factor in (101, 103, 107, 109)]}
    for schema, problem in (({"not": {}}, r"Unimplemented keys: \[\"not\"\]"), (endless, "longer than 1 s to compile")):
        with pytest.raises(openai.BadRequestError) as raised:
            up.chat(
                response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
            )
        assert raised.value.param == "response_format"
        assert re.search(problem, str(raised.value.body["message"]))  # type: ignore[index]
    assert "Paris" in up.chat().choices[0].message.content


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 30},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
        },
    },
}


def test_a_small_model_that_has_to_call_a_tool_calls_it_with_valid_arguments(up: Up) -> None:
    question = [{"role": "user", "content": "What is the weather in Paris in celsius?"}]
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 80}
    with up.chat(question, stream=True, **options) as stream:
        chunks = [chunk.choices[0] for chunk in stream]
    begin, *rest = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    arguments = "".join(call.function.arguments for call in rest)
    assert (begin.function.name, begin.function.arguments) == ("get_weather", "")
    assert json.loads(arguments) == {"city": "Paris", "unit": "celsius"}
    assert chunks[-1].finish_reason == "tool_calls"
    call = {"id": begin.id, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": begin.id, "content": "21 degrees, sunny"}
    history = [*question, {"role": "assistant", "content": None, "tool_calls": [call]}, result]
    answer = up.chat(history, tools=[WEATHER]).choices[0]
    assert answer.message.content
    assert not answer.message.tool_calls


def test_the_timeline_of_a_request_can_be_read_afterwards(up: Up) -> None:
    body = {"model": MODEL, "messages": FRANCE, "max_tokens": 4}
    answer = httpx.post(f"{up.url}/v1/chat/completions", json=body, timeout=REQUEST_TIMEOUT_S)
    timeline = up.get(f"/v1/requests/{answer.headers['x-request-id']}/timeline")
    assert timeline.status_code == 200
    assert "route" in timeline.text


def test_readiness_and_metrics_answer_on_the_main_port(up: Up) -> None:
    assert up.get("/readyz").status_code == 200
    assert 'tandem_requests_total{path="pd"}' in up.get("/metrics").text


def test_status_and_chat_talk_to_the_cluster(up: Up) -> None:
    status = json.loads(up.tandem("status", "--format", "json"))
    assert {"prefill", "decode"} <= set(re.findall(r"prefill|decode", json.dumps(status)))
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "chat", "--data-dir", str(up.data_dir), "--temperature", "0"],
        cwd=REPOSITORY,
        input="What is the capital of France?\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Paris" in done.stdout


def test_without_a_prefill_worker_long_prompts_fall_back_and_say_so(up: Up) -> None:
    undisturbed = up.chat(LONG).choices[0].message.content
    (prefill,) = up.pids("services.*prefill")
    os.kill(prefill, signal.SIGSTOP)  # alive to the supervisor, which would replace a dead one at once
    try:
        answer = up.chat(_fresh(), timeout=120)
    finally:
        os.kill(prefill, signal.SIGKILL)
    assert answer.usage.tandem["path"] == "fallback"
    up.until(lambda: up.pids("services.*prefill") not in ([], [prefill]), "new prefill worker")
    up.until(lambda: up.chat(_fresh()).usage.tandem["path"] == "pd", "path pd")
    assert up.chat(LONG).choices[0].message.content == undisturbed


def test_without_a_decode_worker_the_answer_is_503_with_retry_after(up: Up) -> None:
    (decode,) = up.pids("services.*decode")
    os.kill(decode, signal.SIGKILL)
    answers: list[httpx.Response] = []

    def is_served() -> bool:
        body = {"model": MODEL, "messages": FRANCE, "max_tokens": 4}
        answers.append(httpx.post(f"{up.url}/v1/chat/completions", json=body, timeout=REQUEST_TIMEOUT_S))
        return answers[-1].status_code == 200

    up.until(is_served, "answer from the next decode worker")
    refused = answers[:-1]
    assert refused
    assert {answer.status_code for answer in refused} == {503}
    assert all("retry-after" in answer.headers and answer.json()["error"]["code"] for answer in refused)


def test_with_redis_away_new_stateless_chats_are_served(up: Up) -> None:
    (redis,) = up.pids("redis-server")
    os.kill(redis, signal.SIGSTOP)
    try:
        assert "Paris" in up.chat().choices[0].message.content
    finally:
        os.kill(redis, signal.SIGCONT)


def test_once_a_key_exists_callers_need_one(up: Up) -> None:
    created = up.tandem("keys", "create", "--project", "school")
    (key,) = re.findall(r"sk-tandem-\S+", created)
    with up.client() as stranger, pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=4)
    with up.client(key) as friend:
        assert friend.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=4).usage


def test_ctrl_c_drains_an_open_stream_and_leaves_no_process(up: Up) -> None:
    (key,) = re.findall(r"sk-tandem-\S+", up.tandem("keys", "create", "--project", "last"))
    children = up.pids(".")
    with up.client(key) as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=FRANCE, max_tokens=64, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = iter(stream)
        next(chunks)
        up.process.send_signal(signal.SIGINT)
        finish = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert finish[-1] == "length"
    assert up.process.wait(STOP_TIMEOUT_S) == 0
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
