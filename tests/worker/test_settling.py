"""When blocks leave quarantine: the peer's word, or its death; never because it cannot be asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.engine.request import AttemptKey, NewRequest, Outcome
from services.faults.plan import Action
from services.kv.hashes import cache_seed
from services.rpc import tandem_pb2 as pb
from services.telemetry.clock import SystemClock
from services.worker.attempt import Peer
from services.worker.settling import Settling
from tests.inprocess.client import GREEDY, begin, generate, prompt
from tests.inprocess.cluster import Cluster, cluster, until, until_async
from tests.inprocess.faults import scripted

ATTEMPT = AttemptKey("request", 1)


@asynccontextmanager
async def settling(running: Cluster, *, grace_s: float = 0.0, ask_timeout_s: float = 30.0) -> AsyncIterator[Settling]:
    """Leave 8 blocks of an attempt in quarantine."""
    node = running.decode.node
    spec = NewRequest("request", tuple(prompt(30)), GREEDY, cache_seed(node.layout.fingerprint, ""))
    await node.engine.call(lambda scheduler: scheduler.reserve(spec, ATTEMPT))
    await node.engine.call(lambda scheduler: scheduler.cancel("request", num_arrived=0, outcome=Outcome.UNKNOWN))
    opened = Settling(
        node, running.decode.channels, running.decode.metrics, grace_s=grace_s, ask_timeout_s=ask_timeout_s
    )
    yield opened
    await opened.close()


def peer_of(running: Cluster) -> Peer:
    return Peer(running.prefill.node.member_id, running.prefill.address, computes=True)


async def num_quarantined(running: Cluster) -> int:
    return (await running.decode.ledger()).quarantined


async def freed(running: Cluster) -> None:
    async def is_free() -> bool:
        return not await num_quarantined(running)

    await until_async(is_free, "The quarantine did not end.")


async def test_the_peers_word_ends_it() -> None:
    async with cluster() as running, settling(running) as settler:
        assert await num_quarantined(running) == 8
        settler.watch(ATTEMPT, peer_of(running))
        await freed(running)


async def test_after_a_failed_push_the_peers_word_ends_it_after_the_grace_period() -> None:
    """What the failed push had sent may be on its way still."""
    async with cluster(decode={"settle_grace_s": 3600.0}) as running:
        running.prefill.faults.plan = scripted(pushes={0: Action.DROP})
        await generate(running, prompt(30))
        await running.settled([running.prefill])
        await asyncio.sleep(0.05)
        assert await num_quarantined(running) == 8
        reply = await running.channels.prefill(running.prefill.address).Settle(
            pb.SettleRequest(request_id="unknown", epoch=1, member_id=running.prefill.node.member_id)
        )
        assert not reply.push_failed


async def test_of_the_grace_period_no_standstill_of_ours_takes_more_than_one_step() -> None:
    """Whatever lay in our own kernel meanwhile is taken in before its blocks are free."""
    async with cluster(decode={"settle_grace_s": 1000.0}) as running:
        clock = SteppedClock()
        running.decode.node.clock = clock
        running.prefill.faults.plan = scripted(pushes={0: Action.DROP})
        await generate(running, prompt(30))
        for _ in range(9):
            await until(lambda: clock.asleep)
            clock.stand_still(5000.0)
        await until(lambda: clock.asleep)
        assert await num_quarantined(running) == 8
        clock.stand_still(5000.0)
        await freed(running)


class SteppedClock(SystemClock):
    """Each longer sleep lasts until the process stood still for longer than it."""

    def __init__(self) -> None:
        self.asleep: list[tuple[float, asyncio.Event]] = []

    async def sleep(self, delay_s: float) -> None:
        if delay_s < 50.0:
            return await super().sleep(delay_s)
        ended = asyncio.Event()
        self.asleep.append((delay_s, ended))
        await ended.wait()

    def stand_still(self, duration_s: float) -> None:
        asleep, self.asleep = self.asleep, []
        for delay_s, ended in asleep:
            assert duration_s > delay_s
            ended.set()


async def test_another_process_at_the_address_ends_it() -> None:
    async with cluster() as running, settling(running) as settler:
        settler.watch(ATTEMPT, Peer("prefill-earlier", running.prefill.address, computes=True))
        await freed(running)


async def test_nobody_at_the_address_ends_it_after_the_grace_period() -> None:
    async with cluster() as running:
        await running.prefill.stop()
        async with settling(running, grace_s=3600.0) as settler:
            settler.watch(ATTEMPT, peer_of(running))
            await asyncio.sleep(0.05)
            assert await num_quarantined(running) == 8
        async with settling_again(running) as settler:
            settler.watch(ATTEMPT, peer_of(running))
            await freed(running)


@asynccontextmanager
async def settling_again(running: Cluster) -> AsyncIterator[Settling]:
    decode = running.decode
    opened = Settling(decode.node, decode.channels, decode.metrics, grace_s=0.0)
    yield opened
    await opened.close()


async def test_a_peer_that_takes_connections_but_does_not_answer_keeps_it() -> None:
    """As a stopped process does: its kernel accepts, and its bytes land when it goes on."""
    connections: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    stopped = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = stopped.sockets[0].getsockname()[:2]
    async with cluster() as running, settling(running, ask_timeout_s=0.05) as settler:
        settler.watch(ATTEMPT, Peer("prefill-stopped", f"{host}:{port}", computes=True))
        await until(lambda: connections)
        await asyncio.sleep(0.2)
        assert await num_quarantined(running) == 8
        for writer in connections:
            writer.transport.abort()
        stopped.close()
        await freed(running)


async def test_a_channel_that_is_closed_under_the_question_does_not_lose_it() -> None:
    async with cluster() as running:
        running.prefill.faults.plan = scripted(pushes=dict.fromkeys(range(4), Action.STALL))
        call = begin(running, prompt(30))
        await call.read_tokens(1)
        await until(lambda: running.prefill.faults.injected[Action.STALL] == 4)
        call.cancel()
        await until(lambda: not running.decode.servicer.num_live)
        await asyncio.sleep(0.05)
        await running.decode.channels.forget(running.prefill.address)
        running.prefill.faults.resume()
        await running.settled()
