"""What the scheduler chose for one step, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.engine.request import Request


@dataclass(frozen=True)
class ScheduledSequence:
    """The part of one request that a step computes.

    The sequence's tokens ``start .. start + len(new_token_ids) - 1`` are computed; their KV goes into
    ``block_table``, whose earlier blocks hold the KV of tokens ``0 .. start - 1``.
    """

    new_token_ids: Sequence[int]
    start: int
    """Number of tokens computed before."""
    block_table: Sequence[int]
    """Covers ``start + len(new_token_ids)`` tokens, no more; valid until the step is committed."""
    needs_logits: bool
    """Whether the last of the rows is sampled from."""


@dataclass(frozen=True)
class PartialTail:
    """A block whose slots from ``num_tokens`` on are zeroed before its bytes are digested."""

    block_id: int
    num_tokens: int


@dataclass(frozen=True)
class Schedule:
    """One step: ``requests[i]`` computes ``sequences[i]``; ``sampled`` are those with ``needs_logits``, in order."""

    requests: Sequence[Request]
    sequences: Sequence[ScheduledSequence]
    sampled: Sequence[Request]
    partial_tails: Sequence[PartialTail] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.sequences
