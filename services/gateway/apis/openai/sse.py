"""Streams of chunks: what is common to chat and text completions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

import orjson

from services.errors import TandemError
from services.gateway.answering.answers import AnswerEvent, AnswerPlan, ChoiceEnd, ChoicePiece, Started
from services.gateway.answering.choice_output import OutputPiece
from services.gateway.apis.openai.collected import usage_json
from services.gateway.web.errors import body_of

DONE = b"data: [DONE]\n\n"


class ChunkWriter(Protocol):
    """The form of one API's chunks; each method returns one entry of ``choices``."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return what a choice begins with."""

    def piece(self, index: int, piece: OutputPiece) -> dict[str, Any]:
        """Return more text, or more of a tool call."""

    def ending(self, end: ChoiceEnd) -> dict[str, Any]:
        """Return the end of a choice, without text."""


class ChunkStream:
    """Turns the events of an answer into server-sent events."""

    def __init__(self, plan: AnswerPlan, head: dict[str, Any], writer: ChunkWriter, *, include_usage: bool) -> None:
        """``head`` is what all chunks have in common: id, object, created, model, system_fingerprint."""
        self._plan = plan
        self._head = {**head, "usage": None} if include_usage else head
        self._head_text = orjson.dumps(self._head).removesuffix(b"}")
        self._writer = writer
        self._include_usage = include_usage
        self._has_started = False
        self._ends: dict[int, ChoiceEnd] = {}

    async def chunks(self, events: AsyncGenerator[AnswerEvent, None]) -> AsyncGenerator[bytes, None]:
        """Yield one server-sent event per chunk, the usage chunk last if it was asked for, but not ``DONE``."""
        async with aclosing(events) as stream:
            async for event in stream:
                if isinstance(event, Started):
                    for chunk in self._opening():
                        yield chunk
                elif isinstance(event, ChoicePiece):
                    yield self._chunk(self._writer.piece(event.index, event.piece))
                else:
                    yield self._ending(event)
        if self._include_usage:
            ends = [self._ends[index] for index in sorted(self._ends)]
            yield sse({**self._head, "choices": [], "usage": usage_json(self._plan, ends)})

    def _opening(self) -> list[bytes]:
        if self._has_started:
            return []
        self._has_started = True
        indices = range(len(self._plan.prompts) * self._plan.num_choices)
        openings = (self._writer.opening(index) for index in indices)
        return [self._chunk(opening) for opening in openings if opening is not None]

    def _ending(self, end: ChoiceEnd) -> bytes:
        self._ends[end.index] = end
        proof = {} if self._include_usage else {"tandem": end.proof.to_json()}
        return sse({**self._head, "choices": [self._writer.ending(end)], **proof})

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return b'data: %b,"choices":[%b]}\n\n' % (self._head_text, orjson.dumps(choice))


def sse(value: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def last_words(error: TandemError) -> bytes:
    """Return the end of a stream that failed on the way."""
    return sse(body_of(error)) + DONE
