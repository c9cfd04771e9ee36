"""Quotas: what a project may keep, whoever asks at once, and what comes back when objects go."""

import asyncio
from typing import Any

import pytest

from services.errors import QuotaExceeded
from services.gateway.files.operations import AdoptBytes
from services.gateway.files.storage import FileStorage
from services.gateway.redis_state import RedisState
from services.gateway.store.changes import Create, Delete
from services.gateway.store.keys import project_prefix
from services.gateway.store.kinds import FILE, UPLOAD, UPLOAD_PART, Ref
from services.gateway.store.object_store import Objects, ObjectStore
from services.gateway.store.quota import Quota
from tests.gateway.store.samples import book, listed, shelf

LIMIT = 10


def bounded(state: RedisState, **limits: int) -> Objects:
    return ObjectStore(state, Quota(**limits)).of("team")


async def usage(state: RedisState) -> dict[str, int]:
    async with state.reaching() as client:
        found: Any = await client.hgetall(project_prefix("team") + "usage")
    return {what.decode(): int(number) for what, number in found.items()}


async def test_no_more_objects_are_kept_than_allowed_however_many_are_made_at_once(state: RedisState) -> None:
    objects = bounded(state, max_objects=LIMIT)
    ref = await shelf(objects)
    made = await asyncio.gather(
        *(objects.create(book(ref, f"b{number}")) for number in range(3 * LIMIT)), return_exceptions=True
    )

    refused = [each for each in made if isinstance(each, QuotaExceeded)]
    assert len(refused) == 2 * LIMIT + 1
    assert {each.message for each in refused} == {
        "The project has 10 stored objects and may have 10: this would be more. Delete what is not needed, or have "
        "`max_project_objects` raised."
    }
    assert len((await listed(objects, ref, limit=100))[0]) == LIMIT - 1


async def test_a_change_beyond_the_quota_makes_nothing_of_it(state: RedisState) -> None:
    objects = bounded(state, max_objects=2)
    ref = await shelf(objects)
    with pytest.raises(QuotaExceeded):
        await objects.apply([book(ref, "a"), book(ref, "b")])

    assert (await listed(objects, ref))[0] == []
    await objects.create(book(ref, "a"))


async def test_a_deletion_gives_back_all_that_lies_beneath(state: RedisState) -> None:
    objects = bounded(state, max_objects=LIMIT)
    ref = await shelf(objects, books=LIMIT - 1)
    await objects.delete(ref)

    assert await usage(state) == {}
    await shelf(objects, "s2", books=LIMIT - 1)


async def test_projects_have_quotas_of_their_own_and_what_was_begun_may_end(state: RedisState) -> None:
    store = ObjectStore(state, Quota(max_objects=1))
    for project in ("one", "two"):
        await shelf(store.of(project))
    await store.of("one").apply([book(None, "b")], is_bounded=False)
    with pytest.raises(QuotaExceeded, match="has 2 stored objects and may have 1"):
        await store.of("one").create(book(None, "c"))


async def keep(state: RedisState, objects: Objects, ref: Ref, data: bytes, parent: Ref | None = None) -> None:
    async with FileStorage(ObjectStore(state)).of("team").blobs.staged() as staged:
        await staged.write(data)
        await staged.finish()
        await objects.apply([Create(ref, {}, parent), AdoptBytes(ref, staged.names)])


async def test_bytes_of_files_are_counted_until_the_file_is_deleted(state: RedisState) -> None:
    objects = bounded(state, max_file_bytes=LIMIT)
    await keep(state, objects, FILE.ref("a"), b"123456")
    with pytest.raises(QuotaExceeded, match=r"has 6 bytes of files and may have 10.*`max_project_file_bytes`"):
        await keep(state, objects, FILE.ref("b"), b"12345")
    await keep(state, objects, FILE.ref("c"), b"1234")
    await objects.delete(FILE.ref("a"))
    await keep(state, objects, FILE.ref("d"), b"123456")

    assert (await usage(state))["file_bytes"] == 10


async def test_parts_that_become_a_file_are_counted_once(state: RedisState) -> None:
    objects, upload, part = bounded(state, max_file_bytes=LIMIT), UPLOAD.ref("u"), UPLOAD_PART.ref("p")
    await objects.create(Create(upload, {}))
    await keep(state, objects, part, b"1234567890", upload)
    source = f"attached:{part.key}/bytes.0"
    await objects.apply([Create(FILE.ref("f"), {}), AdoptBytes(FILE.ref("f"), [source]), Delete(part)])

    assert await usage(state) == {"objects": 2, "file_bytes": 10}
