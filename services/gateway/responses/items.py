"""Items of conversations and responses: what was said, called and answered. Pure functions.

A message that a thread can have is kept as one, so that a conversation is a thread read in another form:
``conv_abc`` is ``thread_abc``. What threads do not show - calls of functions, their outputs, words of the developer -
is kept beside its messages, in the same order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from services.errors import InvalidRequest
from services.gateway.jobs.events import Body
from services.gateway.runs.turns import ChatMessage
from services.gateway.store.changes import Create
from services.gateway.store.kinds import ITEM, MESSAGE, THREAD, Kind, Ref
from services.gateway.store.records import Record

CONVERSATION = Kind("conversation", "conv", "conversation", absent_text="Conversation with id '{id}' not found.")
"""Conversations are no objects of their own."""
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "file_search_call": "fs",
    "compaction": "cmp",
}
_SUMMARY = "The earlier part of this conversation was replaced by a summary of it:\n\n"


def thread_of(conversation: Ref) -> Ref:
    """Return the thread that a conversation is."""
    return THREAD.ref(f"{THREAD.prefix}_{conversation.id.removeprefix('conv_')}")


def conversation_of(thread: Ref) -> Ref:
    """Return the conversation that a thread is."""
    return CONVERSATION.ref(f"{CONVERSATION.prefix}_{thread.id.removeprefix('thread_')}")


def thread_behind(response: Body) -> Ref | None:
    """Return the thread that is the conversation of a response, if it has one."""
    conversation = response["conversation"]
    return None if conversation is None else thread_of(CONVERSATION.ref(conversation["id"]))


def conversation_json(thread: Record) -> Body:
    """Return a thread as the conversation that the API shows."""
    return {
        "id": conversation_of(thread.ref).id,
        "object": "conversation",
        "created_at": thread.body["created_at"],
        "metadata": thread.body["metadata"],
    }


def new_item_id(item_type: str) -> str:
    """Return an id that no other item has."""
    return Kind(item_type, _PREFIXES.get(item_type, "item"), item_type).new_ref().id


def message_item(item_id: str, role: str, content: Sequence[Body], status: str = "completed") -> Body:
    """Return a message."""
    return {"id": item_id, "type": "message", "status": status, "role": role, "content": list(content)}


def output_text(text: str, annotations: Sequence[Body] = ()) -> Body:
    """Return text that a model wrote."""
    return {"type": "output_text", "text": text, "annotations": list(annotations), "logprobs": []}


def call_item(item_id: str, call_id: str, name: str, arguments: str, status: str) -> Body:
    """Return a call of a function."""
    call = {"id": item_id, "type": "function_call", "status": status}
    return {**call, "call_id": call_id, "name": name, "arguments": arguments}


def compaction_item(item_id: str, sealed: str) -> Body:
    """Return what stands for the conversation before it; ``sealed`` is a summary of that."""
    return {"id": item_id, "type": "compaction", "encrypted_content": sealed}


def summary_item(item_id: str, summary: str) -> Body:
    """Return what models read in the place of a conversation that was compacted."""
    return message_item(item_id, "developer", [{"type": "input_text", "text": _SUMMARY + summary}])


def is_cut_call(item: Body) -> bool:
    """Return whether an item is a call of a function that is not whole, which nobody can answer."""
    return bool(item["type"] == "function_call" and item["status"] != "completed")


def is_bound(last: Body) -> bool:
    """Return whether the last item of an output keeps the token ids of its turn; a search keeps what it found."""
    return last["type"] == "message" or (last["type"] == "function_call" and not is_cut_call(last))


def search_item(item_id: str, status: str, queries: Sequence[str] = ()) -> Body:
    """Return a search of files; what it found is shown only to those who ask."""
    return {"id": item_id, "type": "file_search_call", "status": status, "queries": list(queries), "results": None}


def file_citation(annotation: Body, names: Mapping[str, str]) -> Body:
    """Return an annotation of a thread's message as responses have it; ``names`` are those of files."""
    file_id = annotation.get("file_citation", {}).get("file_id", "")
    place = {"index": annotation["start_index"], "file_id": file_id}
    return {"type": "file_citation", **place, "filename": names.get(file_id, file_id)}


def item_of(record: Record) -> Body:
    """Return the item that an object of a thread is."""
    if record.ref.kind is not MESSAGE:
        return record.body
    body = record.body
    content = [_part_of(part, body["role"]) for part in body["content"]]
    return message_item(body["id"], body["role"], content, body["status"])


def creation(item: Body, thread: Ref, created: int, private: bytes | None = None) -> Create:
    """Return the creation of an item in a thread; ``private`` is what is bound to an answer."""
    if (message := _message(item, thread, created)) is not None:
        return Create(MESSAGE.ref(item["id"]), message, thread, private=private)
    return Create(ITEM.ref(item["id"]), item, thread, private=private)


def text_of(item: Body) -> str:
    """Return the text of a message or of an output.

    Raises:
        InvalidRequest: it has something that models of text cannot read.
    """
    content = item["output"] if item["type"] == "function_call_output" else item["content"]
    if isinstance(content, str):
        return content
    for part in content:
        if part["type"] not in _TEXT_FIELDS:
            raise InvalidRequest(
                f"The item '{item['id']}' has content of type '{part['type']}', and this model reads text only.",
                param="input",
            )
    return "".join(part[_TEXT_FIELDS[part["type"]]] for part in content)


def chat_message(item: Body) -> ChatMessage:
    """Return a message as chat templates read it."""
    role = "system" if item["role"] == "developer" else item["role"]
    return {"role": role, "content": text_of(item)}


_TEXT_FIELDS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}


def _part_of(part: Body, role: str) -> Body:
    if part["type"] == "text":
        text = part["text"]["value"]
        if role != "assistant":
            return {"type": "input_text", "text": text}
        cited = [each for each in part["text"]["annotations"] if each["type"] == "file_citation"]
        return output_text(text, [file_citation(each, {}) for each in cited])
    if part["type"] == "refusal":
        return {"type": "refusal", "refusal": part["refusal"]}
    image = part[part["type"]]
    return {"type": "input_image", "detail": "auto", **_IMAGE_SOURCES[part["type"]](image)}


_IMAGE_SOURCES: Mapping[str, Any] = {
    "image_file": lambda image: {"file_id": image["file_id"], "detail": image["detail"]},
    "image_url": lambda image: {"image_url": image["url"], "detail": image["detail"]},
}


def _annotation(citation: Body, text: str) -> Body:
    """Return a citation of a file as threads have it; its text is a mark in brackets."""
    start, end = _mark_of(citation, text) or (0, 0)
    cited = {"text": text[start:end], "start_index": start, "end_index": end}
    return {"type": "file_citation", **cited, "file_citation": {"file_id": citation["file_id"]}}


def _mark_of(citation: Body, text: str) -> tuple[int, int] | None:
    """Return where the mark of a citation is in its text; None if threads have no such annotations."""
    index, file_id = citation.get("index"), citation.get("file_id")
    if citation.get("type") != "file_citation" or type(index) is not int or index < 0 or not isinstance(file_id, str):
        return None
    end = text.find("】", index) + 1
    return (index, end) if end and text.startswith("【", index) else None


def _text_part(part: Body) -> Body:
    annotations = [_annotation(each, part["text"]) for each in part.get("annotations", ())]
    return {"type": "text", "text": {"value": part["text"], "annotations": annotations}}


def _message(item: Body, thread: Ref, created: int) -> Body | None:
    """Return an item as a message of a thread; None if threads have no such messages."""
    if item["type"] != "message" or item["role"] not in ("user", "assistant"):
        return None
    if any(part["type"] not in ("input_text", "output_text") for part in item["content"]):
        return None
    if any(_mark_of(each, part["text"]) is None for part in item["content"] for each in part.get("annotations", ())):
        return None
    is_whole = item["status"] == "completed"
    return {
        "id": item["id"],
        "object": "thread.message",
        "created_at": created,
        "thread_id": thread.id,
        "status": "completed" if is_whole else "incomplete",
        "incomplete_details": None if is_whole else {"reason": "max_tokens"},
        "completed_at": created if is_whole else None,
        "incomplete_at": None if is_whole else created,
        "role": item["role"],
        "content": [_text_part(part) for part in item["content"]],
        "assistant_id": None,
        "run_id": None,
        "attachments": [],
        "metadata": {},
    }
