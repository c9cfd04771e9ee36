"""Request bodies of vector stores."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from services.errors import InvalidRequest
from services.gateway.apis.openai.objects import Metadata
from services.gateway.search.chunks import DEFAULT_OVERLAP, DEFAULT_SIZE, Strategy
from services.gateway.search.stores import NewStoredFile
from services.gateway.web.problems import above_maximum
from services.gateway.web.validation import ClosedBody, Json, type_tag

MAX_STORE_FILES = 500
MAX_BATCH_FILES = 2000
MAX_ID_LENGTH = 256
MAX_NAME_LENGTH = 512

FileId = Annotated[str, Field(max_length=MAX_ID_LENGTH)]


def _attribute(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool):
        raise ValueError("expected a string, a number or a boolean")
    if isinstance(value, str) and len(value) > 512:
        raise ValueError("string too long; at most 512 characters")
    return value


Attributes = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[Any, AfterValidator(_attribute)]], Field(max_length=16)
]
"""Up to 16 pairs that searches can be filtered by."""


class AutoStrategy(ClosedBody):
    """Chunks of 800 tokens that overlap by 400."""

    type: Literal["auto"]


class StaticSizes(ClosedBody):
    """Sizes in tokens."""

    max_chunk_size_tokens: int = Field(default=DEFAULT_SIZE, ge=100, le=4096)
    chunk_overlap_tokens: int = Field(default=DEFAULT_OVERLAP, ge=0)


class StaticStrategy(ClosedBody):
    """Chunks of a chosen size."""

    type: Literal["static"]
    static: StaticSizes


ChunkingStrategy = Annotated[
    Annotated[AutoStrategy, Tag("~auto")] | Annotated[StaticStrategy, Tag("~static")], Discriminator(type_tag)
]


class Expiry(ClosedBody):
    """When a vector store ends that is not used."""

    anchor: Literal["last_active_at"]
    days: int = Field(ge=1, le=365)


class ModifyStore(ClosedBody):
    """Body of ``POST /v1/vector_stores/{vector_store_id}``: only what is named changes, null resets it."""

    name: str | None = Field(default=None, max_length=MAX_NAME_LENGTH)
    expires_after: Expiry | None = None
    metadata: Metadata | None = None


class CreateStore(ModifyStore):
    """Body of ``POST /v1/vector_stores``."""

    description: str | None = Field(default=None, max_length=MAX_NAME_LENGTH)
    file_ids: list[FileId] | None = Field(default=None, max_length=MAX_STORE_FILES)
    chunking_strategy: ChunkingStrategy | None = None


class AddFile(ClosedBody):
    """Body of ``POST /v1/vector_stores/{vector_store_id}/files``."""

    file_id: FileId
    chunking_strategy: ChunkingStrategy | None = None
    attributes: Attributes | None = None


class ModifyFile(ClosedBody):
    """Body of ``POST /v1/vector_stores/{vector_store_id}/files/{file_id}``."""

    attributes: Attributes | None


class CreateBatch(ClosedBody):
    """Body of ``POST /v1/vector_stores/{vector_store_id}/file_batches``."""

    file_ids: list[FileId] | None = Field(default=None, min_length=1, max_length=MAX_BATCH_FILES)
    files: list[AddFile] | None = Field(default=None, min_length=1, max_length=MAX_BATCH_FILES)
    chunking_strategy: ChunkingStrategy | None = None
    attributes: Attributes | None = None


class RankingOptions(ClosedBody):
    """How results are ranked: by likeness, whichever ranker is named."""

    ranker: Literal["none", "auto", "default-2024-11-15"] | None = None
    score_threshold: float | None = Field(default=None, ge=0, le=1)


class SearchBody(ClosedBody):
    """Body of ``POST /v1/vector_stores/{vector_store_id}/search``."""

    query: Json
    rewrite_query: bool | None = None
    max_num_results: int | None = Field(default=None, ge=1, le=50)
    filters: Json = None
    ranking_options: RankingOptions | None = None


def strategy_of(strategy: AutoStrategy | StaticStrategy | None, path: str = "chunking_strategy") -> Strategy:
    """Return how a text is to be cut.

    Raises:
        InvalidRequest: chunks would overlap by more than half.
    """
    if not isinstance(strategy, StaticStrategy):
        return Strategy()
    sizes = strategy.static
    most = sizes.max_chunk_size_tokens // 2
    if sizes.chunk_overlap_tokens > most:
        param = f"{path}.static.chunk_overlap_tokens"
        problem = above_maximum(param, sizes.chunk_overlap_tokens, most)
        raise InvalidRequest(problem.message, param=param, code=problem.code)
    return Strategy(sizes.max_chunk_size_tokens, sizes.chunk_overlap_tokens)


def new_files(
    file_ids: list[str], strategy: AutoStrategy | StaticStrategy | None, attributes: dict[str, Any] | None = None
) -> list[NewStoredFile]:
    """Return files that are all added in the same way, each once."""
    cut = strategy_of(strategy)
    return [NewStoredFile(file_id, cut, attributes or {}) for file_id in dict.fromkeys(file_ids)]


def added_file(body: AddFile, path: str = "") -> NewStoredFile:
    """Return a file that is added in its own way."""
    strategy = strategy_of(body.chunking_strategy, f"{path}chunking_strategy")
    return NewStoredFile(body.file_id, strategy, body.attributes or {})
