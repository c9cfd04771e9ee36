"""Runs from their making to their end, as clients see them."""

import asyncio
from typing import Any

import orjson
import pytest

from services.errors import NoDecodeWorker, PeerGone
from services.gateway.runs.job import Job
from services.gateway.store.kinds import RUN
from tests.gateway.apis.stored import refusal
from tests.gateway.runs.client import Caller, Seen, names, seen, text_of
from tests.gateway.runs.pair import long_answer
from tests.gateway.twins import END_ID, MODEL, Script, World, tokens

OPENED = [
    *("run.created", "run.queued", "run.in_progress"),
    *("run.step.created", "run.step.in_progress", "message.created", "message.in_progress"),
]
WHOLE = [*OPENED, "message.delta", "message.completed", "run.step.completed", "run.completed"]
RUN_FIELDS = {
    *("id", "object", "created_at", "thread_id", "assistant_id", "status", "required_action", "last_error"),
    *("expires_at", "started_at", "cancelled_at", "failed_at", "completed_at", "incomplete_details", "model"),
    *("instructions", "tools", "metadata", "usage", "temperature", "top_p", "max_prompt_tokens"),
    *("max_completion_tokens", "truncation_strategy", "tool_choice", "parallel_tool_calls", "response_format"),
}
STEP_FIELDS = {
    *("id", "object", "created_at", "assistant_id", "thread_id", "run_id", "type", "status", "step_details"),
    *("last_error", "expired_at", "cancelled_at", "failed_at", "completed_at", "metadata", "usage"),
}
MESSAGE_FIELDS = {
    *("id", "object", "created_at", "thread_id", "status", "incomplete_details", "completed_at", "incomplete_at"),
    *("role", "content", "assistant_id", "run_id", "attachments", "metadata"),
}


async def test_a_stream_has_exactly_these_events(w: World) -> None:
    caller = Caller(w)
    thread, assistant = await caller.thread(), await caller.assistant(instructions="Teach.")
    events = await caller.stream(thread, assistant, metadata={"k": "v"})

    assert names(events) == WHOLE
    assert text_of(events) == "Paris"
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    by_name = {event.name.removeprefix("thread."): event.data for event in events}
    assert by_name["run.created"].keys() == by_name["run.completed"].keys() == RUN_FIELDS
    assert by_name["run.step.created"].keys() == STEP_FIELDS
    assert by_name["message.created"].keys() == MESSAGE_FIELDS
    assert [by_name[f"run.{status}"]["status"] for status in ("created", "queued", "in_progress", "completed")] == [
        *("queued", "queued", "in_progress", "completed")
    ]
    assert (by_name["message.created"]["content"], by_name["message.created"]["status"]) == ([], "in_progress")
    assert by_name["message.completed"]["content"] == [{"type": "text", "text": {"value": "Paris", "annotations": []}}]
    assert by_name["run.step.completed"]["usage"] == by_name["run.completed"]["usage"]
    run = by_name["run.created"]
    assert (run["instructions"], run["metadata"], run["tool_choice"]) == ("Teach.", {"k": "v"}, "auto")
    assert run["expires_at"] == run["created_at"] + 600


async def test_what_is_stored_is_what_was_streamed(w: World) -> None:
    caller = Caller(w)
    thread = await caller.thread()
    events = await caller.stream(thread, await caller.assistant())
    run = events[-1].data
    path = f"/v1/threads/{thread}"
    [step] = (await caller.get(f"{path}/runs/{run['id']}/steps"))["data"]
    [message] = (await caller.get(f"{path}/messages", run_id=run["id"]))["data"]

    assert await caller.get(f"{path}/runs/{run['id']}") == run
    assert await caller.get(f"{path}/runs/{run['id']}/steps/{step['id']}") == step
    assert [step, message] == [
        next(event.data for event in events if event.name == name)
        for name in ("thread.run.step.completed", "thread.message.completed")
    ]
    assert step["step_details"] == {"type": "message_creation", "message_creation": {"message_id": message["id"]}}
    assert (await caller.get(f"{path}/runs"))["data"] == [run]


async def test_a_run_that_ended_keeps_no_prompt(w: World) -> None:
    caller = Caller(w)
    thread, assistant = await caller.thread(), await caller.assistant()
    ended = (await caller.stream(thread, assistant))[-1].data
    w.decode.first = [Script(tokens("Paris"), hang_after=1)]
    await caller.post(f"/v1/threads/{thread}/messages", role="user", content="Well?")
    run = await caller.run(thread, assistant)
    await w.decode.hanging.wait()
    await caller.post(f"/v1/threads/{thread}/runs/{run['id']}/cancel")
    objects = w.gateway.jobs._storage.of("default").objects
    kept = [
        (record.body["status"], record.private)
        for record in [await objects.get(RUN.ref(each["id"]), with_private=True) for each in (ended, run)]
    ]

    assert kept == [("completed", Job().to_bytes()), ("cancelled", Job().to_bytes())]


async def test_a_run_is_answered_at_once_and_polled(w: World) -> None:
    caller = Caller(w)
    w.decode.default = long_answer(hang_after=3)
    thread, assistant = await caller.thread(), await caller.assistant()
    reply = await w.post(f"/v1/threads/{thread}/runs", {"assistant_id": assistant})
    run = reply.json()
    await caller.settled(thread, run["id"], "in_progress")
    w.decode.release.set()
    ended = await caller.settled(thread, run["id"])

    assert (run["status"], reply.headers["openai-poll-after-ms"]) == ("queued", "200")
    assert (ended["status"], ended["usage"]["completion_tokens"]) == ("completed", len(long_answer().output))
    assert ended["usage"]["total_tokens"] == ended["usage"]["prompt_tokens"] + ended["usage"]["completion_tokens"]


async def test_a_thread_is_made_with_its_run(w: World) -> None:
    caller = Caller(w)
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    body = {"assistant_id": await caller.assistant(), "thread": {"messages": messages, "metadata": {"a": "b"}}}
    events = seen(await w.post("/v1/threads/runs", {**body, "stream": True}))
    thread = events[0].data
    run = await caller.post("/v1/threads/runs", assistant_id=body["assistant_id"])
    await caller.settled(run["thread_id"], run["id"])

    assert names(events) == ["created", *WHOLE]
    assert await caller.get(f"/v1/threads/{thread['id']}") == thread
    assert thread["metadata"] == {"a": "b"}
    assert await caller.texts(thread["id"]) == [("user", "one"), ("assistant", "two"), ("assistant", "Paris")]
    assert await caller.texts(run["thread_id"]) == [("assistant", "Paris")]


async def test_what_a_run_names_goes_before_what_the_assistant_has(w: World) -> None:
    caller = Caller(w)
    thread, assistant = await caller.thread(), await caller.assistant(instructions="Teach.", temperature=0.5)
    events = await caller.stream(
        thread,
        assistant,
        additional_instructions="Shortly.",
        additional_messages=[{"role": "user", "content": "more"}],
        temperature=0.25,
        top_p=0.5,
        max_completion_tokens=300,
        tool_choice="none",
        parallel_tool_calls=False,
        truncation_strategy={"type": "last_messages", "last_messages": 1},
    )
    replaced = await caller.stream(thread, assistant, instructions="Sing.", model=MODEL)

    run = events[-1].data
    asked = w.decode.requests[0]
    prompt = w.gateway.catalog._loaded.popitem()[1].tokenizer.raw.decode(list(asked.prompt_token_ids))
    assert run["instructions"] == "Teach.\nShortly."
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.max_tokens) == (0.25, 0.5, 300)
    assert (run["tool_choice"], run["parallel_tool_calls"], run["max_completion_tokens"]) == ("none", False, 300)
    assert "Shortly." in prompt and "more" in prompt and "hello" not in prompt
    assert (await caller.texts(thread))[:2] == [("user", "hello"), ("user", "more")]
    assert replaced[-1].data["instructions"] == "Sing."


async def test_an_answer_without_text_is_a_message_too(w: World) -> None:
    w.decode.default = Script([END_ID])
    caller = Caller(w)
    thread = await caller.thread()
    events = await caller.stream(thread, await caller.assistant())

    assert names(events) == [*OPENED, "message.completed", "run.step.completed", "run.completed"]
    assert (await caller.texts(thread))[-1] == ("assistant", "")


async def test_metadata_of_a_run_are_replaced(w: World) -> None:
    caller = Caller(w)
    thread = await caller.thread()
    run = (await caller.stream(thread, await caller.assistant(), metadata={"a": "1"}))[-1].data
    path = f"/v1/threads/{thread}/runs/{run['id']}"

    assert (await caller.post(path))["metadata"] == {"a": "1"}
    assert (await caller.post(path, metadata={"b": "2"})) == {**run, "metadata": {"b": "2"}}
    assert (await caller.post(path, metadata=None))["metadata"] == {}


async def cancelled_at(w: World, num_tokens: int) -> tuple[Caller, str, Any, list[Seen]]:
    caller = Caller(w)
    w.decode.default = long_answer(hang_after=num_tokens)
    thread = await caller.thread()
    run = await caller.run(thread, await caller.assistant())
    await w.decode.hanging.wait()
    await caller.settled(thread, run["id"], "in_progress")
    path = f"/v1/threads/{thread}/runs/{run['id']}"
    answered = await caller.post(f"{path}/cancel")
    return caller, thread, answered, await caller.events(thread, run["id"])


async def test_a_cancelled_run_stops_its_worker_and_keeps_what_it_wrote(w: World) -> None:
    caller, thread, answered, events = await cancelled_at(w, 10)
    ended = await caller.settled(thread, answered["id"])
    messages = await caller.messages(thread)

    assert (answered["status"], ended["status"], ended["expires_at"]) == ("cancelling", "cancelled", None)
    assert w.decode.num_closed == 1
    assert w.gateway.jobs.held() == {}
    written = text_of(events)
    if written:
        assert names(events)[-4:] == ["run.cancelling", "message.incomplete", "run.step.cancelled", "run.cancelled"]
        assert messages[-1]["incomplete_details"] == {"reason": "run_cancelled"}
        assert messages[-1]["content"][0]["text"]["value"] == written
    await caller.post(f"/v1/threads/{thread}/messages", role="user", content="next")


async def test_a_run_that_ended_cannot_be_cancelled(w: World) -> None:
    caller = Caller(w)
    thread = await caller.thread()
    run = (await caller.stream(thread, await caller.assistant()))[-1].data["id"]
    path = f"/v1/threads/{thread}/runs/{run}"

    ended = refusal(await w.post(f"{path}/cancel", {}))
    outputs = refusal(await w.post(f"{path}/submit_tool_outputs", {"tool_outputs": []}))
    kind = {"type": "invalid_request_error", "param": None, "code": None}
    assert ended == (400, {"message": "Cannot cancel run with status 'completed'.", **kind})
    assert outputs == (400, {"message": 'Runs in status "completed" do not accept tool outputs.', **kind})


async def test_messages_have_to_wait_while_a_run_is_active(w: World) -> None:
    caller = Caller(w)
    w.decode.default = long_answer(hang_after=3)
    thread, assistant = await caller.thread(), await caller.assistant()
    run = (await caller.run(thread, assistant))["id"]
    [message] = await caller.messages(thread)
    path = f"/v1/threads/{thread}"
    added = refusal(await w.post(f"{path}/messages", {"role": "user", "content": "x"}))
    deleted = refusal(await w.client.delete(f"{path}/messages/{message['id']}"))
    second = refusal(await w.post(f"{path}/runs", {"assistant_id": assistant}))
    w.decode.release.set()
    await caller.settled(thread, run)
    await caller.post(f"{path}/messages", role="user", content="x")

    kind = {"type": "invalid_request_error", "param": None, "code": None}
    busy = {"message": f"Can't add messages to {thread} while a run {run} is active.", **kind}
    assert (added, deleted) == ((400, busy), (400, busy))
    assert second == (400, {"message": f"Thread {thread} already has an active run {run}.", **kind})


async def test_a_run_expires_in_the_middle_of_its_text(w: World) -> None:
    caller = Caller(w)
    w.decode.default = long_answer(hang_after=3)
    thread = await caller.thread()
    run = (await caller.run(thread, await caller.assistant()))["id"]
    await w.decode.hanging.wait()
    await caller.settled(thread, run, "in_progress")
    w.clock.advance(601)
    await w.gateway.sweeper.sweep()
    ended = await caller.settled(thread, run)
    events = await caller.events(thread, run)

    assert (ended["status"], ended["expires_at"]) == ("expired", None)
    assert names(events)[-1] == "run.expired"
    if text_of(events):
        assert names(events)[-3:] == ["message.incomplete", "run.step.expired", "run.expired"]
        assert (await caller.messages(thread))[-1]["incomplete_details"] == {"reason": "run_expired"}
    await caller.post(f"/v1/threads/{thread}/messages", role="user", content="free")


async def test_a_run_that_reaches_its_limit_is_incomplete(w: World) -> None:
    caller = Caller(w)
    output = (tokens("hello world ") * 200)[:300]
    w.decode.default = Script(output)
    thread = await caller.thread()
    events = await caller.stream(thread, await caller.assistant(), max_completion_tokens=256)

    run = events[-1].data
    assert names(events)[-3:] == ["message.incomplete", "run.step.completed", "run.incomplete"]
    assert run["incomplete_details"] == {"reason": "max_completion_tokens"}
    assert run["usage"]["completion_tokens"] == 256
    assert (await caller.messages(thread))[-1]["incomplete_details"] == {"reason": "max_tokens"}


async def test_a_conversation_that_fits_into_no_limit_is_incomplete_or_failed(w: World) -> None:
    caller = Caller(w)
    limited = await caller.stream(await caller.thread("x " * 300), await caller.assistant(), max_prompt_tokens=256)
    without = await caller.stream(await caller.thread("x " * 600), await caller.assistant())

    assert names(limited)[-1] == "run.incomplete"
    assert limited[-1].data["incomplete_details"] == {"reason": "max_prompt_tokens"}
    assert names(without)[-1] == "run.failed"
    assert without[-1].data["last_error"]["code"] == "invalid_prompt"
    assert "maximum context length" in without[-1].data["last_error"]["message"]


async def test_a_run_waits_for_workers_and_fails_if_none_comes(w: World) -> None:
    caller = Caller(w)
    thread, assistant = await caller.thread(), await caller.assistant()
    w.decode.first = [Script(refuse=PeerGone("x"))] * 12 + [Script([*tokens("Paris"), END_ID])]
    recovered = await caller.stream(thread, assistant)
    w.decode.default = Script(error=NoDecodeWorker("gone"), fail_after=0)
    failed = await caller.stream(thread, assistant)

    assert (names(recovered)[-1], text_of(recovered)) == ("run.completed", "Paris")
    assert (names(failed)[-1], failed[-1].data["last_error"]["code"]) == ("run.failed", "server_error")


async def test_a_defect_fails_the_run(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("services.gateway.runs.work.read_history", broken)
    caller = Caller(w)
    events = await caller.stream(await caller.thread(), await caller.assistant())

    assert names(events)[-1] == "run.failed"
    assert "secret" not in orjson.dumps([event.data for event in events]).decode()


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"max_prompt_tokens": 255}, "max_prompt_tokens", "integer_below_min_value"),
        ({"max_completion_tokens": 1}, "max_completion_tokens", "integer_below_min_value"),
        ({"temperature": 3}, "temperature", None),
        ({"truncation_strategy": {"type": "last_messages"}}, "truncation_strategy", "invalid_value"),
        ({"tool_choice": "some"}, "tool_choice", "invalid_value"),
        ({"tools": [{"type": "x"}]}, "tools[0].type", "invalid_value"),
        ({"unknown": 1}, "unknown", "unknown_parameter"),
        ({"additional_messages": [{"role": "user", "content": ""}]}, "additional_messages[0].content", None),
    ],
)
async def test_bodies_are_checked(w: World, body: dict[str, Any], param: str, code: str | None) -> None:
    caller = Caller(w)
    thread, assistant = await caller.thread(), await caller.assistant()
    status, error = refusal(await w.post(f"/v1/threads/{thread}/runs", {"assistant_id": assistant, **body}))

    assert (status, error["param"]) == (400, param)
    assert code is None or error["code"] == code
    assert (await caller.get(f"/v1/threads/{thread}/runs"))["data"] == []


async def test_what_is_absent_is_said_to_be(w: World) -> None:
    caller = Caller(w)
    thread, other, assistant = await caller.thread(), await caller.thread(), await caller.assistant()
    run = (await caller.stream(thread, assistant))[-1].data["id"]
    path = f"/v1/threads/{other}/runs"
    replies = [
        await w.post(path, {"assistant_id": "asst_x"}),
        await w.post("/v1/threads/thread_x/runs", {"assistant_id": assistant}),
        await w.post(path, {"assistant_id": assistant, "model": "nobody"}),
        *[await w.client.get(f"{path}/{run}{rest}") for rest in ("", "/steps", "/events", "/steps/step_x")],
        *[await w.post(f"{path}/{run}{rest}", {"tool_outputs": []}) for rest in ("/cancel", "/submit_tool_outputs")],
    ]
    wrong = refusal(await w.client.get(f"{path}/thread_x"))

    found = [refusal(reply) for reply in replies]
    assert {status for status, _ in found} == {404}
    assert [error["message"] for _, error in found[:2]] == [
        *("No assistant found with id 'asst_x'.", "No thread found with id 'thread_x'.")
    ]
    assert {error["message"] for _, error in found[3:]} == {f"No run found with id '{run}'."}
    assert wrong[1]["message"] == "Invalid 'run_id': 'thread_x'. Expected an ID that begins with 'run'."


async def test_a_timeline_is_found_by_the_id_of_its_run(w: World) -> None:
    caller = Caller(w)
    thread = await caller.thread()
    run = (await caller.stream(thread, await caller.assistant()))[-1].data["id"]
    steps = (await caller.get(f"/v1/requests/{run}/timeline"))["steps"]

    assert "generate" in [step["name"] for step in steps]


async def test_runs_of_one_project_are_hidden_from_another(w: World) -> None:
    mine = {"authorization": f"Bearer {await w.keys.create('mine')}"}
    theirs = {"authorization": f"Bearer {await w.keys.create('theirs')}"}
    assistant = (await w.post("/v1/assistants", {"model": MODEL}, headers=mine)).json()["id"]
    body = {"assistant_id": assistant, "stream": True}
    run = seen(await w.post("/v1/threads/runs", body, headers=mine))[-1].data
    path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}"

    for rest in ("", "/steps", "/events"):
        assert (await w.client.get(path + rest, headers=theirs)).status_code == 404
    assert (await w.client.get(path, headers=mine)).json() == run
    await asyncio.sleep(0)
