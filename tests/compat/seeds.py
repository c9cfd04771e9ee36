"""What the official SDK's tests expect to exist: they were written for a mock and name objects by literal ids."""

from collections.abc import Sequence

from services.gateway.apis.openai.assistants.assistants import assistant_json
from services.gateway.apis.openai.assistants.messages import message_json, text_json
from services.gateway.apis.openai.assistants.threads import thread_json
from services.gateway.runs.documents import RUN_LABEL
from services.gateway.store.changes import Create, Operation
from services.gateway.store.kinds import ASSISTANT, MESSAGE, THREAD
from tests.compat.run_seeds import run_seeds

CREATED = 1_700_000_000
MODELS = ("gpt-6-astra", "gpt-4.1", "gpt-5", "gpt-3.5-turbo-instruct", "text-embedding-3-small")
"""Names of models in the tests; aliases of the model that is served."""
BEGIN, END = "after", "before"
"""Cursors that the tests of lists name; the first and the last object of each list."""


def seeds(test_id: str) -> Sequence[Operation]:
    """Return what the store shall hold before a test, in an order in which it can be created."""
    return [*_assistants(), *_thread(), *run_seeds(test_id, CREATED, (BEGIN, END))]


def _assistants() -> list[Create]:
    return [
        Create(ref := ASSISTANT.ref(name), assistant_json(ref, CREATED, {"model": "gpt-4.1", "instructions": "Teach."}))
        for name in (BEGIN, "assistant_id", END)
    ]


def _thread() -> list[Create]:
    thread = THREAD.ref("thread_id")
    messages = [
        Create(
            ref := MESSAGE.ref(name),
            message_json(ref, thread, CREATED, "user", [text_json("hello")]),
            thread,
            {RUN_LABEL: "run_id"},
        )
        for name in (BEGIN, "message_id", END)
    ]
    return [Create(thread, thread_json(thread, CREATED, {}, {})), *messages]
