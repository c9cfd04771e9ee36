"""``POST /v1/completions``."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from services.errors import InvalidRequest
from services.gateway.answering.answers import AnswerPlan, ChoiceEnd
from services.gateway.answering.choice_output import OutputPiece
from services.gateway.apis.openai.collected import CollectedChoice
from services.gateway.apis.openai.prompts import encode_prompts, listed_prompts
from services.gateway.apis.openai.sampling import (
    check_stream_options,
    choice_count,
    room_for_output,
    sampling_params,
    wants_usage,
)
from services.gateway.apis.openai.schemas import CompletionBody
from services.gateway.apis.openai.service import Answering, OpenAIServices, answer_head
from services.gateway.apis.openai.sse import ChunkStream
from services.gateway.text.choice import Piece, TokenText
from services.gateway.web.validation import parse_body
from services.kv.sampling import MAX_LOGPROBS

# The default of OpenAI's endpoint, which clients rely on.
DEFAULT_MAX_TOKENS = 16


class Completions:
    """Continues prompts."""

    def __init__(self, services: OpenAIServices) -> None:
        self._services = services
        self._answering = Answering(services)

    async def create(self, request: Request) -> Response:
        """Continue one or several prompts, whole or as a stream."""
        exchange = await self._services.entrance.exchange(request)
        body = parse_body(CompletionBody, await self._services.entrance.body(request))
        _check_supported(body)
        self._services.answers.require_room(exchange.project)
        with exchange.timeline.step("encode"):
            plan, echoes = await self._plan(body)
        head = answer_head(exchange, plan, "cmpl", "text_completion")
        form = CompletionForm(echoes, with_logprobs=body.logprobs is not None)
        if body.stream:
            return self._answering.stream(
                exchange, plan, ChunkStream(plan, head, form, include_usage=wants_usage(body))
            )
        return await self._answering.whole(
            request, exchange, plan, lambda choices: {**head, "choices": form.choices(choices)}
        )

    async def _plan(self, body: CompletionBody) -> tuple[AnswerPlan, list[str]]:
        """Return the plan, and for each choice what is shown before its answer."""
        limits = self._services.limits
        listed = listed_prompts(body.prompt)
        num_choices = choice_count(body, len(listed), limits.max_choices)
        model = await self._services.catalog.resolve(body.model)
        sampling_params(
            body, model.card, max_tokens=body.max_tokens or model.card.context_length, logprobs=body.logprobs
        )
        prompts = await self._services.threads.run(lambda: encode_prompts(model, listed))
        tokens = [prompt.token_ids for prompt in prompts]
        max_tokens = room_for_output(model.card, tokens, body.max_tokens, default=DEFAULT_MAX_TOKENS, param="prompt")
        sampling = sampling_params(body, model.card, max_tokens=max_tokens, logprobs=body.logprobs)
        plan = AnswerPlan(model, tuple(tokens), sampling, num_choices, tuple(body.stop or ()), body.priority or 0)
        echoes = [prompt.text if body.echo else "" for prompt in prompts for _ in range(num_choices)]
        return plan, echoes


class CompletionForm:
    """The choices of a text completion, whole or in chunks; ``echoes`` stand before the answers."""

    def __init__(self, echoes: Sequence[str], *, with_logprobs: bool) -> None:
        self._echoes = echoes
        self._with_logprobs = with_logprobs

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the echo of the prompt, if it was asked for."""
        return self._choice(index, self._echoes[index], ()) if self._echoes[index] else None

    def piece(self, index: int, piece: OutputPiece) -> dict[str, Any]:
        """Return more text."""
        assert isinstance(piece, Piece)  # nobody can ask for tools here
        return self._choice(index, piece.text, piece.tokens)

    def ending(self, end: ChoiceEnd) -> dict[str, Any]:
        """Return the end of a choice."""
        return {**self._choice(end.index, "", ()), "finish_reason": end.reason}

    def choices(self, choices: Sequence[CollectedChoice]) -> list[dict[str, Any]]:
        """Return all choices of a whole answer."""
        return [
            {
                **self._choice(index, self._echoes[index] + choice.text, choice.tokens, is_whole=True),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]

    def _choice(self, index: int, text: str, tokens: Sequence[TokenText], *, is_whole: bool = False) -> dict[str, Any]:
        has_logprobs = self._with_logprobs and (is_whole or bool(tokens))
        logprobs = _logprobs(tokens, len(self._echoes[index])) if has_logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}


def _check_supported(body: CompletionBody) -> None:
    check_stream_options(body)
    if body.suffix:
        raise InvalidRequest("'suffix' is not supported yet.", param="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequest("'best_of' other than 'n' is not supported.", param="best_of")
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_LOGPROBS:
        raise InvalidRequest(f"'logprobs' must be between 0 and {MAX_LOGPROBS}.", param="logprobs")
    if body.echo and body.logprobs is not None:
        raise InvalidRequest("'echo' together with 'logprobs' is not supported yet.", param="echo")


def _logprobs(tokens: Sequence[TokenText], first_offset: int) -> dict[str, Any]:
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {data.decode(errors="replace"): logprob for data, logprob in token.top} or None for token in tokens
        ],
        "text_offset": [first_offset + token.offset for token in tokens],
    }
