"""``/v1/conversations``: threads in another form."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from services.errors import InvalidRequest, ObjectNotFound
from services.gateway.apis.openai.assistants.threads import thread_json
from services.gateway.apis.openai.objects import Call, Metadata, ObjectEndpoint, listed_bodies
from services.gateway.apis.openai.responses.items import Item, kept_items
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.jobs.events import Body as ItemBody
from services.gateway.responses.items import (
    CONVERSATION,
    conversation_json,
    conversation_of,
    creation,
    item_of,
    thread_of,
)
from services.gateway.responses.service import RequireIdleConversation
from services.gateway.store.changes import Create, Delete
from services.gateway.store.kinds import ITEM, MESSAGE, THREAD
from services.gateway.store.records import Record
from services.gateway.web.problems import wrong_prefix
from services.gateway.web.replies import JsonReply
from services.gateway.web.validation import Body

MAX_ITEMS = 20
Items = Annotated[list[Item], Field(max_length=MAX_ITEMS)]


class CreateConversation(Body):
    """Body of ``POST /v1/conversations``."""

    items: Items | None = None
    metadata: Metadata | None = None


class ModifyConversation(Body):
    """Body of ``POST /v1/conversations/{conversation_id}``."""

    metadata: Metadata | None


class CreateItems(Body):
    """Body of ``POST /v1/conversations/{conversation_id}/items``."""

    items: Items


class Conversations(ObjectEndpoint):
    """Conversations and what is in them."""

    async def create(self, request: Request) -> Response:
        """Make a conversation, with its first items if the body has some."""
        call = await self._call(request)
        body = await self._body(request, CreateConversation)
        thread, created = THREAD.new_ref(), call.exchange.created
        items = await self._kept(call, body.items or ())
        make = Create(thread, thread_json(thread, created, {}, body.metadata or {}))
        await call.objects.apply([make, *(creation(item, thread, created) for item in items)])
        return JsonReply(conversation_json(Record(thread, make.body, 1, 0)))

    async def get(self, request: Request) -> Response:
        """Return one conversation."""
        return JsonReply(conversation_json(await self._thread(request, await self._call(request))))

    async def modify(self, request: Request) -> Response:
        """Replace the metadata."""
        call = await self._call(request)
        thread, body = await self._thread(request, call), await self._body(request, ModifyConversation)
        metadata = body.metadata or {}
        return JsonReply(
            conversation_json(await call.objects.edit(thread.ref, lambda shown: {**shown, "metadata": metadata}))
        )

    async def delete(self, request: Request) -> Response:
        """Delete a conversation, which is a thread, with everything in it."""
        call = await self._call(request)
        thread = await self._thread(request, call)
        await call.objects.delete(thread.ref)
        shown = {"id": conversation_of(thread.ref).id, "object": "conversation.deleted", "deleted": True}
        return JsonReply(shown)

    async def create_items(self, request: Request) -> Response:
        """Add items."""
        call = await self._call(request)
        thread, body = await self._thread(request, call), await self._body(request, CreateItems)
        items = await self._kept(call, body.items)
        creations = [creation(item, thread.ref, call.exchange.created) for item in items]
        await call.objects.apply([RequireIdleConversation(thread.ref), *creations])
        return JsonReply(listed_bodies(items, has_more=False))

    async def list_items(self, request: Request) -> Response:
        """Return a page of items."""
        call = await self._call(request)
        thread = await self._thread(request, call)
        page = await call.objects.list(self._query(request, ITEM, thread.ref, also=(MESSAGE,)))
        return JsonReply(listed_bodies([item_of(record) for record in page.records], has_more=page.has_more))

    async def get_item(self, request: Request) -> Response:
        """Return one item."""
        call = await self._call(request)
        return JsonReply(item_of(await self._item(request, call, await self._thread(request, call))))

    async def delete_item(self, request: Request) -> Response:
        """Delete one item; return its conversation."""
        call = await self._call(request)
        thread = await self._thread(request, call)
        item = await self._item(request, call, thread)
        await call.objects.apply([RequireIdleConversation(thread.ref), Delete(item.ref, parent=thread.ref)])
        return JsonReply(conversation_json(thread))

    async def _kept(self, call: Call, items: Sequence[Item]) -> list[ItemBody]:
        """Return items as they are kept.

        Raises:
            InvalidRequest: a reference names nothing, or what a compaction holds cannot be read.
        """
        kept = await kept_items(call.objects, items)
        for item in kept:
            if item["type"] == "compaction":
                self._services.responses.sealer.opened(call.exchange.project, item["encrypted_content"])
        return kept

    async def _thread(self, request: Request, call: Call) -> Record:
        return await conversation_named(self._services, call, request.path_params["conversation_id"])

    async def _item(self, request: Request, call: Call, thread: Record) -> Record:
        """Return the item that the path names.

        Raises:
            ObjectNotFound: there is none in this conversation.
        """
        name = request.path_params["item_id"]
        for kind in (MESSAGE, ITEM):
            try:
                return await call.objects.get(kind.ref(name), parent=thread.ref)
            except ObjectNotFound:
                continue
        raise ObjectNotFound(f"Item with id '{name}' not found.")


async def conversation_named(services: OpenAIServices, call: Call, name: str) -> Record:
    """Return the thread that is the conversation of an id.

    Raises:
        InvalidRequest: the id is that of another kind of object.
        ObjectNotFound: there is none.
    """
    conversation = CONVERSATION.ref(name)
    if not (services.is_lenient or name.startswith(CONVERSATION.prefix)):
        problem = wrong_prefix("conversation_id", name, CONVERSATION.prefix)
        raise InvalidRequest(problem.message, param="conversation_id", code=problem.code)
    try:
        return await call.objects.get(thread_of(conversation))
    except ObjectNotFound:
        raise ObjectNotFound(conversation.absent_text) from None
