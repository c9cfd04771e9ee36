"""What a run asks of a model: one turn, from a conversation to text and calls of functions."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from services.gateway.runs.binding import Binding
from services.gateway.runs.lifecycle import Body

ChatMessage = Mapping[str, Any]
"""A message as chat templates read it: role, content, tool_calls, tool_call_id."""


def is_text_of_model(message: ChatMessage) -> bool:
    """Return whether a message is what a model said without calling."""
    return bool(message["role"] == "assistant" and "tool_calls" not in message)


@dataclass(frozen=True)
class HistoryEntry:
    """One message of the thread with what led to it, or the calls of a turn; a call is never parted from its output."""

    message_id: str | None
    """The message, or the item that is the last call; None for what the run itself has done so far."""
    messages: tuple[ChatMessage, ...]
    binding: Binding | None = None
    """The token ids of a turn and of the prompt before it; of what the run did itself, those of its last turn."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Files by the marks that stand for their passages in ``messages``."""


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
    called: Sequence[str] = ()
    """The functions that the run has called so far."""


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
    """Prompt tokens that there was room for; 0 if the run chose itself what to leave out."""
    calls: Mapping[str, Any] | None = None
    """What of the output is a call, ``CallRules`` as plain values; None if nothing is."""


@dataclass(frozen=True)
class Written:
    """More text; none comes after the first call."""

    text: str


@dataclass(frozen=True)
class Called:
    """More of the call with this index; the first part of each call has its name."""

    index: int
    arguments: str
    name: str | None = None


TurnPart = Written | Called


@dataclass(frozen=True)
class Said:
    """All that the next tokens show; parts and their tokens are written down together or not at all."""

    token_ids: tuple[int, ...]
    """Output tokens since the event before."""
    parts: tuple[TurnPart, ...]


@dataclass(frozen=True)
class FullCall:
    """A call, as it is when the turn is over."""

    name: str
    arguments: str


@dataclass(frozen=True)
class TurnEnded:
    """The turn is over."""

    reason: Literal["stop", "length"]
    token_ids: tuple[int, ...] = ()
    """Output tokens since the event before."""
    parts: tuple[TurnPart, ...] = ()
    """What was held back until it was known that nothing follows."""
    calls: tuple[FullCall, ...] = ()
    """All calls of the turn, in their order."""
    num_end_tokens: int = 0
    """How many of the turn's last tokens only end it."""
    cached_tokens: int = 0
    """Prompt tokens that nobody had to compute."""
    block_size: int = 1
    """Tokens that are cached together."""


TurnEvent = Said | TurnEnded


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
