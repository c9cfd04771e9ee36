"""``/v1/assistants`` over a real Redis."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.apis.stored import ids, refusal, stored_world
from tests.gateway.twins import World, world

FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


async def made(w: World, **fields: Any) -> dict[str, Any]:
    response = await w.post("/v1/assistants", {"model": "gpt-4o", **fields})
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


async def test_a_new_assistant_has_every_field(w: World) -> None:
    assistant = await made(w)

    assert re.fullmatch(r"asst_[0-9A-Za-z]{24}", assistant.pop("id"))
    assert isinstance(assistant.pop("created_at"), int)
    assert assistant == {
        "object": "assistant",
        "name": None,
        "description": None,
        "model": "gpt-4o",
        "instructions": None,
        "tools": [],
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "response_format": "auto",
        "reasoning_effort": None,
    }


async def test_what_is_given_is_kept_as_it_was_given(w: World) -> None:
    given = {
        "name": "Tutor",
        "description": "d",
        "instructions": "Teach.",
        "tools": [
            {"type": "code_interpreter"},
            {"type": "file_search", "file_search": {"max_num_results": 5}},
            FUNCTION,
        ],
        "tool_resources": {"file_search": {"vector_store_ids": ["vs_1"]}, "code_interpreter": {"file_ids": ["file-1"]}},
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "top_p": 0.25,
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
        "reasoning_effort": "low",
    }
    assistant = await made(w, **given)
    again = (await w.client.get(f"/v1/assistants/{assistant['id']}")).json()

    assert assistant == again
    assert {name: assistant[name] for name in given} == given


async def test_a_modification_changes_what_it_names(w: World) -> None:
    assistant = await made(w, name="Tutor", temperature=0.5, metadata={"a": "1", "b": "2"})
    path = f"/v1/assistants/{assistant['id']}"

    changed = (await w.post(path, {"model": "other", "metadata": {"c": "3"}})).json()
    assert changed == {**assistant, "model": "other", "metadata": {"c": "3"}}
    reset = (await w.post(path, {"name": None, "temperature": None, "metadata": None})).json()
    assert reset == {**changed, "name": None, "temperature": 1.0, "metadata": {}}
    assert (await w.client.get(path)).json() == (await w.post(path, b"")).json() == reset


async def test_a_deleted_assistant_is_gone(w: World) -> None:
    assistant = await made(w)
    path = f"/v1/assistants/{assistant['id']}"
    gone = {
        "message": f"No assistant found with id '{assistant['id']}'.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }

    assert (await w.client.delete(path)).json() == {
        "id": assistant["id"],
        "object": "assistant.deleted",
        "deleted": True,
    }
    for again in (await w.client.delete(path), await w.client.get(path), await w.post(path, {})):
        assert refusal(again) == (404, gone)
    assert await ids(w, "/v1/assistants") == []


async def test_a_list_has_an_envelope_and_pages(w: World) -> None:
    empty = (await w.client.get("/v1/assistants")).json()
    made_ids = [(await made(w))["id"] for _ in range(3)]
    newest = (await w.client.get("/v1/assistants", params={"limit": 2})).json()

    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert [each["id"] for each in newest["data"]] == made_ids[:0:-1]
    assert (newest["first_id"], newest["last_id"], newest["has_more"]) == (made_ids[2], made_ids[1], True)
    assert await ids(w, "/v1/assistants", order="asc", after=made_ids[0]) == made_ids[1:]
    assert await ids(w, "/v1/assistants", after=made_ids[1]) == made_ids[:1]
    assert await ids(w, "/v1/assistants", before=made_ids[1], limit=5) == made_ids[2:]


@pytest.mark.parametrize(
    ("params", "message", "code"),
    [
        (
            {"limit": 0},
            "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got 0 instead.",
            "integer_below_min_value",
        ),
        (
            {"limit": 101},
            "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
            "integer_above_max_value",
        ),
        ({"limit": "x"}, "Invalid type for 'limit': expected an integer, but got a string instead.", "invalid_type"),
        ({"order": "up"}, "Invalid value: 'up'. Supported values are: 'asc' and 'desc'.", "invalid_value"),
        ({"after": "x"}, "Invalid 'after': 'x'. Expected an ID that begins with 'asst'.", "invalid_value"),
        ({"before": "asst_x"}, "No assistant found with id 'asst_x'.", "invalid_value"),
    ],
)
async def test_parameters_of_lists_are_checked(w: World, params: dict[str, Any], message: str, code: str) -> None:
    status, error = refusal(await w.client.get("/v1/assistants", params=params))

    assert (status, error["message"], error["code"]) == (400, message, code)
    assert error["param"] == next(iter(params))


@pytest.mark.parametrize(
    ("fields", "message", "param", "code"),
    [
        (
            {"model": None},
            "Invalid type for 'model': expected a string, but got null instead.",
            "model",
            "invalid_type",
        ),
        ({"file_ids": []}, "Unknown parameter: 'file_ids'.", "file_ids", "unknown_parameter"),
        (
            {"name": "x" * 257},
            "Invalid 'name': string too long. Expected a string with maximum length 256, but got a string with "
            "length 257 instead.",
            "name",
            "string_above_max_length",
        ),
        (
            {"metadata": {str(n): "x" for n in range(17)}},
            "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an "
            "object with 17 properties instead.",
            "metadata",
            "object_above_max_properties",
        ),
        (
            {"metadata": {"a": "x" * 513}},
            "Invalid 'metadata.a': string too long. Expected a string with maximum length 512, but got a string with "
            "length 513 instead.",
            "metadata.a",
            "string_above_max_length",
        ),
        (
            {"metadata": {"a": 1}},
            "Invalid type for 'metadata.a': expected a string, but got an integer instead.",
            "metadata.a",
            "invalid_type",
        ),
        (
            {"temperature": 2.5},
            "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 2.5 instead.",
            "temperature",
            "decimal_above_max_value",
        ),
        (
            {"tools": [{"type": "retrieval"}]},
            "Invalid value: 'retrieval'. Supported values are: 'code_interpreter', 'file_search', and 'function'.",
            "tools[0].type",
            "invalid_value",
        ),
        (
            {"tools": [{"type": "function", "function": {}}]},
            "Missing required parameter: 'tools[0].function.name'.",
            "tools[0].function.name",
            "missing_required_parameter",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "Invalid 'tools[0].function.name': string does not match pattern. Expected a string that matches the "
            "pattern '^[a-zA-Z0-9_-]+$'.",
            "tools[0].function.name",
            "invalid_value",
        ),
        (
            {"tools": [5]},
            "Invalid type for 'tools[0]': expected an object, but got an integer instead.",
            "tools[0]",
            "invalid_type",
        ),
        (
            {"tools": [{}]},
            "Missing required parameter: 'tools[0].type'.",
            "tools[0].type",
            "missing_required_parameter",
        ),
        (
            {"tools": [{"type": "code_interpreter"}] * 129},
            "Invalid 'tools': array too long. Expected an array with maximum length 128, but got an array with "
            "length 129 instead.",
            "tools",
            "array_above_max_length",
        ),
    ],
)
async def test_bodies_are_checked(w: World, fields: dict[str, Any], message: str, param: str, code: str) -> None:
    expected = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    assistant = await made(w)

    for path in ("/v1/assistants", f"/v1/assistants/{assistant['id']}"):
        assert refusal(await w.post(path, {"model": "m", **fields})) == (400, expected)


async def test_a_long_key_of_metadata_is_refused(w: World) -> None:
    status, error = refusal(await w.post("/v1/assistants", {"model": "m", "metadata": {"k" * 65: "v"}}))

    assert (status, error["code"]) == (400, "string_above_max_length")


async def test_ids_of_another_kind_are_refused(w: World) -> None:
    status, error = refusal(await w.client.get("/v1/assistants/thread_1"))

    assert (status, error["message"]) == (
        400,
        "Invalid 'assistant_id': 'thread_1'. Expected an ID that begins with 'asst'.",
    )


@pytest.mark.parametrize("beta", [None, "assistants=v2", "nonsense", "assistants=v1, assistants=v2"])
async def test_the_beta_header_and_a_trailing_slash_make_no_difference(w: World, beta: str | None) -> None:
    headers = {"openai-beta": beta} if beta is not None else {}
    response = await w.post("/v1/assistants/", {"model": "m"}, headers=headers)
    listed = await w.client.get("/v1/assistants/", headers=headers)

    assert (response.status_code, listed.status_code) == (200, 200)
    assert listed.json()["last_id"] == response.json()["id"]


@pytest.mark.parametrize("beta", ["assistants=v1", "realtime=v1,assistants=v1"])
async def test_the_first_version_of_the_api_is_refused(w: World, beta: str) -> None:
    headers = {"openai-beta": beta}
    replies = [
        await w.post("/v1/assistants", {"model": "m"}, headers=headers),
        await w.client.get("/v1/threads/thread_x", headers=headers),
    ]

    for status, error in map(refusal, replies):
        assert (status, error["type"], error["code"]) == (400, "invalid_request_error", "invalid_beta")
        assert error["message"] == (
            "The version 'assistants=v1' of the Assistants API is not served. Please try again by setting the header "
            "'OpenAI-Beta: assistants=v2'."
        )
    assert (await w.client.get("/v1/assistants")).json()["data"] == []
    assert (await w.client.get("/v1/files", headers=headers)).status_code == 200


async def test_a_gateway_may_ask_for_the_beta_header(tmp_path: Path) -> None:
    async with stored_world(tmp_path, require_assistants_beta=True) as w:
        missing = [
            refusal(await w.client.get("/v1/assistants", headers=headers)) for headers in ({}, {"openai-beta": "x"})
        ]
        named = await w.client.get("/v1/assistants", headers={"openai-beta": "assistants=v2"})

    assert missing[0] == missing[1]
    assert (missing[0][0], missing[0][1]["code"], missing[0][1]["message"]) == (
        400,
        "invalid_beta",
        "You must provide the 'OpenAI-Beta' header to access the Assistants API. Please try again by setting the "
        "header 'OpenAI-Beta: assistants=v2'.",
    )
    assert named.status_code == 200


async def test_objects_belong_to_the_project_of_their_key(w: World) -> None:
    keys = [await w.keys.create(project) for project in ("one", "two")]
    own, other = ({"authorization": f"Bearer {key}"} for key in keys)
    assistant = (await w.post("/v1/assistants", {"model": "m"}, headers=own)).json()
    path = f"/v1/assistants/{assistant['id']}"

    assert (await w.client.get(path, headers=own)).json() == assistant
    assert (await w.client.get("/v1/assistants", headers=other)).json()["data"] == []
    for hidden in (
        await w.client.get(path, headers=other),
        await w.post(path, {}, headers=other),
        await w.client.delete(path, headers=other),
    ):
        assert refusal(hidden)[1]["message"] == f"No assistant found with id '{assistant['id']}'."
    assert (await w.client.get(path)).status_code == 401


async def test_while_redis_is_away_objects_are_unavailable_and_chats_are_not() -> None:
    async with world() as w:
        status, error = refusal(await w.post("/v1/assistants", {"model": "m"}))
        chat = await w.chat()

    assert (status, error["code"], chat.status_code) == (503, "state_unavailable", 200)
