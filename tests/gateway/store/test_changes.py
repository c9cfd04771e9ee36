"""Changes: whole or not at all, versions, cascades, projects."""

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.errors import Conflict, ObjectNotFound, StateUnavailable
from services.gateway.files.storage import FileStorage
from services.gateway.files.upkeep import Upkeep
from services.gateway.redis_state import RedisState
from services.gateway.store.changes import Create, Delete, Update
from services.gateway.store.keys import attached_key, project_prefix
from services.gateway.store.object_store import Objects, ObjectStore
from services.telemetry.clock import ManualClock
from tests.gateway.store.samples import BOOK, PAGE, SHELF, book, listed, shelf, stored_keys


async def test_what_is_written_is_read(objects: Objects) -> None:
    body: dict[str, Any] = {
        "id": "b",
        "none": None,
        "empty": [],
        "mapping": {},
        "text": "é\x00\n",
        "number": 0.1,
        "large": 2**53 + 1,
    }
    made = await objects.create(Create(BOOK.ref("b"), body, private=b"\x00\xff"))
    plain, whole = await objects.get(BOOK.ref("b")), await objects.get(BOOK.ref("b"), with_private=True)

    assert plain.body == whole.body == body
    assert (plain.private, whole.private) == (None, b"\x00\xff")
    assert (whole.version, whole) == (1, made)


@pytest.mark.parametrize("name", ["absent", "", "a b", "a:b", "x" * 129, "é"])
async def test_what_is_absent_is_said_to_be(objects: Objects, name: str) -> None:
    ref = BOOK.ref(name)
    for doing in (objects.get(ref), objects.delete(ref), objects.update(Update(ref, {}))):
        with pytest.raises(ObjectNotFound) as caught:
            await doing
        assert caught.value.message == f"No book found with id '{name}'."


async def test_an_id_is_taken_once(objects: Objects) -> None:
    await objects.create(book(None, "b"))

    with pytest.raises(Conflict):
        await objects.create(book(None, "b"))


async def test_an_object_is_found_beneath_its_parent_only(objects: Objects) -> None:
    first, second = await shelf(objects, "s1", books=1), await shelf(objects, "s2")
    ref = BOOK.ref("b0")

    assert (await objects.get(ref, parent=first)).ref == ref
    for doing in (
        objects.get(ref, parent=second),
        objects.delete(ref, parent=second),
        objects.update(Update(ref, {}, parent=second)),
        objects.edit(ref, dict, parent=second),
    ):
        with pytest.raises(ObjectNotFound):
            await doing
    with pytest.raises(ObjectNotFound, match="No shelf found"):
        await objects.create(book(SHELF.ref("s3"), "b1"))


async def test_a_change_is_whole_or_not_at_all(objects: Objects, state: RedisState) -> None:
    new = SHELF.ref("new")
    whole = [Create(new, {}), book(new, "b0"), book(new, "b1")]
    with pytest.raises(Conflict):
        await objects.apply([*whole, book(new, "b0")])
    assert await stored_keys(state) == set()

    await objects.apply(whole)
    assert await listed(objects, new, order="asc") == (["b0", "b1"], False)


async def test_an_update_of_an_old_version_is_refused(objects: Objects) -> None:
    first = await objects.create(book(None, "b"))
    second = await objects.update(Update(first.ref, {"n": 2}, first.version))

    with pytest.raises(Conflict):
        await objects.update(Update(first.ref, {"n": 3}, first.version))
    with pytest.raises(Conflict):
        await objects.apply([Delete(first.ref, first.version)])
    found = await objects.get(first.ref)
    assert (found.body, found.version, found.sequence) == ({"n": 2}, second.version, first.sequence)


async def test_edits_of_many_at_once_all_count(objects: Objects) -> None:
    made = await objects.create(Create(BOOK.ref("b"), {"n": 0}))

    def add(body: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**body, "n": body["n"] + 1}

    await asyncio.gather(*(objects.edit(made.ref, add) for _ in range(30)))
    found = await objects.get(made.ref)
    assert (found.body, found.version) == ({"n": 30}, 31)


async def test_labels_follow_an_update_and_stay_without_one(objects: Objects) -> None:
    ref = await shelf(objects)
    await objects.create(book(ref, "b", labels={"colour": "red"}))
    await objects.update(Update(BOOK.ref("b"), {}))
    assert await listed(objects, ref, label=("colour", "red")) == (["b"], False)

    await objects.update(Update(BOOK.ref("b"), {}, labels={"colour": "blue"}))
    assert await listed(objects, ref, label=("colour", "red")) == ([], False)
    assert await listed(objects, ref, label=("colour", "blue")) == (["b"], False)
    with pytest.raises(ValueError, match="label"):
        await objects.update(Update(BOOK.ref("b"), {}, labels={"colour": "dark blue"}))


async def test_what_is_deleted_takes_everything_beneath_it_along(objects: Objects, state: RedisState) -> None:
    kept = await shelf(objects, "kept")
    await objects.create(Create(PAGE.ref("p"), {}, kept))
    before = await stored_keys(state)
    ref = await shelf(objects)
    for number in range(5):
        await objects.create(book(ref, f"b{number}", labels={"colour": "red"}))
        await objects.create(Create(PAGE.ref(f"p{number}"), {}, BOOK.ref(f"b{number}"), {"size": "small"}))
    async with state.reaching() as client:
        await client.set(attached_key("team", BOOK.ref("b1"), "events"), "x")
        await client.sadd(f"{project_prefix('team')}beneath:book:b1", "attached:book:b1/events")

    await objects.delete(ref)
    assert await stored_keys(state) == before
    with pytest.raises(ObjectNotFound):
        await objects.get(PAGE.ref("p1"))


async def test_thousands_beneath_a_deleted_object_are_gone_at_once_and_removed_in_slices(
    objects: Objects, state: RedisState
) -> None:
    ref = await shelf(objects)
    await objects.apply([book(ref, f"b{number}", labels={"colour": "red"}) for number in range(3000)])
    await objects.apply([Create(PAGE.ref(f"p{number}"), {}, BOOK.ref("b2999")) for number in range(3000)])
    await objects.delete(ref)
    left = await stored_keys(state)
    for absent in (BOOK.ref("b2999"), PAGE.ref("p2999")):
        with pytest.raises(ObjectNotFound):
            await objects.get(absent)
        with pytest.raises(ObjectNotFound):
            await objects.update(Update(absent, {}))
        with pytest.raises(Conflict):
            await objects.create(Create(absent, {}))
    with pytest.raises(ObjectNotFound):
        await listed(objects, ref)
    with pytest.raises(ObjectNotFound):
        await objects.create(Create(PAGE.ref("new"), {}, BOOK.ref("b2999")))

    slices = [len(left)]
    while await objects.purge():
        slices.append(len(await stored_keys(state)))
    assert 5000 < slices[0] < 6010
    assert len(slices) == 6
    assert all(0 < before - after <= 1010 for before, after in itertools.pairwise(slices))
    assert await stored_keys(state) == {f"{project_prefix('team')}sequence"}
    await shelf(objects)


async def test_upkeep_removes_what_deleted_objects_left(store: ObjectStore, state: RedisState) -> None:
    objects = store.of("team")
    for name in ("s1", "s2"):
        ref = await shelf(objects, name)
        await objects.apply([book(ref, f"{name}.b{number}") for number in range(1500)])
        await objects.delete(ref)
    await Upkeep(FileStorage(ObjectStore(state)), {}, ManualClock(), Random(0)).sweep()

    assert await stored_keys(state) == {f"{project_prefix('team')}sequence"}


async def test_one_deleted_child_leaves_the_rest(objects: Objects, state: RedisState) -> None:
    ref = await shelf(objects, books=2)
    before = await stored_keys(state)
    await objects.create(book(ref, "b2", labels={"colour": "red"}))
    await objects.delete(BOOK.ref("b2"))

    assert await stored_keys(state) == before
    assert await listed(objects, ref) == (["b1", "b0"], False)


async def test_what_is_made_beneath_something_deleted_in_the_same_change_goes_with_it(
    objects: Objects, state: RedisState
) -> None:
    ref = await shelf(objects, books=1)
    with pytest.raises(ObjectNotFound):
        await objects.apply([Delete(ref), book(ref, "b1")])

    await objects.apply([Delete(ref), Create(PAGE.ref("p"), {}, BOOK.ref("b0"))])
    assert await stored_keys(state) == {f"{project_prefix('team')}sequence"}


async def test_projects_see_nothing_of_each_other(store: ObjectStore, state: RedisState) -> None:
    names = ["a", "a:b", "a}b", "{a}", "ä", "a%3Ab"]
    for name in names:
        await store.of(name).create(Create(SHELF.ref("same"), {"of": name}))
        await store.of(name).create(book(SHELF.ref("same"), "b"))

    for name in names:
        assert (await store.of(name).get(SHELF.ref("same"))).body == {"of": name}
    await store.of("a").delete(SHELF.ref("same"))
    for name in names[1:]:
        assert await listed(store.of(name), SHELF.ref("same")) == (["b"], False)
    with pytest.raises(ObjectNotFound):
        await listed(store.of("a"), SHELF.ref("same"))
    assert all(key.startswith("tandem:{") for key in await stored_keys(state))


async def test_a_change_whose_answer_was_lost_is_made_once(
    objects: Objects, state: RedisState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.store.object_store.secrets.token_hex", lambda size: "same")
    first = await objects.create(book(None, "b"))
    again = await objects.create(book(None, "b"))

    assert first == again
    assert await listed(objects, None) == (["b"], False)


async def test_objects_survive_a_killed_server(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        redis = RedisState(server.url, 30.0)
        objects = ObjectStore(redis).of("team")
        ref = await shelf(objects, books=3)
        assert server.pid is not None
        server._process.kill()  # type: ignore[union-attr]
        await server.wait_exit()
        with pytest.raises(StateUnavailable):
            await objects.get(ref)
        await server.start()
        assert await listed(objects, ref, order="asc") == (["b0", "b1", "b2"], False)
        await redis.close()
