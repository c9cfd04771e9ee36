"""``/v1/assistants``."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.apis.openai.assistants.stores import with_new_stores
from services.gateway.apis.openai.assistants.tools import ResponseFormat, ToolResources, Tools, resources_json
from services.gateway.apis.openai.objects import Metadata, ObjectEndpoint, deleted, listed
from services.gateway.apis.openai.schemas import MAX_NAME_LENGTH
from services.gateway.store.changes import Create
from services.gateway.store.kinds import ASSISTANT, Ref
from services.gateway.web.replies import JsonReply
from services.gateway.web.validation import ClosedBody

MAX_INSTRUCTIONS_LENGTH = 256_000
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class AssistantFields(ClosedBody):
    """What can be set about an assistant."""

    name: str | None = Field(default=None, max_length=256)
    description: str | None = Field(default=None, max_length=512)
    instructions: str | None = Field(default=None, max_length=MAX_INSTRUCTIONS_LENGTH)
    tools: Tools | None = None
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    response_format: ResponseFormat | None = None
    reasoning_effort: ReasoningEffort | None = None


class CreateAssistant(AssistantFields):
    """Body of ``POST /v1/assistants``."""

    model: str = Field(max_length=MAX_NAME_LENGTH)


class ModifyAssistant(AssistantFields):
    """Body of ``POST /v1/assistants/{assistant_id}``: only what is named changes, null resets it."""

    model: str = Field(default="", max_length=MAX_NAME_LENGTH)


_DEFAULTS: dict[str, Any] = {
    "name": None,
    "description": None,
    "model": "",
    "instructions": None,
    "tools": [],
    "tool_resources": {},
    "metadata": {},
    "temperature": 1.0,
    "top_p": 1.0,
    "response_format": "auto",
    "reasoning_effort": None,
}
"""What an assistant has where its maker said nothing, or null."""


class Assistants(ObjectEndpoint):
    """Assistants: a model with instructions and tools."""

    async def create(self, request: Request) -> Response:
        """Make an assistant."""
        call = await self._call(request)
        body, stores = await with_new_stores(self._services, call, await self._body(request, CreateAssistant))
        ref = ASSISTANT.new_ref()
        fields = named_fields(body, is_lenient=self._services.is_lenient)
        shown = assistant_json(ref, call.exchange.created, fields)
        await call.objects.apply([*stores, Create(ref, shown)])
        self._services.files.ingestions.wake()
        return JsonReply(shown)

    async def list(self, request: Request) -> Response:
        """Return a page of assistants."""
        call = await self._call(request)
        return JsonReply(listed(await call.objects.list(self._query(request, ASSISTANT))))

    async def get(self, request: Request) -> Response:
        """Return one assistant."""
        call = await self._call(request)
        record = await call.objects.get(self._ref(request, ASSISTANT))
        return JsonReply(record.body)

    async def modify(self, request: Request) -> Response:
        """Change what the body names."""
        call = await self._call(request)
        ref = self._ref(request, ASSISTANT)
        body, stores = await with_new_stores(self._services, call, await self._body(request, ModifyAssistant))
        fields = named_fields(body, is_lenient=self._services.is_lenient)
        record = await call.objects.edit(ref, lambda body: {**body, **fields}, also=stores)
        self._services.files.ingestions.wake()
        return JsonReply(record.body)

    async def delete(self, request: Request) -> Response:
        """Delete an assistant; its threads and runs stay."""
        call = await self._call(request)
        ref = self._ref(request, ASSISTANT)
        await call.objects.delete(ref)
        return JsonReply(deleted(ref, "assistant"))


def named_fields(body: AssistantFields, *, is_lenient: bool = False) -> dict[str, Any]:
    """Return the fields that a client named, as assistants show them.

    Raises:
        InvalidRequest: vector stores are named and asked for at once.
    """
    given = body.model_dump(exclude_unset=True, by_alias=True)
    if body.tool_resources is not None:
        given["tool_resources"] = resources_json(body.tool_resources, is_lenient=is_lenient)
    return {name: _DEFAULTS[name] if value is None else value for name, value in given.items()}


def assistant_json(ref: Ref, created: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an assistant as the API shows it; what ``fields`` leave out has its default."""
    return {"id": ref.id, "object": "assistant", "created_at": created, **_DEFAULTS, **fields}
