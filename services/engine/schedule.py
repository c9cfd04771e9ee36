"""What the scheduler chose for one step, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.engine.request import Request


@dataclass(slots=True)  # not frozen, since that costs more than all else that is done for a sequence
class ScheduledSequence:
    """The part of one request that a step computes.

    The sequence's tokens ``start .. start + len(new_token_ids) - 1`` are computed; their KV goes into
    ``block_table``, whose earlier blocks hold the KV of tokens ``0 .. start - 1``.
    """

    new_token_ids: Sequence[int]
    start: int
    """Number of tokens computed before."""
    block_table: Sequence[int]
    """Covers at least ``start + len(new_token_ids)`` tokens; valid until the step is committed."""
    needs_logits: bool
    """Whether the last of the rows is sampled from."""
    num_guessed: int = 0
    """How many of the rows, the last ones, are guesses: all of them and the one before are sampled from."""

    @property
    def num_sampled(self) -> int:
        """Rows that are sampled from, the last ones."""
        return self.num_guessed + 1 if self.needs_logits else 0


@dataclass(frozen=True)
class PartialTail:
    """A block whose slots from ``num_tokens`` on are zeroed before its bytes are digested."""

    block_id: int
    num_tokens: int


@dataclass(frozen=True)
class Schedule:
    """One step: ``requests[i]`` computes ``sequences[i]``.

    ``sampled`` has, in that order, a request for each row that is sampled from: behind a guess a copy of it that has
    the guess among its tokens.
    """

    requests: Sequence[Request]
    sequences: Sequence[ScheduledSequence]
    sampled: Sequence[Request]
    num_generating: int = 0
    """How many, from the first on, compute the last of their tokens and nothing else, and are sampled."""
    partial_tails: Sequence[PartialTail] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.sequences
