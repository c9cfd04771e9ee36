"""A gateway without HTTP: its own router and replay over real connections, so that token ids can be compared."""

import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from random import Random

from services.cluster.registry import Member, MemberLoad
from services.gateway.answering.decode_client import GrpcDecodeClient
from services.gateway.answering.generation import Generation, GenerationLimits, GenerationServices
from services.gateway.answering.proof import PathProof
from services.gateway.answering.sequence import Accepted, Ended, NewTokens, SequenceRequest
from services.gateway.routing.candidates import Requirements
from services.gateway.routing.health_client import GrpcHealthClient
from services.gateway.routing.probing import Probing
from services.gateway.routing.router import Router
from services.gateway.routing.suspects import Suspects
from services.kv.sampling import SamplingParams
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.clock import SystemClock
from tests.e2e.harness import Cluster

BLOCK_SIZE = 16
LIMITS = GenerationLimits(
    accept_timeout_s=40.0,
    first_token_timeout_s=60.0,
    token_timeout_s=20.0,
    room_timeout_s=60.0,
    max_replays=4,
    require_prefill=False,
)
DEADLINE_S = 180.0
PROBE_PAUSE_S = 1.0
_names = itertools.count()


@dataclass(frozen=True)
class Question:
    """A prompt and how it is continued."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    project: str = ""


@dataclass
class Heard:
    """What came of one sequence so far."""

    token_ids: list[int] = field(default_factory=list)
    reason: str = ""
    replays: int = 0
    proof: PathProof | None = None
    first_token_after_s: float = 0.0
    is_over: bool = False
    """Whether nothing more will be heard."""


class Caller:
    """Sends sequences where the gateway would, and to ``busy`` members, in that order, only if all others failed."""

    def __init__(self, cluster: Cluster, *, limits: GenerationLimits = LIMITS) -> None:
        self._cluster = cluster
        self.clock = SystemClock()
        self.busy: Sequence[str] = ()
        self.suspects = suspects = Suspects(self.clock, PROBE_PAUSE_S)
        router = Router(self, suspects, Random(0))
        health = GrpcHealthClient(cluster.channels)
        self.probing = Probing(suspects, self, health, self.clock, pause_s=PROBE_PAUSE_S)
        self._services = GenerationServices(router, GrpcDecodeClient(cluster.channels), self.clock, limits)

    def members(self) -> Sequence[Member]:
        """Return what the router shall see."""
        return [self._seen(member) for member in self._cluster.view.members()]

    def _seen(self, member: Member) -> Member:
        if member.member_id not in self.busy:
            return member
        place = 1 + self.busy.index(member.member_id)
        return replace(member, load=MemberLoad(running=10_000 * place, queued_tokens=10_000_000 * place))

    async def ask(self, question: Question, heard: Heard | None = None) -> Heard:
        """Run a sequence to its end; ``heard`` can be read meanwhile."""
        heard = Heard() if heard is None else heard
        async with aclosing(self.events(question, heard)) as events:
            async for _ in events:
                pass
        return heard

    async def give_up(self, question: Question, *, after_tokens: int, heard: Heard | None = None) -> Heard:
        """Begin a sequence and leave it after so many tokens; 0 means once it is accepted."""
        heard = Heard() if heard is None else heard
        async with aclosing(self.events(question, heard)) as events:
            async for _ in events:
                if len(heard.token_ids) >= after_tokens:
                    break
        return heard

    async def events(self, question: Question, heard: Heard) -> AsyncGenerator[Accepted | NewTokens | Ended, None]:
        """Yield what happens and note it in ``heard``."""
        request = SequenceRequest(
            request_id=f"chaos-{next(_names)}",
            project=question.project,
            requirements=Requirements(self._cluster.fingerprint, PROTOCOL_VERSION),
            block_size=BLOCK_SIZE,
            prompt_token_ids=question.prompt,
            sampling=question.sampling,
            deadline_s=self.clock.now() + DEADLINE_S,
            timings_ms={},
        )
        generation, began_s = Generation(request, self._services), self.clock.now()
        try:
            async with aclosing(generation.events()) as events:
                async for event in events:
                    if isinstance(event, NewTokens):
                        heard.first_token_after_s = heard.first_token_after_s or self.clock.now() - began_s
                        heard.token_ids += [token.token_id for token in event.tokens]
                    elif isinstance(event, Ended):
                        heard.reason = event.reason
                    heard.replays, heard.proof = len(generation.replay_codes), generation.proof
                    yield event
        finally:
            heard.is_over = True
