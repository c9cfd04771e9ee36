"""Vector stores that are made together with the assistant or thread that uses them."""

from typing import TypeVar

from pydantic import BaseModel

from services.errors import InvalidRequest
from services.gateway.apis.openai.assistants.tools import FileSearchResources, NewVectorStore, ToolResources
from services.gateway.apis.openai.objects import Call
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.apis.openai.vector_stores.schemas import new_files
from services.gateway.search.stores import new_store
from services.gateway.store.changes import Operation

BodyT = TypeVar("BodyT", bound=BaseModel)
PARAM = "tool_resources.file_search.vector_stores"


async def with_new_stores(services: OpenAIServices, call: Call, body: BodyT) -> tuple[BodyT, list[Operation]]:
    """Return the body with the ids of the vector stores that it asks for, and what makes them.

    Call ``services.files.ingestions.wake()`` once they are made.

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
        kept, making = await _made(services, call, wanted)
        ids.append(kept)
        operations += making
    named = resources.model_copy(update={"file_search": FileSearchResources(vector_store_ids=ids)})
    return body.model_copy(update={"tool_resources": named}), operations


async def _made(services: OpenAIServices, call: Call, wanted: NewVectorStore) -> tuple[str, list[Operation]]:
    kept, operations = await new_store(
        services.files.storage,
        call.exchange.project,
        call.exchange.created,
        {"metadata": wanted.metadata},
        new_files(wanted.file_ids, wanted.chunking_strategy),
    )
    return str(kept["id"]), operations
