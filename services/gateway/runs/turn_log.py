"""Makes the turns of a job and hands on what the model says, a batch for each write."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from services.errors import PeerError
from services.gateway.jobs.held import HeldJob
from services.gateway.runs.binding import Binding
from services.gateway.runs.job import Used
from services.gateway.runs.turns import TurnContext, TurnEnded, TurnEvent, TurnPlan, Turns
from services.gateway.web.merge import Pump
from services.telemetry.clock import Clock

Take = Callable[[Sequence[TurnEvent]], Awaitable[None]]
"""Writes down what a model said."""


@dataclass(frozen=True)
class TurnLog:
    """Finished collaborators."""

    turns: Turns
    clock: Clock
    flush_s: float
    """Least time between two writes of a job's text."""

    async def write(self, held: HeldJob, plan: TurnPlan, known_token_ids: Sequence[int], take: Take) -> TurnEnded:
        """Hand on what the model says after ``known_token_ids`` until the turn is over.

        Raises:
            TandemError: what ``Turns.write`` raises.
        """
        remaining_s = held.expires_ms / 1e3 - self.clock.wall()
        context = TurnContext(held.jobs.project, held.ref.id, self.clock.now() + remaining_s)
        source = self.turns.write(context, plan, tuple(known_token_ids))
        async with aclosing(self._batches(source)) as batches:
            async for batch in batches:
                if said := [event for event in batch if not isinstance(event, TurnEnded)]:
                    await take(said)
                if isinstance(ended := batch[-1], TurnEnded):
                    return ended
        raise PeerError("The turn ended without saying so.")

    async def _batches(self, source: AsyncGenerator[TurnEvent, None]) -> AsyncGenerator[list[TurnEvent], None]:
        """Yield events as they come, all that came while the one before was written, not more often than allowed."""
        async with Pump([source]) as pump:
            while (batch := await pump.next()) is not None:
                started_s = self.clock.now()
                yield batch
                if (left_s := started_s + self.flush_s - self.clock.now()) > 0:
                    await self.clock.sleep(left_s)


def used_by(plan: TurnPlan, ended: TurnEnded, num_output_tokens: int) -> Used:
    """Return the tokens of a turn that is over."""
    return Used(len(plan.prompt_ids), num_output_tokens, ended.cached_tokens, _kv_of(plan, ended))


def binding_of(
    plan: TurnPlan,
    ended: TurnEnded,
    token_ids: Sequence[int],
    lead: Sequence[Mapping[str, Any]] = (),
    sources: Mapping[str, str] | None = None,
) -> Binding:
    """Return what is kept with the answer of a turn; ``token_ids`` are all of its output."""
    return Binding(
        card_digest=plan.card_digest,
        base=plan.base,
        tail_ids=plan.prompt_ids[plan.num_base_tokens :],
        output_ids=tuple(token_ids[: len(token_ids) - ended.num_end_tokens]),
        prompt_chars=plan.prompt_chars,
        prompt_digest=plan.prompt_digest,
        first_message_id=plan.first_message_id,
        budget=plan.budget,
        lead=tuple(lead),
        sources=sources or {},
    )


def _kv_of(plan: TurnPlan, ended: TurnEnded) -> str | None:
    """Return what was found of the KV of the context that the prompt begins with."""
    expected = plan.num_base_tokens // ended.block_size * ended.block_size
    if not expected:
        return None
    if not ended.cached_tokens:
        return "expired"
    return "hit" if ended.cached_tokens >= expected else "partial"
