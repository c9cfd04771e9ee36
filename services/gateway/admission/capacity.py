"""How much the workers of a pool can take, as they published it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Protocol

from services.cluster.registry import Member, Role

_UNKNOWN_TOKENS_PER_S = 1_000.0
"""Taken for a prefill worker that has not measured itself yet."""
_MIN_PROMPTS = 4
"""Prompts that one prefill worker may always have, however long they are: it never waits for the next one."""


@dataclass(frozen=True)
class PromptWindow:
    """Prompt tokens that prefill workers may have before them; 0 means any number."""

    num_tokens: int = 0
    max_cost: int = 0
    """What a prompt counts for at most."""

    def cost(self, num_prompt_tokens: int) -> int:
        """Return what a prompt takes of the window."""
        return min(num_prompt_tokens, self.max_cost)


class Members(Protocol):
    """Who belongs to the cluster, as far as this gateway knows."""

    def members(self) -> Sequence[Member]:
        """Return the members last seen."""


class Capacity(Protocol):
    """Says how much the workers can take."""

    def num_sequences(self, pool: str) -> int:
        """Return how many sequences the decode workers of ``pool`` run at once; 0 if that is not known."""

    def prompt_window(self, pool: str) -> PromptWindow:
        """Return what the prefill workers of ``pool`` may have before them."""


class MemberCapacity:
    """Sums up what members tell.

    A batch that is never larger keeps the time between tokens; prompts beyond the work of ``window_s`` seconds
    wait where projects take turns, not at a prefill worker.
    """

    def __init__(self, members: Members, window_s: float) -> None:
        self._members = members
        self._window_s = window_s

    def num_sequences(self, pool: str) -> int:
        """Return the sum over the decode workers of ``pool`` that take new work; 0 if one of them does not tell."""
        told = [member.max_sequences for member in self._workers(pool, Role.DECODE)]
        return sum(told) if all(told) else 0

    def prompt_window(self, pool: str) -> PromptWindow:
        """Return the sum over the prefill workers; without any, nothing waits for them."""
        rates = [
            member.load.prefill_tokens_per_s or _UNKNOWN_TOKENS_PER_S for member in self._workers(pool, Role.PREFILL)
        ]
        if not rates or not self._window_s:
            return PromptWindow()
        # In powers of two, so that the window does not change with each measurement.
        num_prompts = _MIN_PROMPTS * len(rates)
        num_tokens = 2 ** ceil(log2(max(sum(rates) * self._window_s, num_prompts)))
        return PromptWindow(num_tokens, num_tokens // num_prompts)

    def _workers(self, pool: str, role: Role) -> list[Member]:
        return [
            member
            for member in self._members.members()
            if member.role is role and member.fingerprint == pool and not member.draining
        ]
