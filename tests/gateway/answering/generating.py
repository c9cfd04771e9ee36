"""Generations over workers that play scripts."""

from collections.abc import Sequence
from contextlib import aclosing
from random import Random

from services.cluster.registry import Member
from services.gateway.answering.generation import Generation, GenerationLimits, GenerationServices
from services.gateway.answering.sequence import NewTokens, SequenceEvent, SequenceRequest
from services.gateway.routing.candidates import Requirements
from services.gateway.routing.prefixes import PrefixIndex
from services.gateway.routing.router import Router
from services.gateway.routing.suspects import Suspects
from services.kv.sampling import SamplingParams
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.clock import ManualClock
from tests.gateway.twins import END_ID, DecodeTwin, Script

OUTPUT = [10, 11, 12, 13, END_ID]
D1, D2 = "d1:1", "d2:1"


class Cluster:
    def __init__(self, *members: Member, max_replays: int = 3, require_prefill: bool = False) -> None:
        self.clock = ManualClock()
        self.decode = DecodeTwin()
        self.decode.default = Script(OUTPUT)
        self.listed: Sequence[Member] = members
        self.listed_next: list[Sequence[Member]] = []
        """What is listed before that, once each."""
        self.prefixes = PrefixIndex()
        router = Router(self, Suspects(self.clock, 5.0), Random(1), prefixes=self.prefixes)
        limits = GenerationLimits(
            accept_timeout_s=0.05,
            first_token_timeout_s=0.05,
            token_timeout_s=0.05,
            room_timeout_s=10.0,
            max_replays=max_replays,
            require_prefill=require_prefill,
        )
        self.services = GenerationServices(router, self.decode, self.clock, limits)

    def members(self) -> Sequence[Member]:
        return self.listed_next.pop(0) if self.listed_next else self.listed

    def generation(
        self, *, max_tokens: int = 100, timeout_s: float = 60.0, prompt: Sequence[int] = (1, 2, 3)
    ) -> Generation:
        return Generation(
            SequenceRequest(
                request_id="req_1",
                project="team",
                requirements=Requirements("f" * 64, PROTOCOL_VERSION),
                block_size=16,
                prompt_token_ids=tuple(prompt),
                sampling=SamplingParams(seed=7, max_tokens=max_tokens, stop_token_ids=frozenset({END_ID})),
                deadline_s=self.clock.now() + timeout_s,
                timings_ms={"gateway": 2.0},
            ),
            self.services,
        )


async def heard(generation: Generation) -> list[SequenceEvent]:
    async with aclosing(generation.events()) as events:
        return [event async for event in events]


def token_ids(events: Sequence[SequenceEvent]) -> list[int]:
    return [token.token_id for event in events if isinstance(event, NewTokens) for token in event.tokens]
