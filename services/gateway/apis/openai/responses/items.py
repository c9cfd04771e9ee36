"""Items as request bodies name them, and as they are kept."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from services.errors import InvalidRequest, ObjectNotFound
from services.gateway.apis.openai.schemas import MAX_NAME_LENGTH, MAX_PARTS
from services.gateway.jobs.events import Body as ItemBody
from services.gateway.responses.items import (
    call_item,
    compaction_item,
    item_of,
    message_item,
    new_item_id,
    output_text,
    search_item,
)
from services.gateway.store.kinds import INPUT_ITEM, ITEM, MESSAGE, OUTPUT_ITEM
from services.gateway.store.object_store import Objects
from services.gateway.web.validation import TAG_MARK, Body, Json, type_tag

MAX_TEXT_LENGTH = 10 * 2**20
MAX_SEALED_LENGTH = 20 * 2**20
Text = Annotated[str, Field(max_length=MAX_TEXT_LENGTH)]
Name = Annotated[str, Field(max_length=MAX_NAME_LENGTH)]


class InputText(Body):
    """Text of a user or developer."""

    type: Literal["input_text"]
    text: Text


class OutputText(Body):
    """Text of a model."""

    type: Literal["output_text"]
    text: Text
    annotations: list[dict[str, Json]] | None = Field(default=None, max_length=MAX_PARTS)


class Refusal(Body):
    """What a model said instead of an answer."""

    type: Literal["refusal"]
    refusal: Text


class InputImage(Body):
    """A picture."""

    type: Literal["input_image"]
    detail: Literal["auto", "low", "high", "original"] | None = None
    image_url: Text | None = None
    file_id: Name | None = None


class InputFile(Body):
    """A file."""

    type: Literal["input_file"]
    file_id: Name | None = None
    file_url: Text | None = None
    filename: Name | None = None
    file_data: Text | None = None


Part = Annotated[
    Annotated[InputText, Tag("~input_text")]
    | Annotated[OutputText, Tag("~output_text")]
    | Annotated[Refusal, Tag("~refusal")]
    | Annotated[InputImage, Tag("~input_image")]
    | Annotated[InputFile, Tag("~input_file")],
    Discriminator(type_tag),
]


def text_or_list(value: Any) -> str | None:
    """Return the tag of what is a text or a list."""
    if isinstance(value, str):
        return f"{TAG_MARK}text"
    return f"{TAG_MARK}list" if isinstance(value, list) else None


Content = Annotated[
    Annotated[Text, Tag("~text")] | Annotated[list[Part], Field(max_length=MAX_PARTS), Tag("~list")],
    Discriminator(text_or_list, custom_error_type="content_type", custom_error_message="Expected a string or an array"),
]


class MessageItem(Body):
    """A message of anybody."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class CallItem(Body):
    """A call of a function that a model made earlier."""

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: Text


class CallOutputItem(Body):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: Name
    output: Content


class SearchItem(Body):
    """A search of files that a model made earlier; models are not shown it again, as its passages are not in it."""

    type: Literal["file_search_call"]
    queries: list[Text] = Field(default_factory=list, max_length=MAX_PARTS)
    status: Literal["in_progress", "searching", "completed", "incomplete", "failed"] | None = None
    results: list[dict[str, Json]] | None = Field(default=None, max_length=MAX_PARTS)


class ReasoningItem(Body):
    """Thoughts of a model, which are not shown to it again."""

    type: Literal["reasoning"]
    summary: list[dict[str, Json]] = Field(default_factory=list, max_length=MAX_PARTS)
    content: list[dict[str, Json]] | None = Field(default=None, max_length=MAX_PARTS)


class CompactionItem(Body):
    """What a conversation was compacted to."""

    type: Literal["compaction"]
    encrypted_content: str = Field(max_length=MAX_SEALED_LENGTH)


class ItemReference(Body):
    """An item that is kept already."""

    type: Literal["item_reference"] | None = None
    id: Name


def _item_tag(value: Any) -> str | None:
    """Return the tag of an item; messages and references need no type."""
    if isinstance(value, dict) and value.get("type") is None:
        return "~message" if "role" in value else ("~item_reference" if "id" in value else None)
    return type_tag(value)


Item = Annotated[
    Annotated[MessageItem, Tag("~message")]
    | Annotated[CallItem, Tag("~function_call")]
    | Annotated[CallOutputItem, Tag("~function_call_output")]
    | Annotated[SearchItem, Tag("~file_search_call")]
    | Annotated[ReasoningItem, Tag("~reasoning")]
    | Annotated[CompactionItem, Tag("~compaction")]
    | Annotated[ItemReference, Tag("~item_reference")],
    Discriminator(_item_tag),
]


async def kept_items(objects: Objects, items: Sequence[Item]) -> list[ItemBody]:
    """Return items as they are kept, each with an id of its own.

    Raises:
        InvalidRequest: a reference names nothing.
    """
    return [
        await _referenced(objects, item) if isinstance(item, ItemReference) else kept_item(item, new_item_id(item.type))
        for item in items
    ]


async def input_items(objects: Objects, given: str | Sequence[Item] | None) -> list[ItemBody]:
    """Return the input of a response as it is kept.

    Raises:
        InvalidRequest: a reference names nothing.
    """
    return [user_item(given)] if isinstance(given, str) else await kept_items(objects, given or ())


def user_item(text: str) -> ItemBody:
    """Return a message of the user."""
    return message_item(new_item_id("message"), "user", [{"type": "input_text", "text": text}])


def kept_item(
    item: MessageItem | CallItem | CallOutputItem | SearchItem | ReasoningItem | CompactionItem, item_id: str
) -> ItemBody:
    """Return an item as it is kept."""
    match item:
        case MessageItem():
            return message_item(item_id, item.role, _parts(item.content, item.role), item.status or "completed")
        case CallItem():
            return call_item(item_id, item.call_id, item.name, item.arguments, "completed")
        case CallOutputItem():
            output = item.output if isinstance(item.output, str) else [_part(part) for part in item.output]
            kept = {"id": item_id, "type": item.type, "status": "completed"}
            return {**kept, "call_id": item.call_id, "output": output}
        case SearchItem():
            return {**search_item(item_id, item.status or "completed", item.queries), "results": item.results}
        case CompactionItem():
            return compaction_item(item_id, item.encrypted_content)
        case ReasoningItem():
            return {"id": item_id, **item.model_dump(exclude_none=True)}


def _parts(content: Content, role: str) -> list[ItemBody]:
    if isinstance(content, str):
        return [output_text(content) if role == "assistant" else {"type": "input_text", "text": content}]
    return [_part(part) for part in content]


def _part(part: Part) -> ItemBody:
    if isinstance(part, OutputText):
        return output_text(part.text, part.annotations or ())
    shown = part.model_dump(exclude_none=True)
    return {"detail": "auto", **shown} if isinstance(part, InputImage) else shown


async def _referenced(objects: Objects, reference: ItemReference) -> ItemBody:
    for kind in (MESSAGE, ITEM, INPUT_ITEM, OUTPUT_ITEM):
        try:
            record = await objects.get(kind.ref(reference.id))
        except ObjectNotFound:
            continue
        item = item_of(record)
        return {**item, "id": new_item_id(item["type"])}
    raise InvalidRequest(f"Item with id '{reference.id}' not found.", param="input")
