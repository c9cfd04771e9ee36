"""``/v1/files`` over a real Redis."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.gateway.files.blobs import CHUNK_BYTES
from tests.gateway.apis.stored import ids, refusal, stored_world
from tests.gateway.store.samples import stored_keys
from tests.gateway.twins import World


async def sent(w: World, data: bytes = b"hello", name: str = "a.txt", **fields: str) -> httpx.Response:
    return await w.client.post("/v1/files", files={"file": (name, data)}, data={"purpose": "assistants", **fields})


async def made(w: World, data: bytes = b"hello", name: str = "a.txt", **fields: str) -> dict[str, Any]:
    response = await sent(w, data, name, **fields)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


async def test_a_file_is_kept_as_it_was_sent(w: World) -> None:
    data = bytes(range(256)) * 10_000  # more than two chunks
    file = await made(w, data, "dir/ü.bin", purpose="user_data")
    path = f"/v1/files/{file['id']}"
    content = await w.client.get(f"{path}/content")

    assert re.fullmatch(r"file-[0-9A-Za-z]{24}", file["id"])
    assert file == (await w.client.get(path)).json()
    assert {**file, "id": "", "created_at": 0} == {
        "id": "",
        "object": "file",
        "bytes": len(data),
        "created_at": 0,
        "filename": "ü.bin",
        "purpose": "user_data",
        "status": "processed",
    }
    assert (content.content, content.headers["content-length"]) == (data, str(len(data)))
    assert content.headers["content-type"] == "application/octet-stream"


async def test_an_empty_file_is_a_file(w: World) -> None:
    file = await made(w, b"")

    assert (file["bytes"], (await w.client.get(f"/v1/files/{file['id']}/content")).content) == (0, b"")


async def test_large_files_go_to_redis_in_chunks(w: World) -> None:
    file = await made(w, b"x" * (2 * CHUNK_BYTES + 1))
    state = w.gateway.files.storage.of("default").state
    keys = {key for key in await stored_keys(state) if "bytes." in key}
    async with state.reaching() as client:
        lengths = sorted([await client.strlen(key) for key in keys])
        lives = [await client.ttl(key) for key in keys]

    assert (lengths, lives) == ([1, CHUNK_BYTES, CHUNK_BYTES], [-1, -1, -1])
    assert all(f"attached:file:{file['id']}/" in key for key in keys)


async def test_a_deleted_file_leaves_nothing(w: World) -> None:
    state = w.gateway.files.storage.of("default").state
    file = await made(w)
    path = f"/v1/files/{file['id']}"

    assert (await w.client.delete(path)).json() == {"id": file["id"], "object": "file", "deleted": True}
    gone = {
        "message": f"No such File object: {file['id']}",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    for again in (await w.client.delete(path), await w.client.get(path), await w.client.get(f"{path}/content")):
        assert refusal(again) == (404, gone)
    assert {key for key in await stored_keys(state) if "file:" in key} == set()


async def test_lists_have_one_purpose_if_it_is_named(w: World) -> None:
    first, second = await made(w), await made(w, purpose="vision")

    assert await ids(w, "/v1/files") == [second["id"], first["id"]]
    assert await ids(w, "/v1/files", purpose="vision") == [second["id"]]
    assert await ids(w, "/v1/files", purpose="batch") == []
    assert await ids(w, "/v1/files", order="asc", limit=1) == [first["id"]]
    assert refusal(await w.client.get("/v1/files", params={"limit": 10_001}))[0] == 400


@pytest.mark.parametrize(
    ("fields", "message", "param", "code"),
    [
        (
            {"purpose": "x"},
            "Invalid value: 'x'. Supported values are: 'assistants', 'batch', 'fine-tune', 'vision', and 'user_data'.",
            "purpose",
            "invalid_value",
        ),
        ({"extra": "1"}, "Unknown parameter: 'extra'.", "extra", "unknown_parameter"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "5"},
            "Invalid 'expires_after.seconds': integer below minimum value. Expected a value >= 3600, but got 5 "
            "instead.",
            "expires_after.seconds",
            "integer_below_min_value",
        ),
        (
            {"expires_after[anchor]": "created_at"},
            "Missing required parameter: 'expires_after.seconds'.",
            "expires_after.seconds",
            "missing_required_parameter",
        ),
    ],
)
async def test_fields_are_checked(w: World, fields: dict[str, str], message: str, param: str, code: str) -> None:
    expected = {"message": message, "type": "invalid_request_error", "param": param, "code": code}

    assert refusal(await sent(w, b"x", "a.txt", **fields)) == (400, expected)
    assert not [key for key in await stored_keys(w.gateway.files.storage.of("default").state) if "staged" in key]


async def test_forms_without_a_file_are_refused(w: World) -> None:
    no_file = refusal(await w.client.post("/v1/files", files={"purpose": (None, "assistants")}))
    text = refusal(await w.client.post("/v1/files", files={"purpose": (None, "assistants"), "file": (None, "x")}))
    other = refusal(await w.client.post("/v1/files", files={"other": ("a", b"x")}))
    two = [("file", ("a", b"x")), ("file", ("b", b"y"))]
    twice = refusal(await w.client.post("/v1/files", files=two, data={"purpose": "assistants"}))
    json = refusal(await w.post("/v1/files", {"purpose": "assistants"}))
    cut = refusal(
        await w.client.post(
            "/v1/files", content=b"--b\r\nx", headers={"content-type": "multipart/form-data;boundary=b"}
        )
    )

    assert (no_file[0], no_file[1]["message"]) == (400, "Missing required parameter: 'file'.")
    assert (text[0], text[1]["param"]) == (400, "file")
    assert (other[0], other[1]["message"]) == (400, "Unknown parameter: 'other'.")
    assert (twice[0], twice[1]["message"]) == (400, "Only one 'file' may be given.")
    assert (json[0], json[1]["message"]) == (
        400,
        "The body of the request must be multipart/form-data with a boundary.",
    )
    assert cut[0] == 400


async def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async with stored_world(tmp_path, max_file_bytes=100, max_body_bytes=100) as w:
        declared = refusal(await sent(w, b"x" * 2**21))
        chunked = refusal(
            await w.client.post(
                "/v1/files", content=_endless(), headers={"content-type": "multipart/form-data; boundary=b"}
            )
        )
        elsewhere = refusal(await w.post("/v1/assistants", b" " * 101))

    assert (declared[0], declared[1]["code"]) == (chunked[0], chunked[1]["code"]) == (413, "payload_too_large")
    assert elsewhere[0] == 413


async def _endless() -> AsyncIterator[bytes]:
    yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    while True:
        await asyncio.sleep(0)
        yield b"x" * 2**16


async def test_files_end_when_their_time_is_over(w: World) -> None:
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    short, batch, kept = await made(w, b"x", "a.txt", **expiry), await made(w, purpose="batch"), await made(w)
    deleted = await made(w, b"x", "a.txt", **expiry)
    await w.client.delete(f"/v1/files/{deleted['id']}")

    assert (short["expires_at"], batch["expires_at"]) == (short["created_at"] + 3600, batch["created_at"] + 2_592_000)
    w.clock.advance(3599)
    await w.gateway.files.upkeep.sweep()
    assert await ids(w, "/v1/files", order="asc") == [short["id"], batch["id"], kept["id"]]
    w.clock.advance(2)
    await w.gateway.files.upkeep.sweep()
    assert await ids(w, "/v1/files", order="asc") == [batch["id"], kept["id"]]
    w.clock.advance(2_592_000)
    await w.gateway.files.upkeep.sweep()
    assert await ids(w, "/v1/files") == [kept["id"]]
    assert await w.gateway.files.storage.of("default").expired(10**15, 10) == []


async def test_files_belong_to_the_project_of_their_key(w: World) -> None:
    keys = [await w.keys.create(project) for project in ("one", "two")]
    own, other = ({"authorization": f"Bearer {key}"} for key in keys)
    form: dict[str, tuple[str | None, bytes]] = {"purpose": (None, b"assistants"), "file": ("a", b"x")}
    file = (await w.client.post("/v1/files", files=form, headers=own)).json()

    assert (await w.client.get(f"/v1/files/{file['id']}/content", headers=own)).content == b"x"
    assert (await w.client.get(f"/v1/files/{file['id']}/content", headers=other)).status_code == 404
    assert (await w.client.post("/v1/files", files=form)).status_code == 401
