"""Objects as OpenAI's API returned them, one a line."""

from pathlib import Path
from typing import Any

import pytest

from services.errors import InvalidRequest
from tests.gateway.moving.moving import Reader, imported, lines
from tests.gateway.search.searching import Library
from tests.gateway.twins import World

ASSISTANT = {
    "id": "asst_abc123",
    "object": "assistant",
    "created_at": 1698984975,
    "name": "Math Tutor",
    "description": None,
    "model": "gpt-4o",
    "instructions": "You are a personal math tutor.",
    "tools": [
        {"type": "code_interpreter"},
        {
            "type": "file_search",
            "file_search": {"ranking_options": {"ranker": "default_2024_08_21", "score_threshold": 0.0}},
        },
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False},
        },
    ],
    "tool_resources": {"code_interpreter": {"file_ids": []}, "file_search": {"vector_store_ids": ["vs_1"]}},
    "metadata": {"school": "north"},
    "top_p": 1.0,
    "temperature": 1.0,
    "reasoning_effort": None,
    "response_format": "auto",
}
THREAD = {
    "id": "thread_abc123",
    "object": "thread",
    "created_at": 1699012949,
    "metadata": {"modified": "true"},
    "tool_resources": {},
}
ASKED = {
    "id": "msg_abc123",
    "object": "thread.message",
    "created_at": 1699017614,
    "assistant_id": None,
    "thread_id": "thread_abc123",
    "run_id": None,
    "role": "user",
    "content": [{"type": "text", "text": {"value": "How does AI work?", "annotations": []}}],
    "attachments": [],
    "metadata": {},
}
CITATION = {
    "type": "file_citation",
    "text": "【4:0†source】",
    "start_index": 12,
    "end_index": 24,
    "file_citation": {"file_id": "file-abc", "quote": "q"},
}
ANSWERED = {
    **ASKED,
    "id": "msg_abc124",
    "created_at": 1699017600,  # of its run's beginning, which clocks may tell otherwise
    "assistant_id": "asst_abc123",
    "run_id": "run_abc123",
    "role": "assistant",
    "status": "completed",
    "incomplete_details": None,
    "completed_at": 1699017620,
    "incomplete_at": None,
    "content": [
        {"type": "text", "text": {"value": "By learning 【4:0†source】.", "annotations": [CITATION]}},
        {"type": "refusal", "refusal": "More I do not say."},
        {"type": "image_file", "image_file": {"file_id": "file-p", "detail": "auto"}},
    ],
    "attachments": [{"file_id": "file-abc", "tools": [{"type": "file_search"}]}],
}
RUN = {
    "id": "run_abc123",
    "object": "thread.run",
    "created_at": 1699063290,
    "assistant_id": "asst_abc123",
    "thread_id": "thread_abc123",
    "status": "completed",
    "started_at": 1699063290,
    "expires_at": None,
    "cancelled_at": None,
    "failed_at": None,
    "completed_at": 1699063291,
    "required_action": None,
    "last_error": None,
    "incomplete_details": None,
    "model": "gpt-4o",
    "instructions": None,
    "tools": [{"type": "code_interpreter"}],
    "metadata": {},
    "usage": {"prompt_tokens": 123, "completion_tokens": 456, "total_tokens": 579},
    "temperature": 1.0,
    "top_p": 1.0,
    "max_prompt_tokens": 1000,
    "max_completion_tokens": 1000,
    "truncation_strategy": {"type": "auto", "last_messages": None},
    "response_format": "auto",
    "tool_choice": "auto",
    "parallel_tool_calls": True,
}
STEP = {
    "id": "step_abc123",
    "object": "thread.run.step",
    "created_at": 1699063291,
    "run_id": "run_abc123",
    "assistant_id": "asst_abc123",
    "thread_id": "thread_abc123",
    "type": "tool_calls",
    "status": "completed",
    "cancelled_at": None,
    "completed_at": 1699063291,
    "expired_at": None,
    "failed_at": None,
    "last_error": None,
    "step_details": {
        "type": "tool_calls",
        "tool_calls": [
            {"id": "call_1", "type": "code_interpreter", "code_interpreter": {"input": "1+1", "outputs": []}},
            {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": "{}", "output": "x"}},
        ],
    },
    "usage": {"prompt_tokens": 123, "completion_tokens": 456, "total_tokens": 579},
}
FILE = {
    "id": "file-abc",
    "object": "file",
    "bytes": 29,
    "created_at": 1699061776,
    "filename": "trains.txt",
    "purpose": "assistants",
    "status": "processed",
    "status_details": None,
    "expires_at": None,
}
STORE = {
    "id": "vs_1",
    "object": "vector_store",
    "created_at": 1699061776,
    "name": None,
    "usage_bytes": 139920,
    "file_counts": {"in_progress": 0, "completed": 1, "failed": 0, "cancelled": 0, "total": 1},
    "status": "completed",
    "expires_after": None,
    "expires_at": None,
    "last_active_at": 1699061776,
    "metadata": {},
}
STORED_FILE = {
    "id": "file-abc",
    "object": "vector_store.file",
    "created_at": 1699061776,
    "usage_bytes": 1234,
    "vector_store_id": "vs_1",
    "status": "completed",
    "last_error": None,
    "chunking_strategy": {"type": "other"},
    "attributes": {"line": "north"},
}
CONVERSATION = {"id": "conv_123", "object": "conversation", "created_at": 1741900000, "metadata": {"topic": "demo"}}
ITEM = {"id": "fc_1", "type": "function_call", "status": "completed", "call_id": "c1", "name": "f", "arguments": "{}"}
SAID = {
    "id": "msg_9",
    "type": "message",
    "status": "completed",
    "role": "user",
    "content": [{"type": "input_text", "text": "Hello!"}],
}
RESPONSE = {
    "id": "resp_67ccd2bed1ec8190",
    "object": "response",
    "created_at": 1741476542,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "model": "gpt-4.1",
    "output": [
        {
            "type": "message",
            "id": "msg_67ccd2bf17f0819081ff3bb2cf6508e6",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Once upon a time.", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": {"input_tokens": 36, "output_tokens": 87, "total_tokens": 123},
    "user": None,
    "metadata": {},
}


@pytest.fixture
def w(lib: Library) -> World:
    return lib.w


async def test_assistants_threads_and_messages_are_what_they_were(w: World) -> None:
    restored = await imported(w, lines(ASSISTANT, THREAD, ASKED, ANSWERED, RUN, STEP))
    reader = Reader(w)

    assert restored.made.total() == 6
    assert await reader.get("/v1/assistants/asst_abc123") == ASSISTANT
    assert await reader.get("/v1/threads/thread_abc123") == THREAD
    asked, answered = await reader.data("/v1/threads/thread_abc123/messages")
    assert {name: asked[name] for name in ASKED} == ASKED
    assert (asked["status"], asked["completed_at"]) == ("completed", ASKED["created_at"])
    assert answered == ANSWERED
    assert await reader.data("/v1/threads/thread_abc123/messages", run_id="run_abc123") == [ANSWERED]
    [run] = await reader.data("/v1/threads/thread_abc123/runs")
    assert run == {**RUN, "instructions": ""}
    [step] = await reader.data("/v1/threads/thread_abc123/runs/run_abc123/steps")
    assert step == {**STEP, "metadata": {}}


async def test_what_older_messages_left_out_has_its_default(w: World) -> None:
    picture = {"type": "image_file", "image_file": {"file_id": "file-p"}}
    content = [picture, {"type": "text", "text": {"value": "x"}}]
    bare = {name: ASKED[name] for name in ("id", "object", "created_at", "thread_id", "role")}
    await imported(w, lines(THREAD, {**bare, "content": content, "attachments": [{"file_id": "file-a"}]}))

    [shown] = await Reader(w).data("/v1/threads/thread_abc123/messages")
    assert shown["content"] == [
        {"type": "image_file", "image_file": {"file_id": "file-p", "detail": "auto"}},
        {"type": "text", "text": {"value": "x", "annotations": []}},
    ]
    assert (shown["attachments"], shown["metadata"]) == ([{"file_id": "file-a", "tools": []}], {})


async def test_files_get_their_bytes_from_the_folder_and_are_found_again(lib: Library, tmp_path: Path) -> None:
    (tmp_path / "trains.txt").write_text("trains and ships move people.")
    await imported(lib.w, lines(FILE, STORE, STORED_FILE), tmp_path)
    await lib.ingest()
    reader = Reader(lib.w)

    shown = {name: value for name, value in FILE.items() if name not in ("status_details", "expires_at")}
    assert await reader.get("/v1/files/file-abc") == shown
    store = await reader.get("/v1/vector_stores/vs_1")
    assert (store["file_counts"]["completed"], store["created_at"], store["name"]) == (1, STORE["created_at"], "")
    [found] = await lib.search("/v1/vector_stores/vs_1", "trains")
    assert (found["file_id"], found["attributes"]) == ("file-abc", {"line": "north"})


async def test_conversations_and_responses_are_what_they_were(w: World) -> None:
    items = [{"kind": "conversation.item", "parent": "conv_123", "body": body} for body in (SAID, ITEM)]
    data = lines(CONVERSATION, *items, RESPONSE)
    restored, again = await imported(w, data), await imported(w, data)
    reader = Reader(w)

    assert (restored.made.total(), again.present.total()) == (4, 4)
    assert await reader.get("/v1/conversations/conv_123") == CONVERSATION
    assert await reader.data("/v1/conversations/conv_123/items") == [SAID, ITEM]
    shown = await reader.get(f"/v1/responses/{RESPONSE['id']}")
    output = RESPONSE["output"]
    assert isinstance(output, list)
    content = [{**part, "logprobs": []} for part in output[0]["content"]]
    assert {name: shown[name] for name in RESPONSE} == {**RESPONSE, "output": [{**output[0], "content": content}]}
    assert (shown["conversation"], shown["background"]) == (None, False)


async def test_events_of_what_came_from_elsewhere_are_not_kept(w: World) -> None:
    await imported(w, lines(ASSISTANT, THREAD, RUN, RESPONSE))
    run = await w.client.get("/v1/threads/thread_abc123/runs/run_abc123/events")
    response = await w.client.get(f"/v1/responses/{RESPONSE['id']}", params={"stream": "true"})
    cancelled = await w.post("/v1/threads/thread_abc123/runs/run_abc123/cancel", {})
    deleted = await w.client.delete(f"/v1/responses/{RESPONSE['id']}")

    assert "The events of the run 'run_abc123' are not kept any more." in run.text
    assert f"The events of the response '{RESPONSE['id']}' are not kept any more." in response.text
    assert cancelled.json()["error"]["message"] == "Cannot cancel run with status 'completed'."
    assert deleted.json()["deleted"]


def but(shown: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**shown, **changes}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (b"{", "Line 2: It is not valid JSON"),
        (b"[]", "Line 2: It is no object of the API"),
        (lines({"object": "list", "data": [THREAD]}), "Line 2: It is a page of a list: write each object of 'data'"),
        (
            lines({"object": "batch", "id": "b"}),
            "Line 2 (batch b): Invalid value: 'batch'. Supported values are: 'file',",
        ),
        (lines(but(THREAD, id="conv_1")), "Line 2 (thread conv_1): Invalid 'id': 'conv_1'. Expected an ID that begins"),
        (lines(but(THREAD, id="thread_/")), "Line 2 (thread thread_/): Invalid 'id': an id has 1 to 128 letters"),
        (lines(but(STORE, id="vs_1.2")), "Line 2 (vector_store vs_1.2): Invalid 'id': an id has 1 to 128 letters"),
        (lines(but(THREAD, metadata={"a": 1})), "Line 2 (thread thread_abc123): Invalid type for 'metadata.a'"),
        (lines(but(ASSISTANT, file_ids=[])), "Line 2 (assistant asst_abc123): Unknown parameter: 'file_ids'."),
        (lines(but(ASSISTANT, temperature=3)), "Line 2 (assistant asst_abc123): Invalid 'temperature'"),
        (
            lines(but(ASSISTANT, tool_resources={"file_search": {"vector_stores": [{"file_ids": []}]}})),
            "asks for new vector stores",
        ),
        (lines(but(ASKED, thread_id="thread_none")), "Line 2 (thread.message msg_abc123): No thread found with id"),
        (lines(but(ASKED, content="hello")), "Line 2 (thread.message msg_abc123): Invalid type for 'content'"),
        (lines(but(ASKED, status="in_progress")), "Line 2 (thread.message msg_abc123): Invalid value: 'in_progress'"),
        (lines(but(ASKED, run_id="run_/")), "Line 2 (thread.message msg_abc123): Invalid 'run_id'"),
        (lines(but(RUN, status="queued")), "Line 2 (thread.run run_abc123): Invalid value: 'queued'."),
        (lines(but(STEP, run_id="run_none")), "Line 2 (thread.run.step step_abc123): No run found with id 'run_none'."),
        (lines(FILE), "Line 2 (file file-abc): Name the folder with the bytes of files: --files-folder FOLDER."),
        (lines(STORED_FILE), "Line 2 (vector_store.file file-abc): No vector store found with id 'vs_1'."),
        (lines({"kind": "conversation.item", "body": ITEM}), "names its conversation as 'parent'"),
        (
            lines({"kind": "conversation.item", "parent": "conv_abc123", "body": but(ITEM, id="")}),
            "An item has an 'id'",
        ),
        (lines({"kind": "thread", "body": THREAD, "more": 1}), "Line 2: Unknown parameter: 'more'."),
        (lines(but(RESPONSE, output=[{"type": "web_search_call", "id": "ws_1"}])), "Supported values are: 'message',"),
        (
            lines({"kind": "thread.run.step", "body": STEP, "kept": {"searches": {"call_2": {}}}}),
            "Missing required parameter: 'searches.call_2.arguments'.",
        ),
    ],
)
async def test_a_wrong_line_ends_the_import_with_a_sentence(w: World, wrong: bytes, message: str) -> None:
    rest = lines(ASKED)
    with pytest.raises(InvalidRequest) as refused:
        await imported(w, lines(THREAD) + wrong.rstrip() + b"\n" + rest)

    assert message in refused.value.message
    assert await Reader(w).get("/v1/threads/thread_abc123") == THREAD
    assert await Reader(w).data("/v1/threads/thread_abc123/messages") == []
