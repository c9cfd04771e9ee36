"""What a run asks of a model: one turn, from a conversation to text and calls of functions."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from services.gateway.runs.binding import Binding
from services.gateway.runs.lifecycle import Body

ChatMessage = Mapping[str, Any]
"""A message as chat templates read it: role, content, tool_calls, tool_call_id."""


@dataclass(frozen=True)
class HistoryEntry:
    """One message of the thread; what led to it goes with it, so that a call is never parted from its output."""

    message_id: str | None
    """None for what the run itself has done so far."""
    messages: tuple[ChatMessage, ...]
    binding: Binding | None = None
    """The token ids of an answer and of the prompt before it."""


@dataclass(frozen=True)
class TurnRequest:
    """A conversation to be continued."""

    run: Body
    """Model, instructions, tools, sampling and limits."""
    history: Sequence[HistoryEntry]
    """The thread from its beginning, or as much of its end as can matter."""
    used_prompt_tokens: int = 0
    """By earlier turns of the run."""
    used_completion_tokens: int = 0


@dataclass(frozen=True)
class TurnPlan:
    """All that decides what a turn says: the same plan gives the same tokens on every gateway. Plain JSON values."""

    card_digest: str
    prompt_ids: tuple[int, ...]
    sampling: Mapping[str, Any]
    base: str | None = None
    """The message whose context the prompt begins with, token by token."""
    num_base_tokens: int = 0
    """How much of the prompt that is."""
    prompt_chars: int = 0
    """Length of the canonical text of the prompt."""
    prompt_digest: str = ""
    """Hex sha256 of that text."""
    first_message_id: str | None = None
    """The oldest message that was not left out."""
    budget: int = 0
    """Prompt tokens that there was room for."""


@dataclass(frozen=True)
class Written:
    """More text, all of it before the first call."""

    text: str
    token_ids: tuple[int, ...]
    """Output tokens since the event before."""


@dataclass(frozen=True)
class Called:
    """More of the call with this index; the first part of each call has its name."""

    index: int
    arguments: str
    token_ids: tuple[int, ...]
    name: str | None = None


@dataclass(frozen=True)
class TurnEnded:
    """The turn is over; it said nothing after what was told."""

    reason: Literal["stop", "length"]
    token_ids: tuple[int, ...] = ()
    """Output tokens since the event before; they show nothing, as the end token does."""
    cached_tokens: int = 0
    """Prompt tokens that nobody had to compute."""
    block_size: int = 1
    """Tokens that are cached together."""


TurnPart = Written | Called
TurnEvent = TurnPart | TurnEnded


@dataclass(frozen=True)
class TurnContext:
    """For whom a turn is made."""

    project: str
    run_id: str
    deadline_s: float = field(default=float("inf"))
    """On the clock's ``now``."""


class Turns(Protocol):
    """Makes turns; what a run knows of models."""

    async def plan(self, request: TurnRequest) -> TurnPlan | None:
        """Return how the turn will be made; None if the conversation does not fit into ``max_prompt_tokens``.

        Raises:
            InvalidRequest: the model refuses the conversation, or it does not fit into its context.
            Unavailable: nobody serves the model now.
        """

    def write(
        self, context: TurnContext, plan: TurnPlan, known_token_ids: Sequence[int]
    ) -> AsyncGenerator[TurnEvent, None]:
        """Yield what the model says after ``known_token_ids``, ending with ``TurnEnded``; closing it stops the model.

        Raises:
            DeadlineExceeded: the context's deadline passed.
            TandemError: no worker could go on.
        """
