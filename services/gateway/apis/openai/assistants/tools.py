"""Tools, their resources and response formats, as request bodies name them."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from services.errors import InternalError, InvalidRequest
from services.gateway.apis.openai.objects import Metadata
from services.gateway.apis.openai.vector_stores.schemas import ChunkingStrategy
from services.gateway.web.validation import ClosedBody, Json, type_tag

MAX_TOOLS = 128
MAX_ID_LENGTH = 256
Id = Annotated[str, Field(max_length=MAX_ID_LENGTH)]


class CodeInterpreterTool(ClosedBody):
    """Runs code."""

    type: Literal["code_interpreter"]


class RankingOptions(ClosedBody):
    """How results of a file search are ranked."""

    ranker: Literal["auto", "default_2024_08_21"] | None = None
    score_threshold: float = Field(ge=0, le=1)


class FileSearchOptions(ClosedBody):
    """Overrides of a file search."""

    max_num_results: int | None = Field(default=None, ge=1, le=50)
    ranking_options: RankingOptions | None = None


class FileSearchTool(ClosedBody):
    """Searches the files of vector stores."""

    type: Literal["file_search"]
    file_search: FileSearchOptions | None = None


class Function(ClosedBody):
    """A function of the client's that the model may call."""

    name: str = Field(max_length=64, pattern="^[a-zA-Z0-9_-]+$")
    description: str | None = Field(default=None, max_length=8192)
    parameters: dict[str, Json] | None = None
    strict: bool | None = None


class FunctionTool(ClosedBody):
    """Calls a function of the client's."""

    type: Literal["function"]
    function: Function


Tool = Annotated[
    Annotated[CodeInterpreterTool, Tag("~code_interpreter")]
    | Annotated[FileSearchTool, Tag("~file_search")]
    | Annotated[FunctionTool, Tag("~function")],
    Discriminator(type_tag),
]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


class JsonSchema(ClosedBody):
    """A schema that answers have to follow."""

    name: str = Field(max_length=64)
    description: str | None = None
    json_schema: dict[str, Json] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(ClosedBody):
    """Plain text."""

    type: Literal["text"]


class JsonFormat(ClosedBody):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(ClosedBody):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


def _format_tag(value: Any) -> str | None:
    return "~name" if isinstance(value, str) else type_tag(value)


ResponseFormat = Annotated[
    Annotated[Literal["auto"], Tag("~name")]
    | Annotated[TextFormat, Tag("~text")]
    | Annotated[JsonFormat, Tag("~json_object")]
    | Annotated[JsonSchemaFormat, Tag("~json_schema")],
    Discriminator(_format_tag),
]


class CodeInterpreterResources(ClosedBody):
    """Files that code may read."""

    file_ids: list[Id] = Field(default_factory=list, max_length=20)


class NewVectorStore(ClosedBody):
    """A vector store to be made with the object that uses it."""

    file_ids: list[Id] = Field(default_factory=list, max_length=10_000)
    chunking_strategy: ChunkingStrategy | None = None
    metadata: Metadata | None = None


class FileSearchResources(ClosedBody):
    """Vector stores to search."""

    vector_store_ids: list[Id] | None = Field(default=None, max_length=1)
    vector_stores: list[NewVectorStore] | None = Field(default=None, max_length=1)


class ToolResources(ClosedBody):
    """What tools work with."""

    code_interpreter: CodeInterpreterResources | None = None
    file_search: FileSearchResources | None = None


def resources_json(resources: ToolResources | None, *, is_lenient: bool) -> dict[str, Any]:
    """Return tool resources as objects show them.

    Raises:
        InvalidRequest: vector stores are named and asked for at once.
    """
    shown: dict[str, Any] = {}
    if resources is None:
        return shown
    if resources.code_interpreter is not None:
        shown["code_interpreter"] = {"file_ids": resources.code_interpreter.file_ids}
    if (search := resources.file_search) is not None:
        _check_vector_stores(search, is_lenient=is_lenient)
        shown["file_search"] = {"vector_store_ids": search.vector_store_ids or []}
    return shown


def _check_vector_stores(search: FileSearchResources, *, is_lenient: bool) -> None:
    param = "tool_resources.file_search.vector_stores"
    if search.vector_store_ids and search.vector_stores and not is_lenient:
        raise InvalidRequest("Only one of 'vector_store_ids' and 'vector_stores' may be given.", param=param)
    if search.vector_stores and not search.vector_store_ids:
        raise InternalError("Vector stores have to be made before the object that uses them is shown.")
