"""Objects as the API shows them, validated like the request bodies that make them; what they refer to is not read."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag

from services.errors import InvalidRequest
from services.gateway.apis.openai.assistants.assistants import CreateAssistant, ReasoningEffort
from services.gateway.apis.openai.assistants.messages import (
    MAX_ATTACHMENTS,
    MAX_PARTS,
    Attachment,
    ImageFilePart,
    ImageUrlPart,
    Text,
)
from services.gateway.apis.openai.assistants.run_bodies import RunFields
from services.gateway.apis.openai.assistants.threads import ModifyThread
from services.gateway.apis.openai.assistants.tools import MAX_TOOLS, Id
from services.gateway.apis.openai.files.files import Purpose
from services.gateway.apis.openai.objects import Metadata
from services.gateway.apis.openai.responses.bodies import CreateResponse
from services.gateway.apis.openai.schemas import MAX_MESSAGES
from services.gateway.apis.openai.vector_stores.schemas import (
    MAX_NAME_LENGTH,
    Attributes,
    AutoStrategy,
    Expiry,
    StaticStrategy,
)
from services.gateway.files.forms import MAX_NAME_LENGTH as MAX_FILE_NAME_LENGTH
from services.gateway.store.kinds import VECTOR_STORE, Kind, Ref, is_name
from services.gateway.web.problems import wrong_prefix
from services.gateway.web.validation import ClosedBody, Json, type_tag

MAX_SECONDS = 2**40

Seconds = Annotated[int, Field(ge=0, le=MAX_SECONDS)]
"""Since the Unix epoch."""
End = Literal["completed", "incomplete", "failed", "expired", "cancelled"]
Values = dict[str, Json]


def named(kind: Kind, object_id: str, param: str = "id") -> Ref:
    """Return the object of an id that somebody else chose.

    Raises:
        InvalidRequest: objects of this kind cannot have it; ``param`` names the field.
    """
    if not object_id.startswith(kind.prefix):
        problem = wrong_prefix(param, object_id, kind.prefix)
        raise InvalidRequest(problem.message, param=param, code=problem.code)
    # The names of files in vector stores are split at the first dot.
    if not is_name(object_id) or (kind is VECTOR_STORE and "." in object_id):
        raise InvalidRequest(
            f"Invalid '{param}': an id has 1 to 128 letters, digits, '_' and '-', and '.' unless it is of a vector "
            "store.",
            param=param,
        )
    return kind.ref(object_id)


class ShownAssistant(CreateAssistant):
    """An assistant."""

    id: Id
    object: Literal["assistant"]
    created_at: Seconds


class ShownThread(ModifyThread):
    """A thread."""

    id: Id
    object: Literal["thread"]
    created_at: Seconds


class CitedFile(ClosedBody):
    """The file of a citation."""

    file_id: Id
    quote: Text | None = None


class Citation(ClosedBody):
    """A passage of a file that a text cites."""

    type: Literal["file_citation"]
    text: Text
    start_index: int = Field(ge=0)
    end_index: int = Field(ge=0)
    file_citation: CitedFile


class FilePath(ClosedBody):
    """A file that a text names."""

    type: Literal["file_path"]
    text: Text
    start_index: int = Field(ge=0)
    end_index: int = Field(ge=0)
    file_path: CitedFile


Annotation = Annotated[
    Annotated[Citation, Tag("~file_citation")] | Annotated[FilePath, Tag("~file_path")], Discriminator(type_tag)
]


class AnnotatedText(ClosedBody):
    """What a part of text says."""

    value: Text
    annotations: list[Annotation] = Field(default_factory=list, max_length=MAX_PARTS)


class ShownTextPart(ClosedBody):
    """Text."""

    type: Literal["text"]
    text: AnnotatedText


class RefusalPart(ClosedBody):
    """What an assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: Text


ShownPart = Annotated[
    Annotated[ShownTextPart, Tag("~text")]
    | Annotated[RefusalPart, Tag("~refusal")]
    | Annotated[ImageUrlPart, Tag("~image_url")]
    | Annotated[ImageFilePart, Tag("~image_file")],
    Discriminator(type_tag),
]


class ShownMessage(ClosedBody):
    """A message that is not being written any more."""

    id: Id
    object: Literal["thread.message"]
    created_at: Seconds
    thread_id: Id
    role: Literal["user", "assistant"]
    content: list[ShownPart] = Field(max_length=MAX_PARTS)
    status: Literal["completed", "incomplete"] | None = None
    incomplete_details: Values | None = None
    completed_at: Seconds | None = None
    incomplete_at: Seconds | None = None
    assistant_id: Id | None = None
    run_id: Id | None = None
    attachments: list[Attachment] | None = Field(default=None, max_length=MAX_ATTACHMENTS)
    metadata: Metadata | None = None


class ShownRun(RunFields):
    """A run that has ended."""

    id: Id
    object: Literal["thread.run"]
    created_at: Seconds
    thread_id: Id
    status: End
    started_at: Seconds | None = None
    expires_at: Seconds | None = None
    cancelled_at: Seconds | None = None
    failed_at: Seconds | None = None
    completed_at: Seconds | None = None
    required_action: None = None
    last_error: Values | None = None
    incomplete_details: Values | None = None
    usage: Values | None = None
    reasoning_effort: ReasoningEffort | None = None


class CreatedMessage(ClosedBody):
    """A message that a step wrote."""

    message_id: Id


class MessageDetails(ClosedBody):
    """A step that wrote a message."""

    type: Literal["message_creation"]
    message_creation: CreatedMessage


class ShownCall(ClosedBody):
    """A call of a tool, with what came of it."""

    model_config = ConfigDict(extra="allow")

    id: Id
    type: Literal["function", "file_search", "code_interpreter"]
    function: Values | None = None
    file_search: Values | None = None
    code_interpreter: Values | None = None


class CallDetails(ClosedBody):
    """A step that called tools."""

    type: Literal["tool_calls"]
    tool_calls: list[ShownCall] = Field(max_length=MAX_TOOLS)


class ShownStep(ClosedBody):
    """A step of a run that has ended."""

    id: Id
    object: Literal["thread.run.step"]
    created_at: Seconds
    run_id: Id
    thread_id: Id
    assistant_id: Id | None = None
    type: Literal["message_creation", "tool_calls"]
    status: End
    cancelled_at: Seconds | None = None
    completed_at: Seconds | None = None
    expired_at: Seconds | None = None
    failed_at: Seconds | None = None
    expires_at: Seconds | None = None
    last_error: Values | None = None
    step_details: Annotated[
        Annotated[MessageDetails, Tag("~message_creation")] | Annotated[CallDetails, Tag("~tool_calls")],
        Discriminator(type_tag),
    ]
    metadata: Metadata | None = None
    usage: Values | None = None


class ShownFile(ClosedBody):
    """A file."""

    id: Id
    object: Literal["file"]
    bytes: int = Field(ge=0)
    created_at: Seconds
    filename: str = Field(min_length=1, max_length=MAX_FILE_NAME_LENGTH)
    purpose: Purpose | Literal["assistants_output", "batch_output", "fine-tune-results"]
    status: str | None = None
    status_details: str | None = None
    expires_at: Seconds | None = None


class ShownStore(ClosedBody):
    """A vector store; counts and sizes are those of its files."""

    id: Id
    object: Literal["vector_store"]
    created_at: Seconds
    name: str | None = Field(default=None, max_length=MAX_NAME_LENGTH)
    description: str | None = Field(default=None, max_length=MAX_NAME_LENGTH)
    expires_after: Expiry | None = None
    expires_at: Seconds | None = None
    last_active_at: Seconds | None = None
    metadata: Metadata | None = None
    status: Literal["expired", "in_progress", "completed"] | None = None
    usage_bytes: int | None = None
    file_counts: Values | None = None


class ShownBatch(ClosedBody):
    """Files that were added to a vector store together."""

    id: Id
    object: Literal["vector_store.files_batch", "vector_store.file_batch"]
    created_at: Seconds
    vector_store_id: Id
    status: Literal["in_progress", "completed", "cancelled", "failed"]
    file_counts: Values | None = None


class OtherStrategy(ClosedBody):
    """How OpenAI cut files before it told how."""

    type: Literal["other"]


class ShownStoredFile(ClosedBody):
    """A file of a vector store; what was made of it is made again."""

    id: Id
    object: Literal["vector_store.file"]
    created_at: Seconds
    vector_store_id: Id
    chunking_strategy: (
        Annotated[
            Annotated[AutoStrategy, Tag("~auto")]
            | Annotated[StaticStrategy, Tag("~static")]
            | Annotated[OtherStrategy, Tag("~other")],
            Discriminator(type_tag),
        ]
        | None
    ) = None
    attributes: Attributes | None = None
    status: Literal["in_progress", "completed", "cancelled", "failed"] | None = None
    last_error: Values | None = None
    usage_bytes: int | None = None


class ShownConversation(ClosedBody):
    """A conversation, which is a thread."""

    id: Id
    object: Literal["conversation"]
    created_at: Seconds
    metadata: Metadata | None = None


class ShownResponse(CreateResponse):
    """A stored response that has ended."""

    id: Id
    object: Literal["response"]
    created_at: Seconds
    status: Literal["completed", "incomplete", "failed", "cancelled"]
    completed_at: Seconds | None = None
    error: Values | None = None
    incomplete_details: Values | None = None
    output: list[Values] = Field(max_length=MAX_MESSAGES)
    usage: Values | None = None


def _texts(values: dict[str, Any]) -> dict[str, Any]:
    """Return a message of a conversation with the model; its role and its content are texts."""
    if values.get("role") not in ("assistant", "tool") or not isinstance(values.get("content"), str):
        raise ValueError("expected a 'role' of 'assistant' or 'tool' and a text as 'content'")
    return values


class KeptOfMessage(ClosedBody):
    """What a run did before an answer, which later runs read; ``sources`` are files by the marks of their passages."""

    lead: list[Annotated[Values, AfterValidator(_texts)]] = Field(default_factory=list)
    sources: dict[str, str] = Field(default_factory=dict)


class KeptOfStoredFile(ClosedBody):
    """The batch that a file of a vector store was added with."""

    batch: Id | None = None
