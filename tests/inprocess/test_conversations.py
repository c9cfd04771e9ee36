"""A conversation whose turns land on other workers each time: nobody computes again what anybody has."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from random import Random

import pytest

from services.cluster.background import Background
from services.cluster.memory import MemoryRegistry
from services.cluster.registry import Member, MemberLoad
from services.cluster.view import MemberView
from services.gateway.answering.decode_client import GrpcDecodeClient
from services.gateway.answering.generation import Generation, GenerationServices
from services.gateway.answering.sequence import NewTokens, SequenceRequest
from services.gateway.routing.cache_client import GrpcCacheClient
from services.gateway.routing.cache_watching import CacheWatching
from services.gateway.routing.candidates import Requirements
from services.gateway.routing.prefixes import PrefixIndex
from services.gateway.routing.router import Router
from services.gateway.routing.suspects import Suspects
from services.kv.hashes import block_hashes, cache_seed
from services.kv.sampling import SamplingParams
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.clock import SystemClock
from services.telemetry.logs import get_logger
from tests.chaos.gateway import LIMITS
from tests.gateway.twins import card as model_card
from tests.inprocess.client import GREEDY, SEEDED, expected_ids, prompt
from tests.inprocess.cluster import Cluster, Shape, Worker, cluster, until
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S
from tests.inprocess.members import member_of

CARD = model_card()
NUM_TURNS = 10


@dataclass
class Gateway:
    """Routes as a gateway does, with loads that a test chooses."""

    running: Cluster
    prefixes: PrefixIndex
    busy: set[str]
    """Members that say they have much to do."""

    def members(self) -> list[Member]:
        return [self._member(worker) for worker in [*self.running.decodes, *self.running.prefills]]

    def _member(self, worker: Worker) -> Member:
        load = MemberLoad(available_blocks=64, total_blocks=64, prefill_tokens_per_s=1000.0)
        if worker.node.member_id in self.busy:
            load = replace(load, running=50, queued_tokens=100_000)
        return replace(member_of(worker), load=load)

    async def ask(self, token_ids: list[int], params: SamplingParams) -> tuple[list[int], Generation]:
        """Return the answer of one turn, after whatever was cached before is known here."""
        clock = SystemClock()
        router = Router(self, Suspects(clock, 5.0), Random(1), prefixes=self.prefixes, min_fetch_tokens=1)
        services = GenerationServices(router, GrpcDecodeClient(self.running.channels), clock, LIMITS)
        fingerprint = self.running.decode.node.layout.fingerprint
        request = SequenceRequest(
            request_id=f"turn{len(token_ids)}",
            project="team",
            requirements=Requirements(fingerprint, PROTOCOL_VERSION),
            block_size=BLOCK_SIZE,
            prompt_token_ids=tuple(token_ids),
            sampling=params,
            deadline_s=clock.now() + DEADLINE_S,
            timings_ms={},
        )
        generation, output = Generation(request, services), list[int]()
        async with aclosing(generation.events()) as events:
            async for event in events:
                if isinstance(event, NewTokens):
                    output += [token.token_id for token in event.tokens]
        return output, generation

    async def hears_of(self, token_ids: list[int], num_blocks: int, member_id: str) -> None:
        """Wait until so much of a sequence is known to be at a member."""
        seed = cache_seed(self.running.decode.node.layout.fingerprint, "team")
        hashes = block_hashes(seed, token_ids, BLOCK_SIZE)
        await until(lambda: self.prefixes.overlaps(hashes).get(member_id, 0) >= num_blocks)


@asynccontextmanager
async def watched(running: Cluster) -> AsyncIterator[Gateway]:
    clock = SystemClock()
    view = MemberView(registry := MemoryRegistry(clock, lease_s=1e9), clock)
    for worker in [*running.decodes, *running.prefills]:
        await registry.join(member_of(worker, card_digest=CARD.digest), CARD)
    await view.refresh()
    prefixes = PrefixIndex()
    watching = CacheWatching(view, prefixes, GrpcCacheClient(running.channels), clock)
    following = Background("caches", get_logger(__name__), clock)
    following.start(watching.follow)
    try:
        yield Gateway(running, prefixes, set())
    finally:
        await following.close()


@pytest.mark.parametrize("params", [GREEDY, SEEDED])
async def test_every_turn_reuses_all_earlier_ones_wherever_it_lands(params: SamplingParams) -> None:
    large = Shape(num_blocks=128, max_step_tokens=64)
    async with cluster(prefills=2, shape=large) as running:
        await running.add_decode(large)
        async with watched(running) as gateway:
            known, last = list[int](), None
            decoders = list[str]()
            for turn in range(NUM_TURNS):
                asked = [*known, *prompt(13, seed=turn)]
                output, generation = await gateway.ask(asked, params)
                assert output == expected_ids(asked, params)
                num_reusable = max(len(known) - 1, 0) // BLOCK_SIZE * BLOCK_SIZE  # the last token has no KV yet
                assert generation.proof.spared_tokens == num_reusable, generation.proof
                known, last = [*asked, *output], generation.proof
                decoders.append(last.decode)
                await gateway.hears_of(known, (len(known) - 1) // BLOCK_SIZE, last.decode)
                gateway.busy = {last.decode, *([last.prefill] if last.prefill else [])}
            assert decoders[0] != decoders[1]
            assert len(set(decoders[::2])) == len(set(decoders[1::2])) == 1
            await running.settled()


async def test_a_source_that_is_gone_costs_only_time() -> None:
    async with cluster() as running:
        await running.add_decode()
        async with watched(running) as gateway:
            first = prompt(40)
            output, generation = await gateway.ask(first, GREEDY)
            holder = next(w for w in running.decodes if w.node.member_id == generation.proof.decode)
            other = next(w for w in running.decodes if w is not holder)
            known = [*first, *output]
            await gateway.hears_of(known, (len(known) - 1) // BLOCK_SIZE, holder.node.member_id)
            gateway.busy = {holder.node.member_id}
            await holder.server.stop(None)
            asked = [*known, *prompt(9, seed=1)]
            again, generation = await gateway.ask(asked, GREEDY)
            assert again == expected_ids(asked, GREEDY)
            assert generation.proof.decode == other.node.member_id
            assert generation.proof.kv_source is None
            await running.settled([other, running.prefill])
