"""Request bodies of runs, and the run that they ask for."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from services.errors import InvalidRequest
from services.gateway.apis.openai.assistants.assistants import MAX_INSTRUCTIONS_LENGTH, ReasoningEffort
from services.gateway.apis.openai.assistants.messages import CreateMessage
from services.gateway.apis.openai.assistants.threads import CreateThread
from services.gateway.apis.openai.assistants.tools import Id, ResponseFormat, Tool, ToolResources
from services.gateway.apis.openai.objects import Metadata
from services.gateway.apis.openai.schemas import MAX_MESSAGES, MAX_NAME_LENGTH
from services.gateway.store.kinds import Ref
from services.gateway.web.validation import ClosedBody, type_tag

MIN_TOKEN_LIMIT = 256
MAX_RUN_TOOLS = 20
MAX_OUTPUTS = 128
MAX_OUTPUT_LENGTH = 512 * 2**10


class TruncationStrategy(ClosedBody):
    """Which messages of the thread the model reads."""

    type: Literal["auto", "last_messages"]
    last_messages: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "TruncationStrategy":
        if self.type == "last_messages" and self.last_messages is None:
            raise ValueError("the type 'last_messages' needs the number of messages in 'last_messages'")
        return self


class NamedFunction(ClosedBody):
    """A function that shall be called."""

    name: str = Field(max_length=64)


class NamedToolChoice(ClosedBody):
    """A tool that shall be used."""

    type: Literal["function", "code_interpreter", "file_search"]
    function: NamedFunction | None = None


def _choice_tag(value: Any) -> str | None:
    return "~name" if isinstance(value, str) else ("~object" if type_tag(value) else None)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~name")] | Annotated[NamedToolChoice, Tag("~object")],
    Discriminator(_choice_tag),
]


class RunFields(ClosedBody):
    """What both ways to make a run have in common."""

    assistant_id: Id
    model: str | None = Field(default=None, max_length=MAX_NAME_LENGTH)
    instructions: str | None = Field(default=None, max_length=MAX_INSTRUCTIONS_LENGTH)
    tools: Annotated[list[Tool], Field(max_length=MAX_RUN_TOOLS)] | None = None
    metadata: Metadata | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stream: bool | None = None
    max_prompt_tokens: int | None = Field(default=None, ge=MIN_TOKEN_LIMIT)
    max_completion_tokens: int | None = Field(default=None, ge=MIN_TOKEN_LIMIT)
    truncation_strategy: TruncationStrategy | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None


class CreateRun(RunFields):
    """Body of ``POST /v1/threads/{thread_id}/runs``."""

    additional_instructions: str | None = Field(default=None, max_length=MAX_INSTRUCTIONS_LENGTH)
    additional_messages: list[CreateMessage] | None = Field(default=None, max_length=MAX_MESSAGES)
    reasoning_effort: ReasoningEffort | None = None
    if_active: Literal["refuse", "queue"] | None = None
    """Our own: whether the run waits for its turn if the thread has an active one."""


class CreateThreadAndRun(RunFields):
    """Body of ``POST /v1/threads/runs``."""

    thread: CreateThread | None = None
    tool_resources: ToolResources | None = None


class ModifyRun(ClosedBody):
    """Body of ``POST /v1/threads/{thread_id}/runs/{run_id}``."""

    metadata: Metadata | None = None


class ToolOutput(ClosedBody):
    """What a function returned."""

    tool_call_id: Id | None = None
    output: str | None = Field(default=None, max_length=MAX_OUTPUT_LENGTH)


class SubmitToolOutputs(ClosedBody):
    """Body of ``POST /v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs``."""

    tool_outputs: list[ToolOutput] = Field(max_length=MAX_OUTPUTS)
    stream: bool | None = None


def outputs_by_call(run: Mapping[str, Any], body: SubmitToolOutputs, *, is_lenient: bool) -> list[tuple[str, str]]:
    """Return call ids and outputs; a lenient reading gives every call of the run an output.

    Raises:
        InvalidRequest: an output does not say which call it is of.
    """
    if is_lenient and run["status"] == "requires_action":
        calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
        return [(call["id"], "".join(output.output or "" for output in body.tool_outputs)) for call in calls]
    for index, output in enumerate(body.tool_outputs):
        if output.tool_call_id is None:
            param = f"tool_outputs[{index}].tool_call_id"
            message = f"Missing required parameter: '{param}'."
            raise InvalidRequest(message, param=param, code="missing_required_parameter")
    return [(output.tool_call_id or "", output.output or "") for output in body.tool_outputs]


def run_json(
    ref: Ref,
    thread: Ref,
    assistant: Mapping[str, Any],
    body: RunFields,
    *,
    created: int,
    expires: int,
) -> Mapping[str, Any]:
    """Return a new run as the API shows it: what the body leaves open is what the assistant has."""
    given = body.model_dump(exclude_none=True, by_alias=True)
    return {
        "id": ref.id,
        "object": "thread.run",
        "created_at": created,
        "assistant_id": assistant["id"],
        "thread_id": thread.id,
        "status": "queued",
        "started_at": None,
        "expires_at": expires,
        "cancelled_at": None,
        "failed_at": None,
        "completed_at": None,
        "required_action": None,
        "last_error": None,
        "incomplete_details": None,
        "model": body.model or assistant["model"],
        "instructions": _instructions(assistant, body),
        "tools": given.get("tools", assistant["tools"]),
        "metadata": body.metadata or {},
        "usage": None,
        "temperature": given.get("temperature", assistant["temperature"]),
        "top_p": given.get("top_p", assistant["top_p"]),
        "max_prompt_tokens": body.max_prompt_tokens,
        "max_completion_tokens": body.max_completion_tokens,
        "truncation_strategy": _truncation(body),
        "response_format": given.get("response_format", assistant["response_format"]),
        "tool_choice": given.get("tool_choice", "auto"),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
    }


def _instructions(assistant: Mapping[str, Any], body: RunFields) -> str:
    """Return the instructions; always a string, as clients read no null there."""
    own = assistant["instructions"] if body.instructions is None else body.instructions
    further = body.additional_instructions if isinstance(body, CreateRun) else None
    return "\n".join(text for text in (own, further) if text)


def _truncation(body: RunFields) -> Mapping[str, Any]:
    strategy = body.truncation_strategy or TruncationStrategy(type="auto")
    return {"type": strategy.type, "last_messages": strategy.last_messages}
