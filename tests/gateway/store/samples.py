"""Kinds for tests, and what is in a store."""

from typing import Any

from services.gateway.redis_state import RedisState
from services.gateway.store.changes import Create
from services.gateway.store.kinds import Kind, Ref
from services.gateway.store.object_store import Objects
from services.gateway.store.records import Page, Query

SHELF = Kind("shelf", "shelf", "shelf")
BOOK = Kind("book", "book", "book")
PAGE = Kind("page", "page", "page")


def book(shelf: Ref | None, name: str, **changes: Any) -> Create:
    return Create(BOOK.ref(name), {"id": name}, shelf, **changes)


async def shelf(objects: Objects, name: str = "s1", books: int = 0) -> Ref:
    """A shelf with books ``b0``, ``b1`` and so on."""
    ref = SHELF.ref(name)
    await objects.create(Create(ref, {"id": name}))
    for number in range(books):
        await objects.create(book(ref, f"b{number}"))
    return ref


async def listed(objects: Objects, parent: Ref | None, **changes: Any) -> tuple[list[str], bool]:
    page: Page = await objects.list(Query(BOOK, parent, **changes))
    return [record.ref.id for record in page.records], page.has_more


async def stored_keys(state: RedisState) -> set[str]:
    """All keys but those that expire by themselves, and the set of projects."""
    async with state.reaching() as client:
        keys = {str(key, "utf-8") if isinstance(key, bytes) else key for key in await client.keys("*")}
    return {key for key in keys if key != "tandem:projects" and ":done:" not in key and ":gone:" not in key}
