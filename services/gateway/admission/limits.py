"""What a request asks of admission, and what admission allows."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class AdmissionLimits:
    """How much may run and wait; a limit of 0 tokens is none."""

    max_requests: int
    """Requests that this gateway answers at once."""
    max_waiting: int
    max_project_waiting: int
    max_wait_s: float
    max_tokens: int = 0
    """Prompt and output tokens of everything that all gateways together let run."""
    max_project_tokens: int = 0
    """The same for each project."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of projects; 1 unless given."""


@dataclass(frozen=True)
class Demand:
    """What one request asks for, all its sequences together."""

    project: str
    pool: str
    """Which workers can serve it: the fingerprint of their KV layout."""
    num_prompt_tokens: int
    max_output_tokens: int
    num_sequences: int = 1
    priority: int = 0
    """Among the requests of its project: lower goes first."""

    @property
    def num_tokens(self) -> int:
        """Most tokens that it can hold at once."""
        return self.num_prompt_tokens + self.max_output_tokens


class Turn(Protocol):
    """A request that runs."""

    def prefilled(self) -> None:
        """One more of its sequences has its first token: its prompt needs no computing any more."""

    def generated(self, num_tokens: int) -> None:
        """Count output tokens: what it really takes is what its project is charged in the end."""


class Admission(Protocol):
    """Says when a request may begin."""

    def require_room(self, project: str) -> None:
        """Refuse early, before any work, what would be refused later.

        Raises:
            Overloaded: too many wait already.
        """

    def admitted(self, demand: Demand) -> AbstractAsyncContextManager[Turn]:
        """Wait for a turn, hold it for the block.

        Raises:
            Overloaded: too many wait already, or the turn did not come in time.
        """
