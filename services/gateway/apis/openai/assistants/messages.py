"""``/v1/threads/{thread_id}/messages``."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from starlette.requests import Request
from starlette.responses import Response

from services.errors import ObjectRefused
from services.gateway.apis.openai.assistants.tools import CodeInterpreterTool, Id
from services.gateway.apis.openai.objects import Metadata, ObjectEndpoint, deleted, listed
from services.gateway.jobs.operations import RequireIdleThread
from services.gateway.runs.documents import RUN_LABEL
from services.gateway.store.changes import Create, Delete, Operation
from services.gateway.store.kinds import MESSAGE, RUN, THREAD, Ref
from services.gateway.web.replies import JsonReply
from services.gateway.web.validation import ClosedBody, type_tag

MAX_TEXT_LENGTH = 256_000
MAX_PARTS = 1024
MAX_ATTACHMENTS = 1024

Text = Annotated[str, Field(max_length=MAX_TEXT_LENGTH)]
Detail = Literal["auto", "low", "high"]


class TextPart(ClosedBody):
    """Text."""

    type: Literal["text"]
    text: Text


class ImageFile(ClosedBody):
    """A picture that was uploaded."""

    file_id: Id
    detail: Detail = "auto"


class ImageFilePart(ClosedBody):
    """An uploaded picture."""

    type: Literal["image_file"]
    image_file: ImageFile


class ImageUrl(ClosedBody):
    """A picture elsewhere."""

    url: str = Field(max_length=MAX_TEXT_LENGTH)
    detail: Detail = "auto"


class ImageUrlPart(ClosedBody):
    """A picture elsewhere."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[
    Annotated[TextPart, Tag("~text")]
    | Annotated[ImageUrlPart, Tag("~image_url")]
    | Annotated[ImageFilePart, Tag("~image_file")],
    Discriminator(type_tag),
]


def _content_tag(value: Any) -> str:
    return "~list" if isinstance(value, list) else "~text"


Content = Annotated[
    Annotated[Text, Tag("~text")] | Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS), Tag("~list")],
    Discriminator(_content_tag),
]


class AttachedFileSearch(ClosedBody):
    """Lets file search read an attachment."""

    type: Literal["file_search"]


class Attachment(ClosedBody):
    """A file, and the tools that may read it."""

    file_id: Id
    tools: list[
        Annotated[
            Annotated[CodeInterpreterTool, Tag("~code_interpreter")]
            | Annotated[AttachedFileSearch, Tag("~file_search")],
            Discriminator(type_tag),
        ]
    ] = Field(default_factory=list, max_length=2)


class CreateMessage(ClosedBody):
    """Body of ``POST /v1/threads/{thread_id}/messages``; threads and runs take such messages too."""

    role: Literal["user", "assistant"]
    content: Content
    attachments: list[Attachment] | None = Field(default=None, max_length=MAX_ATTACHMENTS)
    metadata: Metadata | None = None


class ModifyMessage(ClosedBody):
    """Body of ``POST /v1/threads/{thread_id}/messages/{message_id}``."""

    metadata: Metadata | None = None


def new_messages(thread: Ref, bodies: Sequence[CreateMessage], created: int, *, path: str = "") -> list[Create]:
    """Return the creation of messages in a thread, in their order.

    Args:
        thread: where they go.
        bodies: what the client sent.
        created: seconds since the Unix epoch.
        path: where the list stands in the request, as in ``messages``; empty for a message of its own.

    Raises:
        ObjectRefused: a message says nothing; ``param`` names its content.
    """
    creations = []
    for index, body in enumerate(bodies):
        param = f"{path}[{index}].content" if path else "content"
        ref = MESSAGE.new_ref()
        content = _content_json(body.content, param)
        shown = message_json(ref, thread, created, body.role, content)
        attachments = [attachment.model_dump() for attachment in body.attachments or ()]
        creations.append(Create(ref, {**shown, "attachments": attachments, "metadata": body.metadata or {}}, thread))
    return creations


class Messages(ObjectEndpoint):
    """The messages of a thread."""

    async def create(self, request: Request) -> Response:
        """Add a message."""
        call = await self._call(request)
        thread = self._ref(request, THREAD)
        body = await self._body(request, CreateMessage)
        [creation] = new_messages(thread, [body], call.exchange.created)

        async def make(attaching: Sequence[Operation]) -> None:
            await call.objects.apply([RequireIdleThread(thread), creation, *attaching])

        await self._services.files.attachments.bring(call.exchange.project, thread, [creation.body], make)
        return JsonReply(creation.body)

    async def list(self, request: Request) -> Response:
        """Return a page of messages, of one run if ``run_id`` names one."""
        call = await self._call(request)
        thread, run_id, label = self._ref(request, THREAD), request.query_params.get(RUN_LABEL), None
        if run_id:
            label = (RUN_LABEL, self._named(RUN, run_id, RUN_LABEL).id)
        return JsonReply(listed(await call.objects.list(self._query(request, MESSAGE, thread, label=label))))

    async def get(self, request: Request) -> Response:
        """Return one message."""
        call = await self._call(request)
        record = await call.objects.get(self._ref(request, MESSAGE), parent=self._ref(request, THREAD))
        return JsonReply(record.body)

    async def modify(self, request: Request) -> Response:
        """Replace the metadata, if the body names them."""
        call = await self._call(request)
        thread, ref = self._ref(request, THREAD), self._ref(request, MESSAGE)
        body = await self._body(request, ModifyMessage)
        fields = {"metadata": body.metadata or {}} if "metadata" in body.model_fields_set else {}
        record = await call.objects.edit(ref, lambda message: {**message, **fields}, parent=thread)
        return JsonReply(record.body)

    async def delete(self, request: Request) -> Response:
        """Delete a message."""
        call = await self._call(request)
        thread, ref = self._ref(request, THREAD), self._ref(request, MESSAGE)
        await call.objects.apply([RequireIdleThread(thread), Delete(ref, parent=thread)])
        return JsonReply(deleted(ref, "thread.message"))


def message_json(
    ref: Ref, thread: Ref, created: int, role: str, content: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return a complete message as the API shows it."""
    return {
        "id": ref.id,
        "object": "thread.message",
        "created_at": created,
        "thread_id": thread.id,
        "status": "completed",
        "incomplete_details": None,
        "completed_at": created,
        "incomplete_at": None,
        "role": role,
        "content": content,
        "assistant_id": None,
        "run_id": None,
        "attachments": [],
        "metadata": {},
    }


def _content_json(content: Content, param: str) -> Sequence[Mapping[str, Any]]:
    parts = [TextPart(type="text", text=content)] if isinstance(content, str) else content
    if any(isinstance(part, TextPart) and not part.text for part in parts):
        raise ObjectRefused("Message content must be non-empty.", param=param)
    return [text_json(part.text) if isinstance(part, TextPart) else part.model_dump() for part in parts]


def text_json(text: str) -> Mapping[str, Any]:
    """Return a part of a message's content that is plain text."""
    return {"type": "text", "text": {"value": text, "annotations": []}}
