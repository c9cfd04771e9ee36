"""What the official SDK's tests expect to exist: they were written for a mock and name objects by literal ids."""

import time
from collections.abc import Sequence

from services.gateway.apis.openai.assistants.assistants import assistant_json
from services.gateway.apis.openai.assistants.messages import message_json, text_json
from services.gateway.apis.openai.assistants.threads import thread_json
from services.gateway.apis.openai.files.files import file_json
from services.gateway.apis.openai.files.uploads import part_json, upload_json
from services.gateway.runs.documents import RUN_LABEL
from services.gateway.search.stores import (
    NewStoredFile,
    StoredFileSource,
    batch_json,
    new_store_json,
    stored_file_json,
    stored_ref,
)
from services.gateway.store.changes import Create, Operation
from services.gateway.store.kinds import (
    ASSISTANT,
    FILE,
    FILE_BATCH,
    MESSAGE,
    THREAD,
    UPLOAD,
    UPLOAD_PART,
    VECTOR_STORE,
    Ref,
)
from tests.compat.response_seeds import response_seeds
from tests.compat.run_seeds import run_seeds

CREATED = 1_700_000_000
MODELS = ("gpt-6-astra", "gpt-4.1", "gpt-5", "gpt-3.5-turbo-instruct", "model")
"""Names of models in the tests; aliases of the model that is served."""
EMBEDDING_ALIAS = "text-embedding-3-small"
"""Likewise, of the embedding model."""
BEGIN, END = "after", "before"
"""Cursors that the tests of lists name; the first and the last object of each list."""


def seeds(test_id: str) -> Sequence[Operation]:
    """Return what the store shall hold before a test, in an order in which it can be created."""
    runs = run_seeds(test_id, CREATED, (BEGIN, END))
    responses = response_seeds(test_id, CREATED, (BEGIN, END))
    return [*_assistants(), *_thread(), *runs, *responses, *_files(), *_upload(), *_vector_stores()]


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


def _files() -> list[Create]:
    return [
        Create(ref := FILE.ref(name), file_json(ref, CREATED, f"{name}.txt", 0, "assistants", None))
        for name in (BEGIN, "file_id", "string", "file-abc123", END)
    ]


def _upload() -> list[Create]:
    upload, part = UPLOAD.ref("upload_abc123"), UPLOAD_PART.ref("string")
    now = int(time.time())
    return [
        Create(upload, upload_json(upload, now, "filename", 0, "assistants")),
        Create(part, part_json(part, upload, now), upload),
    ]


def _vector_stores() -> list[Create]:
    stores = [
        Create(ref := VECTOR_STORE.ref(name), new_store_json(ref, CREATED, {"name": name}))
        for name in (BEGIN, "vector_store_id", "vs_abc123", END)
    ]
    first, second = VECTOR_STORE.ref("vector_store_id"), VECTOR_STORE.ref("vs_abc123")
    batches = [
        Create(ref := FILE_BATCH.ref(name), batch_json(ref, store, CREATED), store)
        for store, name in ((first, "batch_id"), (second, "vsfb_abc123"))
    ]
    return [
        *stores,
        *batches,
        *(_stored_file(first, name, "batch_id") for name in (BEGIN, "file_id", END)),
        _stored_file(second, "file-abc123", "vsfb_abc123"),
    ]


def _stored_file(store: Ref, file_id: str, batch: str) -> Create:
    body = {**stored_file_json(store, NewStoredFile(file_id), CREATED), "status": "completed"}
    source = StoredFileSource(f"{file_id}.txt", batch)
    return Create(stored_ref(store, file_id), body, store, source.labels("completed"), source.to_bytes())
