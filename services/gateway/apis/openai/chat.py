"""``POST /v1/chat/completions``."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from services.errors import InvalidRequest
from services.gateway.answering.answers import AnswerPlan
from services.gateway.apis.openai.chat_form import ChatForm
from services.gateway.apis.openai.sampling import (
    check_stream_options,
    choice_count,
    room_for_output,
    sampling_params,
    wants_usage,
)
from services.gateway.apis.openai.schemas import ChatBody, ContentPart, Message
from services.gateway.apis.openai.service import Answering, OpenAIServices, answer_head
from services.gateway.apis.openai.sse import ChunkStream
from services.gateway.structured.answer_form import AnswerForm, answer_form
from services.gateway.web.validation import parse_body


class ChatCompletions:
    """Answers conversations."""

    def __init__(self, services: OpenAIServices) -> None:
        self._services = services
        self._answering = Answering(services)

    async def create(self, request: Request) -> Response:
        """Answer one conversation, whole or as a stream."""
        exchange = await self._services.entrance.exchange(request)
        body = parse_body(ChatBody, await self._services.entrance.body(request))
        _check_supported(body)
        self._services.answers.require_room(exchange.project)
        with exchange.timeline.step("encode"):
            plan = await self._plan(body)
        head = answer_head(exchange, plan, "chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion")
        must_call = plan.calls is not None and plan.calls.is_required
        form = ChatForm(with_logprobs=bool(body.logprobs), must_call=must_call)
        if body.stream:
            return self._answering.stream(
                exchange, plan, ChunkStream(plan, head, form, include_usage=wants_usage(body))
            )
        return await self._answering.whole(
            request, exchange, plan, lambda choices: {**head, "choices": form.choices(choices)}
        )

    async def _plan(self, body: ChatBody) -> AnswerPlan:
        limits = self._services.limits
        num_choices = choice_count(body, 1, limits.max_choices)
        logprobs = _num_logprobs(body)
        messages = plain_messages(body.messages)
        form = _form(body)
        model = await self._services.catalog.resolve(body.model)
        # The ranges are checked before the text is touched, with the largest output that could be meant.
        wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        grammar = form.grammar(model)
        sampled = partial(sampling_params, body, model.card, logprobs=logprobs, grammar=grammar)
        sampled(max_tokens=wanted or model.card.context_length)
        prompt = await self._services.threads.run(lambda: model.encode_conversation(messages, form.definitions))
        max_tokens = room_for_output(model.card, [prompt], wanted, default=limits.default_max_tokens, param="messages")
        sampling = sampled(max_tokens=max_tokens)
        return AnswerPlan(
            model,
            (tuple(prompt),),
            sampling,
            num_choices,
            stops=tuple(body.stop or ()),
            priority=body.priority or 0,
            grammar_param="response_format" if form.tools is None else "tools",
            calls=form.calls(model),
        )


def _form(body: ChatBody) -> AnswerForm:
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    wanted = None if body.response_format is None else body.response_format.model_dump(by_alias=True)
    return answer_form(tools, body.tool_choice, body.parallel_tool_calls, wanted)


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as templates expect them: text content, no developer role.

    Raises:
        InvalidRequest: a message lacks what its role needs, or holds what the model cannot read.
    """
    return [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _plain(message: Message, path: str) -> dict[str, Any]:
    values = message.model_dump(exclude_none=True)
    if message.role == "developer":
        values["role"] = "system"
    if message.role == "tool" and message.tool_call_id is None:
        raise InvalidRequest(f"Missing required parameter: '{path}.tool_call_id'.", param=f"{path}.tool_call_id")
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise InvalidRequest(f"Missing required parameter: '{path}.content'.", param=f"{path}.content")
    if isinstance(message.content, list):
        values["content"] = "".join(
            _part_text(part, f"{path}.content[{index}]") for index, part in enumerate(message.content)
        )
    return values


def _part_text(part: ContentPart, path: str) -> str:
    if part.type != "text":
        raise InvalidRequest(f"This model reads text only, not content of type '{part.type}'.", param=f"{path}.type")
    if part.text is None:
        raise InvalidRequest(f"Missing required parameter: '{path}.text'.", param=f"{path}.text")
    return part.text


def _check_supported(body: ChatBody) -> None:
    check_stream_options(body)
    if body.functions:
        raise InvalidRequest("Functions are not supported: use 'tools'.", param="functions")
    if body.modalities is not None and body.modalities != ["text"]:
        raise InvalidRequest("This model writes text only.", param="modalities")


def _num_logprobs(body: ChatBody) -> int | None:
    if not body.logprobs:
        if body.top_logprobs:
            raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
        return None
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= 20:
        raise InvalidRequest("'top_logprobs' must be between 0 and 20.", param="top_logprobs")
    return body.top_logprobs or 0
