"""Conversations, their items, and stored responses, from the lines of an export to what makes them."""

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import Field

from services.errors import InvalidRequest
from services.gateway.apis.openai.assistants.threads import thread_json
from services.gateway.apis.openai.responses.bodies import response_json
from services.gateway.apis.openai.responses.items import Item, ItemReference, kept_item
from services.gateway.apis.openai.schemas import MAX_MESSAGES
from services.gateway.jobs.events import Body
from services.gateway.moving.destination import Destination
from services.gateway.moving.found import KeptFound, found_json, item_found
from services.gateway.moving.lines import Line
from services.gateway.moving.shapes import Seconds, ShownConversation, ShownResponse, Values, named
from services.gateway.responses.items import CONVERSATION, creation, thread_of
from services.gateway.responses.service import RequireIdleConversation
from services.gateway.responses.state import ResponseState
from services.gateway.store.changes import Create
from services.gateway.store.expiry import ExpireAt
from services.gateway.store.kinds import INPUT_ITEM, OUTPUT_ITEM, RESPONSE, is_name
from services.gateway.web.validation import ClosedBody, typed

_STATUSES = ("in_progress", "searching", "completed", "incomplete", "failed")


class _OneItem(ClosedBody):
    item: Item


class _KeptOfResponse(ClosedBody):
    input: list[Values] = Field(default_factory=list, max_length=MAX_MESSAGES)
    found: dict[str, KeptFound] = Field(default_factory=dict)
    expires_at: Seconds | None = None


async def restore_conversation(line: Line, into: Destination) -> bool:
    """Make a conversation, which is a thread, without its items."""
    shown = typed(ShownConversation, line.body)
    thread = thread_of(named(CONVERSATION, shown.id))
    create = Create(thread, thread_json(thread, shown.created_at, {}, shown.metadata or {}))
    return await into.make(create, ignored=("tool_resources",))


async def restore_item(line: Line, into: Destination) -> bool:
    """Make an item, the last one of its conversation."""
    if line.parent is None:
        raise InvalidRequest("The line of an item names its conversation as 'parent'.", param="parent")
    thread = thread_of(named(CONVERSATION, line.parent, "parent"))
    record = await into.files.objects.get(thread)
    item, found = _item(line.body), item_found(line.kept)
    if found is not None and item["type"] != "file_search_call":
        raise InvalidRequest("Only a search of files has 'found'.", param="kept.found")
    private = None if found is None else orjson.dumps(found_json(found))
    create = creation(item, thread, record.body["created_at"], private)
    return await into.make(create, after=[RequireIdleConversation(thread)])


async def restore_response(line: Line, into: Destination) -> bool:
    """Make a stored response with its input and output, without its events."""
    shown = typed(ShownResponse, line.body)
    ref = named(RESPONSE, shown.id)
    if shown.model is None:
        raise InvalidRequest("Missing required parameter: 'model'.", param="model")
    kept = typed(_KeptOfResponse, line.kept)
    output = [_item(item) for item in shown.output]
    plain = response_json(ref, shown.model, shown, shown.created_at)
    given = {name: value for name, value in line.body.items() if name in plain or name in ShownResponse.model_fields}
    body = {**plain, **given, "conversation": plain["conversation"], "output": output, "store": True}
    state = ResponseState(found={item_id: each.found() for item_id, each in kept.found.items()})
    items = [
        *(Create(INPUT_ITEM.ref(item["id"]), item, ref) for item in map(_item, kept.input)),
        *(Create(OUTPUT_ITEM.ref(item["id"]), item, ref) for item in output),
    ]
    ends_at = into.now + into.retention_s if kept.expires_at is None else kept.expires_at
    return await into.make(Create(ref, body, private=state.to_bytes()), after=[*items, ExpireAt(ref, ends_at)])


def _item(shown: Mapping[str, Any]) -> Body:
    """Return an item as it is kept, with the id that it has.

    Raises:
        InvalidRequest: it is none, or it has no id of its own.
    """
    item, item_id = typed(_OneItem, {"item": shown}).item, shown.get("id")
    if isinstance(item, ItemReference):
        raise InvalidRequest("A reference to an item says nothing by itself; bring the item.")
    if not (isinstance(item_id, str) and is_name(item_id)):
        raise InvalidRequest("An item has an 'id' of 1 to 128 letters, digits, '_', '.' and '-'.", param="id")
    kept, status = kept_item(item, item_id), shown.get("status")
    return {**kept, "status": status} if "status" in kept and status in _STATUSES else kept
