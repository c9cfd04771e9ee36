"""``/v1/threads`` and their messages over a real Redis."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.apis.stored import ids, refusal, stored_world
from tests.gateway.twins import World

USER = {"role": "user", "content": "hello"}


async def posted(w: World, path: str, body: Any) -> dict[str, Any]:
    response = await w.post(path, body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


async def new_thread(w: World, **fields: Any) -> str:
    """The path of a new thread."""
    return f"/v1/threads/{(await posted(w, '/v1/threads', fields))['id']}"


async def test_a_new_thread_has_every_field(w: World) -> None:
    for body in (b"", b"{}"):
        thread = await posted(w, "/v1/threads", body)
        assert re.fullmatch(r"thread_[0-9A-Za-z]{24}", thread.pop("id"))
        assert isinstance(thread.pop("created_at"), int)
        assert thread == {"object": "thread", "metadata": {}, "tool_resources": {}}


async def test_a_thread_is_modified_and_deleted(w: World) -> None:
    path = await new_thread(w, metadata={"a": "1"})
    thread = (await w.client.get(path)).json()
    changed = await posted(w, path, {"tool_resources": {"code_interpreter": {"file_ids": ["file-1"]}}})
    cleared = await posted(w, path, {"metadata": None})

    assert changed == {**thread, "tool_resources": {"code_interpreter": {"file_ids": ["file-1"]}}}
    assert cleared == {**changed, "metadata": {}} == (await w.client.get(path)).json()
    deleted = (await w.client.delete(path)).json()
    assert deleted == {"id": thread["id"], "object": "thread.deleted", "deleted": True}
    assert refusal(await w.client.get(path)) == (
        404,
        {
            "message": f"No thread found with id '{thread['id']}'.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        },
    )


async def test_a_message_has_every_field(w: World) -> None:
    path = await new_thread(w)
    message = await posted(w, f"{path}/messages", {**USER, "metadata": {"a": "b"}})

    assert (await w.client.get(f"{path}/messages/{message['id']}")).json() == message
    assert re.fullmatch(r"msg_[0-9A-Za-z]{24}", message.pop("id"))
    created = message.pop("created_at")
    assert message == {
        "object": "thread.message",
        "thread_id": path.rpartition("/")[2],
        "status": "completed",
        "incomplete_details": None,
        "completed_at": created,
        "incomplete_at": None,
        "role": "user",
        "content": [{"type": "text", "text": {"value": "hello", "annotations": []}}],
        "assistant_id": None,
        "run_id": None,
        "attachments": [],
        "metadata": {"a": "b"},
    }


async def test_content_parts_and_attachments_are_kept(w: World) -> None:
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "image_file", "image_file": {"file_id": "file-1", "detail": "low"}},
    ]
    attachments = [{"file_id": "file-1", "tools": [{"type": "code_interpreter"}]}]
    body = {"role": "assistant", "content": content, "attachments": attachments}
    message = await posted(w, f"{await new_thread(w)}/messages", body)

    assert message["content"] == [
        {"type": "text", "text": {"value": "look", "annotations": []}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "auto"}},
        {"type": "image_file", "image_file": {"file_id": "file-1", "detail": "low"}},
    ]
    assert (message["attachments"], message["role"]) == (attachments, "assistant")


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        ({"role": "user"}, "Missing required parameter: 'content'.", "content", "missing_required_parameter"),
        (
            {"role": "system", "content": "x"},
            "Invalid value: 'system'. Supported values are: 'user' and 'assistant'.",
            "role",
            "invalid_value",
        ),
        ({"role": "user", "content": ""}, "Message content must be non-empty.", "content", None),
        (
            {"role": "user", "content": 5},
            "Invalid type for 'content': expected a string, but got an integer instead.",
            "content",
            "invalid_type",
        ),
        (
            {"role": "user", "content": []},
            "Invalid 'content': empty array. Expected an array with minimum length 1, but got an array with length 0 "
            "instead.",
            "content",
            "empty_array",
        ),
        (
            {"role": "user", "content": [{"type": "audio"}]},
            "Invalid value: 'audio'. Supported values are: 'text', 'image_url', and 'image_file'.",
            "content[0].type",
            "invalid_value",
        ),
        (
            {"role": "user", "content": "x" * 256_001},
            "Invalid 'content': string too long. Expected a string with maximum length 256000, but got a string with "
            "length 256001 instead.",
            "content",
            "string_above_max_length",
        ),
    ],
)
async def test_messages_are_checked_alone_and_in_a_new_thread(
    w: World, body: dict[str, Any], message: str, param: str, code: str | None
) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    alone = await w.post(f"{await new_thread(w)}/messages", body)
    within = refusal(await w.post("/v1/threads", {"messages": [USER, body]}))

    assert refusal(alone) == (400, error)
    assert (within[0], within[1]["param"]) == (400, f"messages[1].{param}")


async def test_the_first_messages_of_a_thread_come_with_it_in_order(w: World) -> None:
    path = await new_thread(w, messages=[{**USER, "content": str(number)} for number in range(30)])
    listed = (await w.client.get(f"{path}/messages", params={"limit": 100, "order": "asc"})).json()["data"]

    assert [each["content"][0]["text"]["value"] for each in listed] == [str(number) for number in range(30)]


async def test_messages_are_listed_in_pages_both_ways(w: World) -> None:
    path = f"{await new_thread(w)}/messages"
    made = [(await posted(w, path, USER))["id"] for _ in range(5)]

    assert await ids(w, path) == made[::-1]
    assert await ids(w, path, order="asc", limit=2) == made[:2]
    assert await ids(w, path, order="asc", after=made[1], limit=2) == made[2:4]
    assert await ids(w, path, order="asc", before=made[4], limit=2) == made[2:4]
    assert await ids(w, path, before=made[0], limit=2) == [made[2], made[1]]
    status, error = refusal(await w.client.get(path, params={"after": "msg_absent"}))
    assert (status, error["message"], error["param"]) == (400, "No message found with id 'msg_absent'.", "after")


async def test_messages_of_a_run_are_listed_by_it(w: World) -> None:
    path = f"{await new_thread(w)}/messages"
    await posted(w, path, USER)

    assert await ids(w, path, run_id="run_1") == []
    status, error = refusal(await w.client.get(path, params={"run_id": "thread_1"}))
    assert (status, error["param"]) == (400, "run_id")


async def test_a_message_is_modified_and_deleted_in_its_thread_only(w: World) -> None:
    path, other = await new_thread(w), await new_thread(w)
    message = await posted(w, f"{path}/messages", USER)
    own, wrong = (f"{thread}/messages/{message['id']}" for thread in (path, other))

    assert await posted(w, own, {"metadata": {"a": "b"}}) == {**message, "metadata": {"a": "b"}}
    for hidden in (await w.client.get(wrong), await w.post(wrong, {}), await w.client.delete(wrong)):
        assert refusal(hidden)[1]["message"] == f"No message found with id '{message['id']}'."
    deleted = (await w.client.delete(own)).json()
    assert deleted == {"id": message["id"], "object": "thread.message.deleted", "deleted": True}
    assert (await w.client.get(own)).status_code == 404


async def test_messages_go_with_their_thread(w: World) -> None:
    path = await new_thread(w, messages=[USER])
    [message] = await ids(w, f"{path}/messages")
    await w.client.delete(path)

    thread = path.rpartition("/")[2]
    for gone in (await w.client.get(f"{path}/messages"), await w.post(f"{path}/messages", USER)):
        assert refusal(gone)[1]["message"] == f"No thread found with id '{thread}'."
    assert (await w.client.get(f"{path}/messages/{message}")).status_code == 404


@pytest.mark.parametrize(("thread", "status"), [("undefined", 400), ("thread_x", 404), ("thread_a:b", 404)])
async def test_wrong_thread_ids_are_told_apart(w: World, thread: str, status: int) -> None:
    texts = {
        400: f"Invalid 'thread_id': '{thread}'. Expected an ID that begins with 'thread'.",
        404: f"No thread found with id '{thread}'.",
    }
    for path in (f"/v1/threads/{thread}", f"/v1/threads/{thread}/messages"):
        assert refusal(await w.client.get(path))[1]["message"] == texts[status]


async def test_fifty_clients_fill_one_thread_and_lose_nothing(w: World) -> None:
    path = f"{await new_thread(w)}/messages"

    async def fill(client: int) -> list[str]:
        return [(await posted(w, path, {**USER, "content": f"{client}/{turn}"}))["id"] for turn in range(4)]

    written = await asyncio.gather(*(fill(client) for client in range(50)))
    seen = await ids(w, path, order="asc", limit=100)
    while len(more := await ids(w, path, order="asc", limit=100, after=seen[-1])):
        seen += more

    assert sorted(seen) == sorted(each for one in written for each in one)
    for one in written:
        assert [each for each in seen if each in one] == one


async def test_vector_stores_are_named_or_asked_for_and_not_both(w: World) -> None:
    both = {"tool_resources": {"file_search": {"vector_store_ids": ["vs_1"], "vector_stores": [{}]}}}
    status, error = refusal(await w.post("/v1/threads", both))

    assert (status, error["param"]) == (400, "tool_resources.file_search.vector_stores")


async def test_a_lenient_gateway_takes_any_id_and_limit(tmp_path: Path) -> None:
    async with stored_world(tmp_path, lenient_objects=True) as w:
        await posted(w, "/v1/threads", {})
        missing = refusal(await w.client.get("/v1/threads/anything"))
        made = [(await posted(w, "/v1/assistants", {"model": "m"}))["id"] for _ in range(2)]
        assert await ids(w, "/v1/assistants", limit=0) == made[1:]

    assert missing[1]["message"] == "No thread found with id 'anything'."
