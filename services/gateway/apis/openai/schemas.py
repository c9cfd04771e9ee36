"""Request bodies of the OpenAI API, with vLLM's extensions."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from services.gateway.web.validation import TAG_MARK, Body, Json

MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_PRIORITY = 2**53
MAX_NAME_LENGTH = 512
MAX_MESSAGES = 8192
MAX_PARTS = 1024
MAX_TOOLS = 128
MAX_DESCRIPTION_LENGTH = 16 * 2**10
MAX_BIASES = 1024
MAX_STOP_TOKENS = 1024
_TEXT = f"{TAG_MARK}text"
_LIST = f"{TAG_MARK}list"


def _text_or_list(value: Any) -> str | None:
    if isinstance(value, str):
        return _TEXT
    return _LIST if isinstance(value, list) else None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StreamOptions(Body):
    """``stream_options``."""

    include_usage: bool | None = None


class SamplingFields(Body):
    """What chat and text completions have in common."""

    model: str = Field(max_length=MAX_NAME_LENGTH)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(max_length=MAX_STOP_LENGTH)]],
            BeforeValidator(_as_list),
            Field(max_length=MAX_STOPS),
        ]
        | None
    ) = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=MAX_BIASES)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(default=None, ge=0)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = Field(default=None, max_length=MAX_STOP_TOKENS)
    priority: int | None = Field(default=None, ge=-MAX_PRIORITY, le=MAX_PRIORITY)


class ContentPart(Body):
    """One part of a message's content."""

    type: str
    text: str | None = None


Content = Annotated[
    Annotated[str, Tag(_TEXT)] | Annotated[list[ContentPart], Field(max_length=MAX_PARTS), Tag(_LIST)],
    Discriminator(
        _text_or_list,
        custom_error_type="content_type",
        custom_error_message="Expected a string or an array of content parts",
    ),
]


class FunctionCall(Body):
    """The function that a tool call names; ``arguments`` is JSON in a string."""

    name: str = Field(max_length=MAX_NAME_LENGTH)
    arguments: str


class ToolCall(Body):
    """A tool call that the model made earlier."""

    id: str = Field(max_length=MAX_NAME_LENGTH)
    type: Literal["function"]
    function: FunctionCall


class FunctionBody(Body):
    """The function of a tool."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION_LENGTH)
    parameters: dict[str, Json] | None = None
    strict: bool | None = None


class ToolBody(Body):
    """One entry of ``tools``."""

    type: Literal["function"]
    function: FunctionBody


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = Field(default=None, max_length=MAX_NAME_LENGTH)
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_call_id: str | None = Field(default=None, max_length=MAX_NAME_LENGTH)
    reasoning_content: str | None = None


class JsonSchema(Body):
    """``response_format.json_schema``."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    body: dict[str, Json] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """``response_format``."""

    type: str
    json_schema: JsonSchema | None = None


class ChatBody(SamplingFields):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolBody] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Json = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Json]] | None = Field(default=None, max_length=MAX_TOOLS)
    modalities: list[str] | None = Field(default=None, max_length=8)


class CompletionBody(SamplingFields):
    """Body of ``POST /v1/completions``."""

    prompt: Json = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
