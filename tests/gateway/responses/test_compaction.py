"""Compactions: what they keep, who can read them, and what becomes of what does not fit."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.gateway.apis.openai.responses.items import MAX_SEALED_LENGTH
from services.gateway.responses.compaction import MAX_PARTS, MIN_SUMMARY_TOKENS
from tests.gateway.apis.stored import refusal, stored_world
from tests.gateway.responses.client import Caller, said
from tests.gateway.runs.client import Caller as Assistants
from tests.gateway.runs.fake_turns import FakeTurns, calls, text
from tests.gateway.runs.live import live
from tests.gateway.runs.pair import pair
from tests.gateway.twins import END_ID, MODEL, Script, World, card, raw_tokenizer, tokens

CONTEXT = 4096
SUMMARY = "Paris is the capital of France."
SHORT = {"max_output_tokens": 16}
"""More room for the prompt than a summary leaves."""
LEAD = "The earlier part of this conversation was replaced by a summary of it:\n\n"
TALK = [
    {"role": "developer", "content": "Be short."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "It is Paris, world."},
    {"role": "user", "content": "hello"},
]
LIMIT = MIN_SUMMARY_TOKENS + sum(len(tokens(each["content"])) for each in TALK)


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with stored_world(tmp_path, model=card(context_length=CONTEXT)) as stored:
        yield stored


def writes(w: World, *texts: str) -> None:
    """Let the model write texts, one after the other."""
    w.decode.first = [Script([*tokens(each), END_ID]) for each in texts]


async def compact(w: World, asked: Any, **body: Any) -> Any:
    """Compact; the model writes the summary."""
    writes(w, SUMMARY)
    return await Caller(w).post("/v1/responses/compact", model=MODEL, input=asked, **body)


async def refused(w: World, path: str = "/v1/responses", **body: Any) -> tuple[int, str, str | None, str]:
    status, error = refusal(await w.post(path, {"model": MODEL, **body}))
    return status, error["code"], error["param"], error["message"]


def prompt(w: World, place: int = -1) -> str:
    return raw_tokenizer().decode(list(w.decode.requests[place].prompt_token_ids), skip_special_tokens=False)


def words(items: Sequence[Any]) -> list[str]:
    """The text of each message, the type of each other item."""
    return [item["content"][0]["text"] if item["type"] == "message" else item["type"] for item in items]


async def test_the_words_of_the_user_are_kept_and_a_summary_of_all(w: World) -> None:
    compacted = await compact(w, TALK, instructions="Be polite.")
    [request] = w.decode.requests

    assert compacted["object"] == "response.compaction"
    assert compacted["id"].startswith("resp_")
    assert words(compacted["output"]) == ["What is the capital of France?", "hello", "compaction"]
    assert [item.get("role") for item in compacted["output"]] == ["user", "user", None]
    assert set(compacted["output"][-1]) == {"id", "type", "encrypted_content"}
    assert compacted["output"][-1]["id"].startswith("cmp_")
    assert SUMMARY not in str(compacted)
    told = prompt(w)
    assert told.startswith("<|im_start|>system\nBe polite.<|im_end|>\n<|im_start|>system\nBe short.<|im_end|>\n")
    assert "It is Paris, world.<|im_end|>" in told
    assert told.count("<|im_start|>user\nWrite a summary of our conversation so far") == 1
    assert request.sampling.max_tokens == LIMIT
    num_prompt, num_written = len(request.prompt_token_ids), len(tokens(SUMMARY)) + 1
    assert compacted["usage"] == {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
        "output_tokens": num_written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_prompt + num_written,
    }


@pytest.mark.parametrize(("advised", "temperature"), [({}, 0.0), ({"temperature": 0.75}, 0.75)])
async def test_a_summary_is_written_as_the_authors_of_the_model_advise(
    tmp_path: Path, advised: dict[str, float], temperature: float
) -> None:
    model = card(context_length=CONTEXT, generation_defaults=advised)
    async with stored_world(tmp_path, model=model) as w:
        await compact(w, TALK)

        assert w.decode.requests[0].sampling.temperature == temperature


async def test_nothing_is_stored(w: World) -> None:
    compacted = await compact(w, TALK)

    assert (await w.client.get(f"/v1/responses/{compacted['id']}")).status_code == 404
    reference = [{"type": "item_reference", "id": compacted["output"][-1]["id"]}]
    assert (await refused(w, input=reference))[0] == 400


async def test_a_response_goes_on_from_a_compaction(w: World) -> None:
    caller = Caller(w)
    output = (await compact(w, TALK))["output"]
    first = await caller.create([*output, {"role": "user", "content": "And now?"}])
    told = prompt(w)
    second = await caller.create("Really?", previous_response_id=first["id"])

    assert told == (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        f"<|im_start|>system\n{LEAD}{SUMMARY}<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert (said(first), said(second)) == ("Paris", "Paris")
    assert prompt(w).startswith(f"{told}Paris<|im_end|>\n")
    kept = await caller.get(f"/v1/responses/{first['id']}/input_items", order="asc")
    assert words(kept["data"]) == [*words(output), "And now?"]
    assert kept["data"][-2]["encrypted_content"] == output[-1]["encrypted_content"]
    reference = [{"type": "item_reference", "id": kept["data"][-2]["id"]}, {"role": "user", "content": "hello"}]
    await caller.create(reference)
    assert LEAD + SUMMARY in prompt(w)


async def test_a_response_in_the_background_goes_on_from_a_compaction(w: World) -> None:
    caller = Caller(w)
    output = (await compact(w, TALK))["output"]
    response = await caller.create([*output, {"role": "user", "content": "And now?"}], background=True)

    assert said(await caller.settled(response["id"])) == "Paris"
    assert LEAD + SUMMARY in prompt(w)


async def test_tokens_of_a_compaction_are_counted_as_they_will_be(w: World) -> None:
    asked = [*(await compact(w, TALK))["output"], {"role": "user", "content": "And now?"}]
    counted = await Caller(w).post("/v1/responses/input_tokens", model=MODEL, input=asked)

    assert counted["input_tokens"] == (await Caller(w).create(asked))["usage"]["input_tokens"]


async def test_a_compaction_is_compacted_with_what_came_after_it(w: World) -> None:
    output = (await compact(w, TALK))["output"]
    answered = {"role": "assistant", "content": "Nothing."}
    compacted = await compact(w, [*output, {"role": "user", "content": "And now?"}, answered])

    assert LEAD + SUMMARY in prompt(w)
    assert "Nothing.<|im_end|>" in prompt(w)
    assert words(compacted["output"]) == ["What is the capital of France?", "hello", "And now?", "compaction"]
    assert compacted["output"][-1]["encrypted_content"] != output[-1]["encrypted_content"]


async def test_the_responses_before_are_compacted(w: World) -> None:
    caller = Caller(w)
    first = await caller.create("What is?")
    second = await caller.create("And now?", previous_response_id=first["id"])
    compacted = await compact(w, "hello", previous_response_id=second["id"])
    alone = await compact(w, None, previous_response_id=first["id"])

    assert words(compacted["output"]) == ["What is?", "And now?", "hello", "compaction"]
    assert words(alone["output"]) == ["What is?", "compaction"]
    known = w.decode.requests[1].prompt_token_ids  # their KV is of use
    assert w.decode.requests[2].prompt_token_ids[: len(known)] == known
    assert compacted["usage"]["thread_kv"] == "partial"


async def test_calls_and_their_outputs_are_summarised(tmp_path: Path) -> None:
    tool = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
    turns = FakeTurns(calls(("weather", "{}")), text("It ", "rains."), text("Still."))
    async with stored_world(tmp_path, turns=lambda services: turns) as w:
        caller = Caller(w)
        response = await caller.create("Weather?", tools=[tool])
        output = {"type": "function_call_output", "call_id": response["output"][0]["call_id"], "output": "rain"}
        asked = {"input": [output], "previous_response_id": response["id"]}
        open_call = await refused(w, "/v1/responses/compact", previous_response_id=response["id"])
        compacted = await caller.post("/v1/responses/compact", model=MODEL, **asked)
        await caller.create(compacted["output"])

    assert (open_call[0], "No tool output found for function call" in open_call[3]) == (400, True)
    assert words(compacted["output"]) == ["Weather?", "compaction"]
    summarised, gone_on = turns.requests[-2:]
    roles = [message["role"] for entry in summarised.history for message in entry.messages]
    assert roles == ["user", "assistant", "tool", "user"]
    assert (summarised.run["tools"], summarised.run["truncation_strategy"]["type"]) == ([], "auto")
    assert gone_on.history[-1].messages == ({"role": "system", "content": f"{LEAD}It rains."},)


async def test_a_conversation_has_a_compaction_among_its_items(w: World) -> None:
    caller = Caller(w)
    output = (await compact(w, TALK))["output"]
    conversation = await caller.conversation(*output)
    await caller.create("And now?", conversation=conversation)

    assert LEAD + SUMMARY in prompt(w)
    assert words(await caller.items(conversation)) == [*words(output), "And now?", "Paris"]
    changed = {**output[-1], "encrypted_content": output[-1]["encrypted_content"][:-8]}
    for path in ("/v1/conversations", f"/v1/conversations/{conversation}/items"):
        assert (await refused(w, path, items=[changed]))[:2] == (400, "invalid_encrypted_content")
    assert len(await caller.items(conversation)) == len(output) + 2


async def test_a_run_reads_what_a_compaction_stands_for(w: World) -> None:
    caller, assistants = Caller(w), Assistants(w)
    conversation = await caller.conversation(*(await compact(w, TALK))["output"])
    thread = conversation.replace("conv_", "thread_")
    await assistants.post(f"/v1/threads/{thread}/messages", role="user", content="And now?")
    await assistants.stream(thread, await assistants.assistant())

    assert prompt(w).endswith(
        f"<|im_start|>system\n{LEAD}{SUMMARY}<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_what_was_changed_is_refused_wherever_it_is_sent(w: World) -> None:
    [*_, item] = (await compact(w, TALK))["output"]
    sealed = item["encrypted_content"]
    changed = {**item, "encrypted_content": f"{sealed[:40]}{'A' if sealed[40] != 'A' else 'B'}{sealed[41:]}"}
    num_requests = len(w.decode.requests)

    for path in ("/v1/responses", "/v1/responses/compact", "/v1/responses/input_tokens"):
        status, code, param, message = await refused(w, path, input=[changed])
        assert (status, code, param) == (400, "invalid_encrypted_content", "input")
        assert f"{sealed[:4]}...{sealed[-4:]} could not be verified" in message
    assert (await refused(w, input=[changed], background=True))[1] == "invalid_encrypted_content"
    assert len(w.decode.requests) == num_requests


async def test_another_project_cannot_read_it(w: World) -> None:
    keys = [await w.keys.create(project) for project in ("one", "two")]
    await w.gateway.keys.refresh()
    writes(w, SUMMARY)
    body = {"model": MODEL, "input": TALK}
    compacted = await w.post("/v1/responses/compact", body, headers={"authorization": f"Bearer {keys[0]}"})
    asked = {"model": MODEL, "input": compacted.json()["output"]}
    own, other = [await w.post("/v1/responses", asked, headers={"authorization": f"Bearer {key}"}) for key in keys]

    assert own.status_code == 200
    assert (other.status_code, other.json()["error"]["code"]) == (400, "invalid_encrypted_content")


async def test_another_gateway_reads_it_and_another_cluster_does_not(tmp_path: Path) -> None:
    async with (
        pair(tmp_path, model=card(context_length=CONTEXT)) as both,
        stored_world(tmp_path / "other", secret=b"another cluster's secret") as other,
    ):
        output = (await compact(both.first, TALK))["output"]
        await Caller(both.second).create(output)

        assert LEAD + SUMMARY in prompt(both.second)
        assert (await refused(other, input=output))[:2] == (400, "invalid_encrypted_content")


async def test_only_the_last_words_of_the_user_are_kept(w: World) -> None:
    long = "hello world " * 100
    num_tokens = len(tokens(long))
    num_kept = CONTEXT // 4 // num_tokens
    talk = [{"role": "user", "content": f"{long}{place}"} for place in range(num_kept + 2)]
    compacted = await compact(w, talk)

    assert num_kept > 1
    assert words(compacted["output"]) == [*(each["content"] for each in talk[-num_kept:]), "compaction"]
    assert long in prompt(w)


async def test_what_does_not_fit_is_summarised_first(w: World) -> None:
    talk = [
        {"role": role, "content": f"{'hello world ' * 80}{place}"}
        for place in range(16)
        for role in ("user", "assistant")
    ]
    writes(w, "hello", "world", SUMMARY, SUMMARY)
    compacted = await Caller(w).post("/v1/responses/compact", model=MODEL, input=talk)
    prompts = [prompt(w, place) for place in range(len(w.decode.requests))]

    assert len(prompts) > 2
    assert {request.sampling.max_tokens for request in w.decode.requests} == {CONTEXT // 8}
    for each in talk:
        assert sum(f"{each['content']}<|im_end|>" in told for told in prompts) == 1
    assert [told.count(LEAD) for told in prompts] == [0, *(1 for _ in prompts[1:])]
    assert f"{LEAD}hello<|im_end|>" in prompts[1]
    assert f"{LEAD}world<|im_end|>" in prompts[2]
    assert compacted["usage"]["input_tokens"] == sum(len(each.prompt_token_ids) for each in w.decode.requests)
    await Caller(w).create(compacted["output"])
    assert LEAD + SUMMARY in prompt(w)


async def test_what_earlier_responses_left_out_is_summarised(w: World) -> None:
    caller, last = Caller(w), ""
    asked = [f"{'hello world ' * 300}{place}" for place in range(8)]
    for each in asked:
        last = (await caller.create(each, previous_response_id=last or None, truncation="auto", **SHORT))["id"]
    num_asked = len(w.decode.requests)
    assert asked[0] not in prompt(w)
    await compact(w, None, previous_response_id=last)
    prompts = [prompt(w, place) for place in range(num_asked, len(w.decode.requests))]

    assert len(prompts) > 1
    assert [sum(f"{each}<|im_end|>" in told for told in prompts) for each in asked] == [1] * len(asked)


async def test_what_cannot_be_summarised_is_refused(w: World) -> None:
    one = {"role": "user", "content": "hello world " * 3000}
    many = [{"role": "user", "content": f"{'hello world ' * 400}{place}"} for place in range(6 * MAX_PARTS)]
    for talk, reason, num_turns in (
        ([one], "one item", 0),
        (many, f"more than {MAX_PARTS} parts", 0),
        ([*TALK, one], "one item", 1),
    ):
        status, code, param, message = await refused(w, "/v1/responses/compact", input=talk)
        assert (status, code, param) == (400, "context_length_exceeded", "input")
        assert reason in message
        assert len(w.decode.requests) == num_turns


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model": None, "input": "hello"}, "model", "missing_required_parameter"),
        ({}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "missing_required_parameter"),
        ({"input": 3}, "input", "invalid_value"),
        ({"input": [{"type": "compaction"}]}, "input[0].encrypted_content", "missing_required_parameter"),
        ({"input": [{"type": "compaction_trigger"}]}, "input[0].type", "invalid_value"),
        ({"input": "hello", "previous_response_id": "resp_nothing"}, None, "previous_response_not_found"),
    ],
)
async def test_refusals(w: World, body: dict[str, Any], param: str | None, code: str) -> None:
    refusing = await refused(w, "/v1/responses/compact", **body)

    assert (refusing[0], refusing[1]) == (400, code)
    assert param is None or refusing[2] == param


async def test_a_model_that_is_not_served_is_not_found(w: World) -> None:
    assert (await refused(w, "/v1/responses/compact", model="nothing", input="hello"))[0] == 404


async def test_a_summary_at_its_limit_is_one_and_none_at_all_is_an_error(w: World) -> None:
    w.decode.first = [Script(tokens("Paris") * CONTEXT), Script([END_ID])]
    compacted = await Caller(w).post("/v1/responses/compact", model=MODEL, input=TALK)
    status, error = refusal(await w.post("/v1/responses/compact", {"model": MODEL, "input": TALK}))

    assert compacted["usage"]["output_tokens"] == LIMIT
    assert (status, error["message"].partition(".")[0]) == (502, "The model wrote no summary of the conversation")


async def test_the_work_ends_with_its_client(w: World) -> None:
    w.decode.first = [Script(tokens(SUMMARY), hang_after=1)]
    async with live(w, "POST", "/v1/responses/compact", model=MODEL, input=TALK):
        await w.decode.hanging.wait()

    assert w.decode.num_closed == 1


async def test_the_work_ends_at_the_deadline_of_the_request(tmp_path: Path) -> None:
    async with stored_world(tmp_path, model=card(context_length=CONTEXT), request_timeout_s=5) as w:
        w.decode.first = [Script(tokens(SUMMARY), hang_after=1)]
        asking = asyncio.create_task(w.post("/v1/responses/compact", {"model": MODEL, "input": TALK}))
        await w.decode.hanging.wait()
        w.clock.advance(6)
        response: httpx.Response = await asking

    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert w.decode.num_closed == 1


async def test_a_full_gateway_refuses_before_any_work(tmp_path: Path) -> None:
    settings = {"max_concurrent_requests": 1, "max_queue": 0}
    async with stored_world(tmp_path, model=card(context_length=CONTEXT), **settings) as w:
        w.decode.first = [Script(tokens(SUMMARY), hang_after=1)]
        asking = asyncio.create_task(w.post("/v1/responses/compact", {"model": MODEL, "input": TALK}))
        await w.decode.hanging.wait()
        full = await refused(w, "/v1/responses/compact", input=TALK)
        w.decode.release.set()
        response = await asking

    assert (full[0], full[1]) == (429, "rate_limit_exceeded")
    assert response.status_code == 200


def test_as_much_is_taken_as_openai_describes() -> None:
    assert MAX_SEALED_LENGTH == 20_971_520
