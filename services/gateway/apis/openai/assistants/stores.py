"""Vector stores that are made together with the assistant or thread that uses them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from services.errors import InvalidRequest
from services.gateway.apis.openai.assistants.messages import CreateMessage
from services.gateway.apis.openai.assistants.tools import FileSearchResources, NewVectorStore, ToolResources
from services.gateway.apis.openai.objects import Call
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.apis.openai.vector_stores.schemas import new_files
from services.gateway.search.attachments import THREAD_STORE_EXPIRY, attached_files
from services.gateway.search.stores import new_store
from services.gateway.store.changes import Operation
from services.gateway.store.kinds import VECTOR_STORE

BodyT = TypeVar("BodyT", bound=BaseModel)
PARAM = "tool_resources.file_search.vector_stores"


async def with_thread_stores(
    services: OpenAIServices, call: Call, body: BodyT, messages: Sequence[CreateMessage] = ()
) -> tuple[BodyT, list[Operation]]:
    """Return what ``with_new_stores`` does for a thread; its first messages bring their files into its vector store.

    Raises:
        InvalidRequest: vector stores are named and asked for at once.
        ObjectNotFound: a file, or the store that shall have it, does not exist.
        ObjectRefused: that store has expired.
    """
    file_ids = attached_files(message.model_dump(include={"attachments"}) for message in messages)
    resources: ToolResources = getattr(body, "tool_resources", None) or ToolResources()
    search = resources.file_search or FileSearchResources()
    adding: list[Operation] = []
    if file_ids and search.vector_store_ids:
        store = VECTOR_STORE.ref(search.vector_store_ids[0])
        adding = await services.files.attachments.adding(call.exchange.project, store, file_ids)
    elif file_ids:
        [wanted] = search.vector_stores or [NewVectorStore()]
        wanted = wanted.model_copy(update={"file_ids": [*wanted.file_ids, *file_ids]})
        search = search.model_copy(update={"vector_stores": [wanted]})
        body = body.model_copy(update={"tool_resources": resources.model_copy(update={"file_search": search})})
    body, making = await with_new_stores(services, call, body, expires_after=THREAD_STORE_EXPIRY)
    return body, [*making, *adding]


async def with_new_stores(
    services: OpenAIServices, call: Call, body: BodyT, *, expires_after: Mapping[str, Any] | None = None
) -> tuple[BodyT, list[Operation]]:
    """Return the body with the ids of the vector stores that it asks for, and what makes them.

    Call ``services.files.ingestions.wake()`` once they are made; ``expires_after`` is when they end.

    Raises:
        InvalidRequest: vector stores are named and asked for at once.
        ObjectNotFound: a file does not exist.
    """
    resources: ToolResources | None = getattr(body, "tool_resources", None)
    search = resources.file_search if resources is not None else None
    if resources is None or search is None or not search.vector_stores:
        return body, []
    if search.vector_store_ids:
        if services.is_lenient:
            return body, []
        raise InvalidRequest("Only one of 'vector_store_ids' and 'vector_stores' may be given.", param=PARAM)
    ids, operations = [], []
    for wanted in search.vector_stores:
        kept, making = await _made(services, call, wanted, expires_after)
        ids.append(kept)
        operations += making
    named = resources.model_copy(update={"file_search": FileSearchResources(vector_store_ids=ids)})
    return body.model_copy(update={"tool_resources": named}), operations


async def _made(
    services: OpenAIServices, call: Call, wanted: NewVectorStore, expires_after: Mapping[str, Any] | None
) -> tuple[str, list[Operation]]:
    kept, operations = await new_store(
        services.files.storage,
        call.exchange.project,
        call.exchange.created,
        {"metadata": wanted.metadata, "expires_after": expires_after},
        new_files(wanted.file_ids, wanted.chunking_strategy),
    )
    return str(kept["id"]), operations
