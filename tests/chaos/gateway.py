"""The gateway's router and replay over a cluster in one process."""

import secrets
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random

from services.cluster.registry import Member, MemberLoad, Role
from services.faults.armed import ArmedFaults
from services.faults.plan import FaultPlan
from services.gateway.answering.decode_client import GrpcDecodeClient
from services.gateway.answering.generation import Generation, GenerationLimits, GenerationServices
from services.gateway.answering.sequence import GeneratedToken, NewTokens, SequenceRequest
from services.gateway.routing.candidates import Requirements
from services.gateway.routing.router import Router
from services.gateway.routing.suspects import Suspects
from services.kv.sampling import SamplingParams
from services.rpc.channel import Channels
from services.rpc.faults import client_interceptors
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.clock import SystemClock
from tests.inprocess.cluster import SECRET, Cluster, Worker
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S

LIMITS = GenerationLimits(
    accept_timeout_s=DEADLINE_S,
    first_token_timeout_s=DEADLINE_S,
    token_timeout_s=DEADLINE_S,
    room_timeout_s=DEADLINE_S,
    max_replays=4,
    require_prefill=False,
)


@dataclass
class Gateway:
    """Sends sequences to the workers of a cluster; its own side of each message can be faulty too."""

    cluster: Cluster
    services: GenerationServices
    steps: ArmedFaults

    def generation(self, prompt: Sequence[int], params: SamplingParams, *, request_id: str = "") -> Generation:
        """Return a sequence that has not begun."""
        request = SequenceRequest(
            request_id=request_id or secrets.token_hex(4),
            project="",
            requirements=Requirements(self.cluster.decode.node.layout.fingerprint, PROTOCOL_VERSION),
            block_size=BLOCK_SIZE,
            prompt_token_ids=tuple(prompt),
            sampling=params,
            deadline_s=self.services.clock.now() + DEADLINE_S,
            timings_ms={},
        )
        return Generation(request, self.services)

    async def ask(self, generation: Generation) -> list[GeneratedToken]:
        """Run a sequence to its end."""
        tokens: list[GeneratedToken] = []
        async with aclosing(generation.events()) as events:
            async for event in events:
                if isinstance(event, NewTokens):
                    tokens += event.tokens
        return tokens


def gateway(cluster: Cluster, limits: GenerationLimits = LIMITS, *, busy: Sequence[Worker] = ()) -> Gateway:
    """Return a gateway that knows the workers that are there now, and goes to ``busy`` ones if all others failed."""
    clock, steps = SystemClock(), ArmedFaults(FaultPlan())
    channels = Channels(SECRET, interceptors=client_interceptors(steps, clock))
    cluster.stack.push_async_callback(channels.close)
    members = [
        *(_member(worker, Role.DECODE, is_busy=worker in busy) for worker in cluster.decodes),
        *(_member(worker, Role.PREFILL, is_busy=worker in busy) for worker in cluster.prefills),
    ]
    router = Router(_Members(members), Suspects(clock, 5.0), Random(0))
    return Gateway(cluster, GenerationServices(router, GrpcDecodeClient(channels), clock, limits), steps)


@dataclass(frozen=True)
class _Members:
    listed: Sequence[Member]

    def members(self) -> Sequence[Member]:
        return self.listed


def _member(worker: Worker, role: Role, *, is_busy: bool) -> Member:
    node = worker.node
    return Member(
        member_id=node.member_id,
        role=role,
        address=worker.address,
        model_name=node.card.model_name,
        card_digest=node.card.digest,
        fingerprint=node.layout.fingerprint,
        transport="inproc",
        protocol_version=PROTOCOL_VERSION,
        load=MemberLoad(running=10_000 * is_busy, queued_tokens=10_000_000 * is_busy),
    )
