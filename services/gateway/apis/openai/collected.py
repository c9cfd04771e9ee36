"""A whole answer, put together from its events, and its usage."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from services.gateway.answering.answers import AnswerEvent, AnswerPlan, ChoiceEnd, ChoicePiece
from services.gateway.answering.choice_output import OutputPiece
from services.gateway.answering.proof import proofs_json
from services.gateway.text.choice import Piece, TokenText
from services.gateway.tools.extraction import CallOpening, CallPiece


@dataclass
class CollectedCall:
    """One tool call so far."""

    call_id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass
class CollectedChoice:
    """One choice so far."""

    texts: list[str] = field(default_factory=list)
    tokens: list[TokenText] = field(default_factory=list)
    calls: list[CollectedCall] = field(default_factory=list)
    end: ChoiceEnd | None = None

    @property
    def text(self) -> str:
        """The text of the choice."""
        return "".join(self.texts)

    def add(self, piece: OutputPiece) -> None:
        """Append what comes next."""
        match piece:
            case Piece():
                self.texts.append(piece.text)
                self.tokens.extend(piece.tokens)
            case CallOpening():
                self.calls.append(CollectedCall(piece.call_id, piece.name))
            case CallPiece():
                self.calls[piece.call_index].arguments.append(piece.arguments)

    @property
    def finish_reason(self) -> str | None:
        """Why it ended."""
        return None if self.end is None else self.end.reason


async def collect(events: AsyncGenerator[AnswerEvent, None], num_choices: int) -> list[CollectedChoice]:
    """Return all choices of an answer, by index."""
    choices = [CollectedChoice() for _ in range(num_choices)]
    async with aclosing(events) as stream:
        async for event in stream:
            if isinstance(event, ChoicePiece):
                choices[event.index].add(event.piece)
            elif isinstance(event, ChoiceEnd):
                choices[event.index].end = event
    return choices


def usage_json(plan: AnswerPlan, ends: Sequence[ChoiceEnd]) -> dict[str, Any]:
    """Return the usage of an answer and its proof of path; ``ends`` by index."""
    completion_tokens = sum(end.num_tokens for end in ends)
    # A prompt counts once, so its first answer says how much of it was cached. A replay finds output cached, too.
    firsts = zip(ends[:: plan.num_choices], plan.prompts, strict=True)
    cached_tokens = sum(min(end.proof.spared_tokens, len(prompt)) for end, prompt in firsts)
    return {
        "prompt_tokens": plan.num_prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": plan.num_prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "tandem": proofs_json([end.proof for end in ends]),
    }
