"""Lists in pages: order, cursors, labels."""

import asyncio

import pytest

from services.errors import InvalidRequest, ObjectNotFound
from services.gateway.store.kinds import Ref
from services.gateway.store.object_store import Objects
from services.gateway.store.records import Order
from tests.gateway.store.samples import BOOK, SHELF, book, listed, shelf

ALL = [f"b{number}" for number in range(7)]


async def test_objects_keep_the_order_in_which_they_were_made(objects: Objects) -> None:
    ref = await shelf(objects, books=7)

    assert await listed(objects, ref, order="asc") == (ALL, False)
    assert await listed(objects, ref) == (ALL[::-1], False)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
async def test_pages_forwards_and_backwards_give_each_object_once(objects: Objects, order: Order, limit: int) -> None:
    ref = await shelf(objects, books=7)
    expected = ALL if order == "asc" else ALL[::-1]

    pages, more = await listed(objects, ref, order=order, limit=limit)
    forwards = list(pages)
    while more:
        pages, more = await listed(objects, ref, order=order, limit=limit, after=pages[-1])
        forwards += pages
    assert forwards == expected

    backwards, more = [expected[-1]], True
    while more:
        pages, more = await listed(objects, ref, order=order, limit=limit, before=backwards[0])
        backwards = pages + backwards
    assert backwards == expected


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_of_large_objects_are_shorter(objects: Objects, order: Order) -> None:
    ref = await shelf(objects)
    for name, num_mib in {"b0": 3, "b1": 3, "b2": 9, "b3": 3, "b4": 1, "b5": 3}.items():
        await objects.create(book(ref, name, private=bytes(num_mib * 2**20)))
    pages = [["b0", "b1"], ["b2"], ["b3", "b4", "b5"]]
    expected = pages if order == "asc" else [page[::-1] for page in reversed(pages)]

    found: list[list[str]] = []
    more = True
    while more:
        after = found[-1][-1] if found else None
        page, more = await listed(objects, ref, order=order, limit=10, after=after, with_private=True)
        found.append(page)
    assert found == expected
    before, more = await listed(objects, ref, order=order, limit=10, before=found[-1][0], with_private=True)
    assert (before, more) == (found[1], True)
    assert await listed(objects, ref, order=order, limit=10) == ([name for page in found for name in page], False)


async def test_between_two_cursors(objects: Objects) -> None:
    ref = await shelf(objects, books=7)

    assert await listed(objects, ref, order="asc", after="b1", before="b5") == (["b2", "b3", "b4"], False)
    assert await listed(objects, ref, after="b5", before="b1", limit=2) == (["b4", "b3"], True)


@pytest.mark.parametrize("cursor", ["b99", "no name at all", "s1", ""])
async def test_an_unknown_cursor_is_an_error(objects: Objects, cursor: str) -> None:
    ref = await shelf(objects, books=1)

    with pytest.raises(InvalidRequest) as caught:
        await listed(objects, ref, before=cursor or "?")
    assert caught.value.param == "before"


async def test_a_cursor_of_another_parent_is_unknown(objects: Objects) -> None:
    first, second = await shelf(objects, "s1", books=2), await shelf(objects, "s2")
    await objects.delete(BOOK.ref("b1"), parent=first)

    for cursor in ("b0", "b1"):
        with pytest.raises(InvalidRequest):
            await listed(objects, second, after=cursor)


async def test_a_list_can_be_emptied_while_it_is_read(objects: Objects) -> None:
    ref = await shelf(objects, books=7)
    seen: list[str] = []
    more, cursor = True, None
    while more:
        page, more = await listed(objects, ref, order="asc", limit=2, after=cursor)
        for name in page:
            await objects.delete(BOOK.ref(name))
        seen, cursor = seen + page, page[-1]

    assert seen == ALL


async def test_without_a_parent_nothing_is_listed(objects: Objects) -> None:
    assert await listed(objects, None) == ([], False)
    for absent in ("s1", "not a name"):
        with pytest.raises(ObjectNotFound, match=f"No shelf found with id '{absent}'."):
            await listed(objects, SHELF.ref(absent))


async def test_labels_make_lists_of_their_own(objects: Objects) -> None:
    ref = await shelf(objects)
    for number in range(6):
        await objects.create(book(ref, f"b{number}", labels={"colour": "red" if number % 2 else "blue"}))

    assert await listed(objects, ref, label=("colour", "red"), order="asc") == (["b1", "b3", "b5"], False)
    assert await listed(objects, ref, label=("colour", "red"), after="b4", limit=1) == (["b3"], True)
    assert await listed(objects, ref, label=("colour", "green")) == ([], False)


async def test_fifty_writers_lose_nothing_and_each_ones_order_stays(objects: Objects) -> None:
    ref = await shelf(objects)

    async def write(writer: int) -> list[str]:
        names = [f"w{writer}-{number}" for number in range(10)]
        for name in names:
            await objects.create(book(ref, name))
        return names

    written = await asyncio.gather(*(write(writer) for writer in range(50)))
    seen = await _all(objects, ref)

    assert sorted(seen) == sorted(name for names in written for name in names)
    for names in written:
        assert [name for name in seen if name in names] == names


async def _all(objects: Objects, ref: Ref) -> list[str]:
    seen: list[str] = []
    more = True
    while more:
        page, more = await listed(objects, ref, order="asc", limit=100, after=seen[-1] if seen else None)
        seen += page
    return seen
