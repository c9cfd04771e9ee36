"""Responses and conversations that the official SDK's tests expect to exist, in the state that the test needs."""

from collections.abc import Sequence

from services.gateway.apis.openai.assistants.threads import thread_json
from services.gateway.apis.openai.responses.bodies import CreateResponse, response_json
from services.gateway.apis.openai.responses.items import user_item
from services.gateway.jobs.events import Body, numbered
from services.gateway.jobs.operations import WriteJob
from services.gateway.responses import documents
from services.gateway.responses.documents import response_event
from services.gateway.responses.items import call_item, creation, message_item, output_text
from services.gateway.responses.state import ResponseState
from services.gateway.runs.job import Used
from services.gateway.store.changes import Create, Operation
from services.gateway.store.kinds import INPUT_ITEM, ITEM, RESPONSE, THREAD, Ref

NEVER_MS = 4_000_000_000_000
"""When a seeded response expires."""
_NAMES = ("resp_677efb5139a88190b512bc3fef8e535d", "resp_123", "previous_response_id", "response_id")


def response_seeds(test_id: str, created: int, others: Sequence[str]) -> list[Operation]:
    """Return the responses and conversations, with items named ``others`` for lists to begin and end at."""
    responses = [operation for name in _NAMES for operation in _response(test_id, RESPONSE.ref(name), created, others)]
    return [*responses, *_conversation("conv_123", created, others), *_conversation("string", created, ())]


def _response(test_id: str, ref: Ref, created: int, others: Sequence[str]) -> list[Operation]:
    body = CreateResponse(model="gpt-4.1", input="hello", background=True)
    new = response_json(ref, "gpt-4.1", body, created)
    text = message_item(f"msg_of_{ref.id}", "assistant", [output_text("Hello!")])
    ended = documents.completed(new, [text], Used(3, 4), created)
    is_open = "cancel" in test_id
    events = [response_event(new, "created"), response_event(new), *(() if is_open else (response_event(ended),))]
    write = WriteJob(ref, 1, 0, NEVER_MS if is_open else None, NEVER_MS, numbered(events, 1), retention_s=600.0)
    shown: Body = new if is_open else ended
    items = others if ref.id == "response_id" else ()
    return [
        Create(ref, shown, private=ResponseState().to_bytes()),
        write,
        *(Create(INPUT_ITEM.ref(name), {**user_item("hello"), "id": name}, ref) for name in items),
    ]


def _conversation(name: str, created: int, others: Sequence[str]) -> list[Operation]:
    thread = THREAD.ref(f"thread_{name.removeprefix('conv_')}")
    calls = [Create(ITEM.ref(each), call_item(each, "call_1", "f", "{}", "completed"), thread) for each in others]
    message = [creation({**user_item("hello"), "id": "msg_abc"}, thread, created)] if others else []
    return [Create(thread, thread_json(thread, created, {}, {})), *calls, *message]
