"""Workers that leave one after the other under load, with a real gateway sequence on top: nobody notices."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace
from random import Random

from services.cluster.registry import Member
from services.gateway.answering.decode_client import GrpcDecodeClient
from services.gateway.answering.generation import Generation, GenerationLimits, GenerationServices
from services.gateway.answering.sequence import Ended, NewTokens, SequenceRequest
from services.gateway.routing.candidates import Requirements
from services.gateway.routing.router import Router
from services.gateway.routing.suspects import Suspects
from services.kv.sampling import SamplingParams
from services.rpc import tandem_pb2 as pb
from services.rpc.errors import translated
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.clock import SystemClock
from tests.inprocess.client import GREEDY, SEEDED, expected_ids, prompt
from tests.inprocess.cluster import Cluster, Shape, Worker, cluster, until
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S
from tests.inprocess.members import member_of

NUM_STREAMS = 12
MAX_TOKENS = 60


@dataclass
class Listed:
    """The members of a cluster in one process."""

    running: Cluster

    def members(self) -> list[Member]:
        return [member_of(worker) for worker in [*self.running.decodes, *self.running.prefills]]


def gateway(running: Cluster) -> GenerationServices:
    clock = SystemClock()
    router = Router(Listed(running), Suspects(clock, 5.0), Random(1))
    limits = GenerationLimits(
        accept_timeout_s=DEADLINE_S,
        first_token_timeout_s=DEADLINE_S,
        token_timeout_s=DEADLINE_S,
        room_timeout_s=DEADLINE_S,
        max_replays=0,
        require_prefill=False,
    )
    return GenerationServices(router, GrpcDecodeClient(running.channels), clock, limits)


async def stream(running: Cluster, services: GenerationServices, index: int, params: SamplingParams) -> Generation:
    token_ids = prompt(20 + index, seed=index)
    request = SequenceRequest(
        request_id=f"req_{index}",
        project="team",
        requirements=Requirements(running.decode.node.layout.fingerprint, PROTOCOL_VERSION),
        block_size=BLOCK_SIZE,
        prompt_token_ids=tuple(token_ids),
        sampling=params,
        deadline_s=services.clock.now() + 4 * DEADLINE_S,
        timings_ms={},
    )
    generation, ids, end = Generation(request, services), list[int](), None
    async with aclosing(generation.events()) as events:
        async for event in events:
            if isinstance(event, NewTokens):
                ids += [token.token_id for token in event.tokens]
            end = event
    assert isinstance(end, Ended)
    assert ids == expected_ids(token_ids, params)
    return generation


async def drain(running: Cluster, worker: Worker) -> int:
    with translated():
        request = pb.DrainRequest(timeout_s=DEADLINE_S, member_id=worker.node.member_id)
        return int((await running.channels.admin(worker.address).Drain(request)).remaining)


async def test_a_rolling_restart_of_all_workers_changes_no_token_and_replays_nothing() -> None:
    shape, at_once = Shape(num_blocks=512, max_step_tokens=32), {"handover_after_s": 0.0}
    async with cluster(prefills=2, shape=shape, decode=at_once) as running:
        await running.add_decode(shape, **at_once)
        services = gateway(running)
        samplings = [replace(params, max_tokens=MAX_TOKENS) for params in (GREEDY, SEEDED)]
        for worker in running.decodes:
            worker.model.gate.close()
        streams = [
            asyncio.create_task(stream(running, services, index, samplings[index % 2])) for index in range(NUM_STREAMS)
        ]
        old = [*running.decodes, *running.prefills]
        for worker in running.decodes:
            await until(lambda: worker.model.gate.num_waiting)  # noqa: B023
        new = [await running.add_decode(shape, **at_once), await running.add_prefill(shape)]
        first = asyncio.create_task(drain(running, running.decode))
        await until(lambda: running.decode.node.is_draining)
        for worker in old:
            worker.model.gate.open()
        left = [await first, *[await drain(running, worker) for worker in old[1:]]]
        generations = await asyncio.gather(*streams)
        assert left == [0] * len(old)
        assert [each.proof.replays for each in generations] == [0] * NUM_STREAMS
        assert sum(each.proof.handovers for each in generations) > 0
        assert sum(worker.counted("sequences_handed_over") for worker in old[:2]) == sum(
            each.proof.handovers for each in generations
        )
        await running.settled([*old, *new])
