"""``/v1/uploads`` over a real Redis."""

import asyncio
import hashlib
import re
from typing import Any

import httpx
import pytest

from tests.gateway.apis.stored import ids, refusal
from tests.gateway.store.samples import stored_keys
from tests.gateway.twins import World


async def begun(w: World, num_bytes: int, **fields: Any) -> dict[str, Any]:
    body = {"filename": "book.txt", "purpose": "assistants", "bytes": num_bytes, "mime_type": "text/plain", **fields}
    response = await w.post("/v1/uploads", body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


async def part(w: World, upload: dict[str, Any], data: bytes) -> str:
    response = await w.client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": ("blob", data)})
    assert response.status_code == 200, response.text
    shown = response.json()
    assert shown == {
        "id": shown["id"],
        "object": "upload.part",
        "created_at": upload["created_at"],
        "upload_id": upload["id"],
    }
    return str(shown["id"])


async def completed(w: World, upload: dict[str, Any], part_ids: list[str], **fields: Any) -> httpx.Response:
    return await w.post(f"/v1/uploads/{upload['id']}/complete", {"part_ids": part_ids, **fields})


async def part_keys(w: World) -> set[str]:
    return {key for key in await stored_keys(w.gateway.files.storage.of("default").state) if "part" in key}


async def test_parts_become_a_file_in_the_order_of_their_names(w: World) -> None:
    upload = await begun(w, 11, expires_after={"anchor": "created_at", "seconds": 7200})
    second, first = await asyncio.gather(part(w, upload, b"world"), part(w, upload, b"hello "))
    done = (await completed(w, upload, [first, second], md5=hashlib.md5(b"hello world").hexdigest())).json()
    file = done["file"]

    assert re.fullmatch(r"upload_[0-9A-Za-z]{24}", upload["id"])
    assert upload == {
        "id": upload["id"],
        "object": "upload",
        "created_at": upload["created_at"],
        "filename": "book.txt",
        "bytes": 11,
        "purpose": "assistants",
        "status": "pending",
        "expires_at": upload["created_at"] + 3600,
    }
    assert done == {**upload, "status": "completed", "file": file}
    assert file == (await w.client.get(f"/v1/files/{file['id']}")).json()
    assert (file["filename"], file["bytes"], file["expires_at"]) == ("book.txt", 11, file["created_at"] + 7200)
    assert (await w.client.get(f"/v1/files/{file['id']}/content")).content == b"hello world"
    assert await part_keys(w) == set()


async def test_what_does_not_fit_is_refused(w: World) -> None:
    upload, other = await begun(w, 5), await begun(w, 5)
    one, foreign = await part(w, upload, b"hell"), await part(w, other, b"hello")

    assert refusal(await completed(w, upload, [one]))[1]["message"] == (
        "The parts have 4 bytes, but the upload was announced with 5."
    )
    assert refusal(await completed(w, upload, [one, one]))[1]["param"] == "part_ids"
    assert refusal(await completed(w, upload, [foreign]))[0] == 404
    assert refusal(await completed(w, upload, ["x"]))[1]["message"] == (
        "Invalid 'part_ids[0]': 'x'. Expected an ID that begins with 'part'."
    )
    two = await part(w, upload, b"o")
    assert "md5" in refusal(await completed(w, upload, [one, two], md5="0" * 32))[1]["message"]
    assert (await completed(w, upload, [one, two])).status_code == 200
    assert await ids(w, "/v1/files") != []


async def test_a_completed_or_cancelled_upload_is_over(w: World) -> None:
    upload, cancelled = await begun(w, 1), await begun(w, 1)
    one = await part(w, upload, b"x")
    await part(w, cancelled, b"x")
    assert (await completed(w, upload, [one])).json()["status"] == "completed"
    assert (await w.post(f"/v1/uploads/{cancelled['id']}/cancel", b"")).json() == {**cancelled, "status": "cancelled"}

    for each, status in ((upload, "completed"), (cancelled, "cancelled")):
        for again in (
            await completed(w, each, [one]),
            await w.post(f"/v1/uploads/{each['id']}/cancel", b""),
            await w.client.post(f"/v1/uploads/{each['id']}/parts", files={"data": ("blob", b"y")}),
        ):
            code, error = refusal(again)
            assert (code, f"has status '{status}'" in error["message"]) == (400, True)
    assert await part_keys(w) == set()


async def test_of_two_completions_one_makes_the_file(w: World) -> None:
    upload = await begun(w, 1)
    one = await part(w, upload, b"x")
    statuses = [each.status_code for each in await asyncio.gather(*(completed(w, upload, [one]) for _ in range(4)))]

    assert statuses.count(200) == 1
    assert len(await ids(w, "/v1/files")) == 1


async def test_an_upload_that_is_not_completed_in_time_expires(w: World) -> None:
    upload, done = await begun(w, 1), await begun(w, 1)
    await part(w, upload, b"x")
    assert (await completed(w, done, [await part(w, done, b"y")])).status_code == 200
    w.clock.advance(3600)

    assert "has status 'expired'" in refusal(await completed(w, upload, []))[1]["message"]
    await w.gateway.files.upkeep.sweep()
    assert await part_keys(w) == set()
    assert "has status 'expired'" in refusal(await completed(w, upload, []))[1]["message"]
    assert "has status 'completed'" in refusal(await completed(w, done, []))[1]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"bytes": 2**40}, "bytes"),
        ({"bytes": -1}, "bytes"),
        ({"purpose": "evals"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"mime_type": None}, "mime_type"),
    ],
)
async def test_new_uploads_are_checked(w: World, fields: dict[str, Any], param: str) -> None:
    body = {"filename": "a", "purpose": "assistants", "bytes": 1, "mime_type": "text/plain", **fields}
    status, error = refusal(await w.post("/v1/uploads", body))

    assert (status, error["param"]) == (400, param)
