"""Request bodies of responses, and the response that they ask for."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from services.errors import InvalidRequest
from services.gateway.apis.openai.objects import Metadata
from services.gateway.apis.openai.responses.items import Item, Name, Text, text_or_list
from services.gateway.apis.openai.schemas import MAX_DESCRIPTION_LENGTH, MAX_MESSAGES, MAX_NAME_LENGTH, MAX_TOOLS
from services.gateway.models import ModelCatalog
from services.gateway.search.filter_json import filter_of
from services.gateway.store.kinds import Ref
from services.gateway.web.validation import TAG_MARK, Body, Json, type_tag

MIN_OUTPUT_TOKENS = 16
MAX_INSTRUCTIONS_LENGTH = 2**20
MAX_STORES = 16


class FunctionTool(Body):
    """Calls a function of the client's."""

    type: Literal["function"]
    name: str = Field(max_length=64, pattern="^[a-zA-Z0-9_-]+$")
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION_LENGTH)
    parameters: dict[str, Json] | None = None
    strict: bool | None = None


class RankingOptions(Body):
    """How results are ranked."""

    ranker: Literal["auto", "none", "default-2024-08-21", "default-2024-11-15"] | None = None
    score_threshold: float | None = Field(default=None, ge=0, le=1)


class FileSearchTool(Body):
    """Searches the files of vector stores."""

    type: Literal["file_search"]
    vector_store_ids: list[Name] = Field(min_length=1, max_length=MAX_STORES)
    max_num_results: int | None = Field(default=None, ge=1, le=50)
    ranking_options: RankingOptions | None = None
    filters: dict[str, Json] | None = None


Tool = Annotated[
    Annotated[FunctionTool, Tag("~function")] | Annotated[FileSearchTool, Tag("~file_search")],
    Discriminator(type_tag),
]


class TextFormat(Body):
    """Plain text."""

    type: Literal["text"]


class JsonFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Body):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    json_schema: dict[str, Json] = Field(alias="schema")
    strict: bool | None = None
    description: Text | None = None


Format = Annotated[
    Annotated[TextFormat, Tag("~text")]
    | Annotated[JsonFormat, Tag("~json_object")]
    | Annotated[SchemaFormat, Tag("~json_schema")],
    Discriminator(type_tag),
]


class TextOptions(Body):
    """The form of the answer."""

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ToolChoice(Body):
    """A tool that shall be used, or those that may be."""

    type: Literal["function", "file_search", "allowed_tools"]
    name: Name | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Json]] | None = Field(default=None, max_length=MAX_TOOLS)


def _choice_tag(value: Any) -> str | None:
    return f"{TAG_MARK}name" if isinstance(value, str) else (f"{TAG_MARK}object" if type_tag(value) else None)


class ConversationName(Body):
    """A conversation."""

    id: Name


def _conversation_tag(value: Any) -> str | None:
    return f"{TAG_MARK}name" if isinstance(value, str) else f"{TAG_MARK}object"


class ContextFields(Body):
    """What a response goes on from."""

    model: str | None = Field(default=None, max_length=MAX_NAME_LENGTH)
    input: (
        Annotated[
            Annotated[Text, Tag("~text")] | Annotated[list[Item], Field(max_length=MAX_MESSAGES), Tag("~list")],
            Discriminator(
                text_or_list, custom_error_type="content_type", custom_error_message="Expected a string or an array"
            ),
        ]
        | None
    ) = None
    instructions: Annotated[str, Field(max_length=MAX_INSTRUCTIONS_LENGTH)] | None = None
    previous_response_id: Name | None = None


class ResponseFields(ContextFields):
    """What decides the prompt of a response."""

    conversation: (
        Annotated[
            Annotated[Name, Tag("~name")] | Annotated[ConversationName, Tag("~object")],
            Discriminator(_conversation_tag),
        ]
        | None
    ) = None
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("~name")] | Annotated[ToolChoice, Tag("~object")],
            Discriminator(_choice_tag),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: dict[str, Json] | None = None

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation that is to be continued."""
        return self.conversation.id if isinstance(self.conversation, ConversationName) else self.conversation


class CreateResponse(ResponseFields):
    """Body of ``POST /v1/responses``."""

    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    include: list[Name] | None = Field(default=None, max_length=MAX_TOOLS)
    max_output_tokens: int | None = Field(default=None, ge=MIN_OUTPUT_TOKENS)
    max_tool_calls: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    metadata: Metadata | None = None
    prompt: dict[str, Json] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=MAX_NAME_LENGTH)] | None = None
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    service_tier: Annotated[str, AfterValidator(str.lower), Field(max_length=64)] | None = None
    user: Annotated[str, Field(max_length=MAX_NAME_LENGTH)] | None = None


class CompactResponse(ContextFields):
    """Body of ``POST /v1/responses/compact``."""

    prompt_cache_key: Annotated[str, Field(max_length=MAX_NAME_LENGTH)] | None = None
    service_tier: Annotated[str, AfterValidator(str.lower), Field(max_length=64)] | None = None


async def model_of(body: ContextFields, catalog: ModelCatalog) -> str:
    """Return the model that is named; tests written for a mock name none."""
    return (await catalog.listed())[0].name if body.model is None else body.model


def check_compaction(body: CompactResponse, *, is_lenient: bool) -> None:
    """Refuse a compaction of nothing, or by no model.

    Raises:
        InvalidRequest: it is one; ``param`` names the field that is missing.
    """
    if is_lenient:
        return
    _require_model(body)
    if not body.input and body.previous_response_id is None:
        raise _missing("input", "One of 'input' or 'previous_response_id' must be provided: what is to be compacted.")


def check_fields(body: ResponseFields, *, is_lenient: bool) -> None:
    """Refuse a body whose fields contradict each other.

    Raises:
        InvalidRequest: they do; ``param`` names one of them.
    """
    if is_lenient:
        return
    _require_model(body)
    for place, tool in enumerate(body.tools or ()):
        if isinstance(tool, FileSearchTool) and tool.filters:
            filter_of(tool.filters, f"tools[{place}].filters")
    if body.previous_response_id is not None and body.conversation is not None:
        raise InvalidRequest(
            "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. Ensure you are only providing "
            "one of: 'previous_response_id' or 'conversation'.",
            code="mutually_exclusive_parameters",
        )
    if body.input is None and body.previous_response_id is None and body.conversation is None:
        raise _missing("input", "One of 'input', 'previous_response_id', 'prompt' or 'conversation' must be provided.")


def check_creation(body: CreateResponse, *, is_lenient: bool) -> None:
    """Refuse a response that cannot be made here.

    Raises:
        InvalidRequest: fields contradict each other, or nothing here can do what they ask; ``param`` names one of them.
    """
    check_fields(body, is_lenient=is_lenient)
    if body.background and body.store is False:
        raise InvalidRequest("background can only be used when `store` is true", param="background")
    if body.top_logprobs or "message.output_text.logprobs" in (body.include or ()):
        raise InvalidRequest(
            "Log probabilities are not part of responses here; use /v1/chat/completions.", param="top_logprobs"
        )
    if body.prompt is not None and not is_lenient:
        raise InvalidRequest(
            "Prompts that are kept by OpenAI are not available here; send 'instructions' and 'input'.", param="prompt"
        )


def prompt_json(ref: Ref, model: str, body: ResponseFields) -> Mapping[str, Any]:
    """Return the part of a response that decides its prompt, with all that ``TurnRequest`` needs."""
    wanted = body.text or TextOptions()
    choice = body.tool_choice
    return {
        "id": ref.id,
        "model": model,
        "instructions": body.instructions,
        "previous_response_id": None if body.conversation is not None else body.previous_response_id,
        "conversation": None if body.conversation_id is None else {"id": body.conversation_id},
        "tools": [_tool_json(tool) for tool in body.tools or ()],
        "tool_choice": choice.model_dump(exclude_none=True) if isinstance(choice, ToolChoice) else choice or "auto",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": {
            "format": (wanted.format or TextFormat(type="text")).model_dump(by_alias=True, exclude_none=True),
            "verbosity": wanted.verbosity or "medium",
        },
        "truncation": body.truncation or "disabled",
        "max_output_tokens": None,
        "max_tool_calls": None,
        "temperature": None,
        "top_p": None,
    }


def response_json(ref: Ref, model: str, body: CreateResponse, created: int) -> Mapping[str, Any]:
    """Return a new response as the API shows it; ``usage`` comes with its end."""
    is_background = bool(body.background)
    reasoning = body.reasoning or {}
    return {
        **prompt_json(ref, model, body),
        "object": "response",
        "created_at": created,
        "status": "queued" if is_background else "in_progress",
        "background": is_background,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "output": [],
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "store": body.store is not False,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "top_logprobs": 0,
        "service_tier": "default",
        **({} if body.user is None else {"user": body.user}),
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
        "metadata": body.metadata or {},
    }


def _tool_json(tool: Tool) -> Mapping[str, Any]:
    if isinstance(tool, FileSearchTool):
        return tool.model_dump(exclude_none=True)
    shown = {"type": "function", "name": tool.name, "description": tool.description}
    # Not by default, as OpenAI has it: many schemas that clients have anyway use keywords that cannot be enforced.
    return {**shown, "parameters": tool.parameters, "strict": bool(tool.strict)}


def _require_model(body: ContextFields) -> None:
    if body.model is None:
        raise _missing("model", "Missing required parameter: 'model'.")


def _missing(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="missing_required_parameter")
