"""``/v1/threads``."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.apis.openai.assistants.messages import CreateMessage, new_messages
from services.gateway.apis.openai.assistants.stores import with_thread_stores
from services.gateway.apis.openai.assistants.tools import ToolResources, resources_json
from services.gateway.apis.openai.objects import Metadata, ObjectEndpoint, deleted
from services.gateway.apis.openai.schemas import MAX_MESSAGES
from services.gateway.store.changes import Create
from services.gateway.store.kinds import THREAD, Ref
from services.gateway.web.replies import JsonReply
from services.gateway.web.validation import ClosedBody


class ModifyThread(ClosedBody):
    """Body of ``POST /v1/threads/{thread_id}``: only what is named changes, null resets it."""

    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None


class CreateThread(ModifyThread):
    """Body of ``POST /v1/threads``."""

    messages: list[CreateMessage] | None = Field(default=None, max_length=MAX_MESSAGES)


def new_thread(body: CreateThread, created: int, *, is_lenient: bool, path: str = "messages") -> list[Create]:
    """Return the creation of a thread and, after it, of its first messages.

    Raises:
        InvalidRequest: a message or a resource cannot be taken; ``param`` names it.
    """
    ref = THREAD.new_ref()
    resources = resources_json(body.tool_resources, is_lenient=is_lenient)
    thread = Create(ref, thread_json(ref, created, resources, body.metadata or {}))
    return [thread, *new_messages(ref, body.messages or (), created, path=path)]


class Threads(ObjectEndpoint):
    """Threads: conversations that are kept."""

    async def create(self, request: Request) -> Response:
        """Make a thread, with its first messages if the body has some."""
        call = await self._call(request)
        body = await self._body(request, CreateThread)
        body, stores = await with_thread_stores(self._services, call, body, body.messages or ())
        creations = new_thread(body, call.exchange.created, is_lenient=self._services.is_lenient)
        await call.objects.apply([*stores, *creations])
        self._services.files.ingestions.wake()
        return JsonReply(creations[0].body)

    async def get(self, request: Request) -> Response:
        """Return one thread."""
        call = await self._call(request)
        record = await call.objects.get(self._ref(request, THREAD))
        return JsonReply(record.body)

    async def modify(self, request: Request) -> Response:
        """Change what the body names."""
        call = await self._call(request)
        ref = self._ref(request, THREAD)
        body, stores = await with_thread_stores(self._services, call, await self._body(request, ModifyThread))
        fields: dict[str, Any] = {}
        if "metadata" in body.model_fields_set:
            fields["metadata"] = body.metadata or {}
        if "tool_resources" in body.model_fields_set:
            fields["tool_resources"] = resources_json(body.tool_resources, is_lenient=self._services.is_lenient)
        record = await call.objects.edit(ref, lambda thread: {**thread, **fields}, also=stores)
        self._services.files.ingestions.wake()
        return JsonReply(record.body)

    async def delete(self, request: Request) -> Response:
        """Delete a thread with everything in it."""
        call = await self._call(request)
        ref = self._ref(request, THREAD)
        await call.objects.delete(ref)
        return JsonReply(deleted(ref, "thread"))


def thread_json(ref: Ref, created: int, resources: Mapping[str, Any], metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a thread as the API shows it."""
    return {
        "id": ref.id,
        "object": "thread",
        "created_at": created,
        "tool_resources": resources,
        "metadata": metadata,
    }
