"""What the OpenAI endpoints work with, and how they answer: whole or as a stream."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from services.gateway.answering.answers import AnswerPlan, Answers
from services.gateway.answering.recorder import TimelineRecorder
from services.gateway.apis.openai.collected import CollectedChoice, collect, usage_json
from services.gateway.apis.openai.sse import DONE, ChunkStream, last_words
from services.gateway.file_services import FileServices
from services.gateway.job_services import ResponseParts, RunParts
from services.gateway.jobs.reader import EventReader
from services.gateway.models import ModelCatalog
from services.gateway.store.object_store import ObjectStore
from services.gateway.text.threads import TextThreads
from services.gateway.web.connection import while_connected
from services.gateway.web.entrance import Entrance
from services.gateway.web.exchange import Exchange
from services.gateway.web.replies import JsonReply
from services.gateway.web.stream import EventStream


@dataclass(frozen=True)
class OpenAILimits:
    """Bounds on what one request may ask for, and the rhythm of its stream."""

    max_choices: int
    default_max_tokens: int
    silent_start_s: float
    keep_alive_s: float
    send_timeout_s: float
    max_file_bytes: int
    max_embedding_tokens: int


@dataclass(frozen=True)
class OpenAIServices:
    """Finished collaborators of the endpoints."""

    entrance: Entrance
    catalog: ModelCatalog
    threads: TextThreads
    answers: Answers
    recorder: TimelineRecorder
    limits: OpenAILimits
    objects: ObjectStore
    files: FileServices
    runs: RunParts
    responses: ResponseParts
    reader: EventReader
    """Reads what runs and responses said."""
    is_lenient: bool
    """Take ids of any form and any limit of a list, as tests written for a mock need it."""
    requires_beta: bool
    """Refuse requests of the Assistants API that do not name its version in a header."""


class Answering:
    """Runs a plan and answers with the result."""

    def __init__(self, services: OpenAIServices) -> None:
        self._services = services

    async def whole(
        self,
        request: Request,
        exchange: Exchange,
        plan: AnswerPlan,
        body_of: Callable[[list[CollectedChoice]], dict[str, Any]],
    ) -> Response:
        """Return the complete answer; ``body_of`` gives all but the usage."""
        with self._services.recorder.recording(exchange):
            num_choices = len(plan.prompts) * plan.num_choices
            events = self._services.answers.run(plan, exchange)
            choices = await while_connected(request.receive, collect(events, num_choices))
        ends = [choice.end for choice in choices if choice.end is not None]
        return JsonReply({**body_of(choices), "usage": usage_json(plan, ends)})

    def stream(self, exchange: Exchange, plan: AnswerPlan, chunks: ChunkStream) -> Response:
        """Return the answer as server-sent events."""
        return EventStream(
            self._events(exchange, plan, chunks),
            silent_start_s=self._services.limits.silent_start_s,
            keep_alive_s=self._services.limits.keep_alive_s,
            send_timeout_s=self._services.limits.send_timeout_s,
            last_words=last_words,
        )

    async def _events(self, exchange: Exchange, plan: AnswerPlan, chunks: ChunkStream) -> AsyncGenerator[bytes, None]:
        with self._services.recorder.recording(exchange):
            async with aclosing(chunks.chunks(self._services.answers.run(plan, exchange))) as stream:
                async for chunk in stream:
                    yield chunk
        yield DONE


def answer_head(exchange: Exchange, plan: AnswerPlan, prefix: str, kind: str) -> dict[str, Any]:
    """Return what an answer, or each chunk of it, begins with."""
    return {
        "id": f"{prefix}-{exchange.token}",
        "object": kind,
        "created": exchange.created,
        "model": plan.model.card.model_name,
        "system_fingerprint": plan.model.system_fingerprint,
    }
