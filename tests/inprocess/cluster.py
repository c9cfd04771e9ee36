"""A whole cluster in one process: real engines, threads, servicers and gRPC; only model and fabric are twins."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from services.cluster.registry import Role
from services.decode.__main__ import Incoming, prompt_services
from services.decode.handover import Handover
from services.decode.prompt import PromptServices
from services.decode.service import DecodeServicer
from services.decode.settings import DecodeSettings
from services.engine.output import Ledger
from services.prefill.service import PrefillServicer
from services.prefill.settings import PrefillSettings
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import Channels
from services.rpc.faults import client_interceptors, server_interceptors
from services.rpc.server import new_server
from services.telemetry.metrics import counter_values
from services.transfer.inproc import InProcessFabric
from services.worker.admin import AdminServicer, Service
from services.worker.arrivals import Arrivals
from services.worker.exporter import Exporter
from services.worker.kept_blocks import KeptBlocks
from services.worker.kv_service import KVServicer
from services.worker.node import Node
from services.worker.pulling import Pulling
from services.worker.settling import Settling
from tests.inprocess.hash_model import DEADLINE_S
from tests.inprocess.parts import Built, Parts, build, new_metrics
from tests.inprocess.parts import Shape as Shape

SECRET = b"the cluster secret"
CONTEXT_LENGTH = 512


@dataclass(frozen=True)
class Moving:
    """What pushes a worker's blocks to others, and takes those of others."""

    exporter: Exporter
    kept: KeptBlocks
    settling: Settling
    address: str


class Worker:
    """One worker incarnation with all its parts."""

    def __init__(
        self,
        built: Built,
        address: str,
        server: grpc.aio.Server,
        servicer: Service,
        admin: AdminServicer,
        channels: Channels,
        moving: Moving,
    ) -> None:
        self.node = built.node
        self.address = address
        self.server = server
        self.servicer = servicer
        self.admin = admin
        self.channels = channels
        self.moving = moving
        self.model = built.model
        self.memory = built.memory
        self.faults = built.faults
        self.steps = built.steps
        """What happens at the protocol steps of this worker."""
        self.defects = built.defects
        self.metrics = built.parts.metrics
        self.prometheus = built.parts.prometheus
        self.arrivals = built.parts.arrivals

    @property
    def candidate(self) -> pb.PrefillCandidate:
        return pb.PrefillCandidate(member_id=self.node.member_id, address=self.address)

    @property
    def source(self) -> pb.KVSource:
        """This worker as one that may have blocks in its cache."""
        return pb.KVSource(member_id=self.node.member_id, address=self.address)

    def counted(self, name: str, **labels: str) -> int:
        inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        return int(counter_values(self.prometheus).get(f"tandem_{name}" + (f"{{{inner}}}" if inner else ""), 0))

    async def ledger(self) -> Ledger:
        """Return the ledger, counted anew."""
        counted, ledger = await self.node.engine.call(lambda scheduler: (scheduler.audit(), scheduler.ledger()))
        assert ledger.is_balanced, ledger
        assert ledger == counted
        return ledger

    async def is_idle(self) -> bool:
        """Whether nothing of any request is left: blocks, streams, calls, attempts."""
        if self.defects:
            return self.servicer.num_live == 0
        ledger = await self.ledger()
        rest = self.node.engine._streams or self.arrivals._open or self.servicer.num_live
        return ledger.is_idle and not rest

    async def stop(self) -> None:
        """End at once, as a process that is killed does: calls are reset, the memory leaves the fabric."""
        await self.server.stop(None)
        await self.node.transfers.close(DEADLINE_S)
        await self.node.engine.close(DEADLINE_S)


@dataclass
class Cluster:
    """Workers of both roles over one fabric, and the client that a gateway would be."""

    stack: AsyncExitStack
    fabric: InProcessFabric
    channels: Channels
    prefills: list[Worker] = field(default_factory=list)
    decodes: list[Worker] = field(default_factory=list)
    max_room: int = 1_000_000
    """Most blocks that a decode worker that leaves believes the others to have."""

    @property
    def decode(self) -> Worker:
        return self.decodes[0]

    @property
    def prefill(self) -> Worker:
        return self.prefills[0]

    async def add_prefill(self, shape: Shape | None = None, **settings: Any) -> Worker:
        values = {"model": "hash", "min_fetch_tokens": 1, "settle_grace_s": 0.0}
        known = PrefillSettings(**{**values, **settings})
        metrics, prometheus = new_metrics()
        parts = Parts(Role.PREFILL, shape or Shape(), known, metrics, prometheus, Arrivals(metrics))
        worker = await self._start(
            parts,
            serve=lambda node, server, channels, moving: _serve_prefill(node, server, channels, parts, moving),
        )
        self.prefills.append(worker)
        return worker

    async def add_decode(self, shape: Shape | None = None, **settings: Any) -> Worker:
        values = {
            "model": "hash",
            "local_prefill_tokens": 0,
            "max_local_prefill_tokens": 0,
            "max_mixed_prefill_tokens": 16,
            "max_reserved_share": 1.0,
            "settle_grace_s": 0.0,
        }
        known = DecodeSettings(**{**values, **settings})
        metrics, prometheus = new_metrics()
        parts = Parts(Role.DECODE, shape or Shape(), known, metrics, prometheus, Arrivals(metrics))

        def serve(node: Node, server: grpc.aio.Server, channels: Channels, moving: Moving) -> Service:
            incoming = Incoming(parts.arrivals, moving.settling, moving.address)
            return self._serve_decode(prompt_services(node, channels, incoming, metrics, known), server, moving)

        worker = await self._start(parts, serve=serve)
        self.decodes.append(worker)
        return worker

    def room_elsewhere(self, node: Node) -> int:
        """Return how many blocks decode workers other than ``node`` have to spare."""
        others = [worker.node for worker in self.decodes if worker.node is not node and not worker.node.is_draining]
        return min(sum(other.engine.load.num_available_blocks for other in others), self.max_room)

    async def settled(self, workers: Sequence[Worker] = ()) -> None:
        """Wait until nothing is left of any request, on the workers that are not stopped."""
        for worker in workers or [*self.decodes, *self.prefills]:
            await until_async(worker.is_idle, f"{worker.node.member_id} is not idle")

    def _serve_decode(self, services: PromptServices, server: grpc.aio.Server, moving: Moving) -> Service:
        node = services.node
        handover = Handover(
            node,
            moving.kept,
            services.metrics,
            settings=services.settings,
            room=lambda: self.room_elsewhere(node),
        )
        servicer = DecodeServicer(services, moving.exporter, handover)
        tandem_pb2_grpc.add_DecodeServicer_to_server(servicer, server)
        return servicer

    async def _start(
        self,
        parts: Parts,
        *,
        serve: Callable[[Node, grpc.aio.Server, Channels, Moving], Service],
    ) -> Worker:
        built = build(parts, self.fabric)
        node, steps = built.node, built.steps
        self.stack.push_async_callback(node.engine.close, DEADLINE_S)
        self.stack.callback(built.model.gate.open)
        self.stack.push_async_callback(node.transfers.close, DEADLINE_S)
        channels = Channels(SECRET, interceptors=client_interceptors(steps, node.clock))
        self.stack.push_async_callback(channels.close)
        server = new_server(SECRET, interceptors=server_interceptors(steps, node.clock))
        port = server.add_insecure_port("127.0.0.1:0")
        moving = self._moving(parts, node, channels, server, f"127.0.0.1:{port}")
        servicer = serve(node, server, channels, moving)
        admin = AdminServicer(
            node,
            servicer,
            announce=_say_nothing,
            drain_timeout_s=parts.settings.drain_timeout_s,
            counters=lambda: counter_values(parts.prometheus),
        )
        tandem_pb2_grpc.add_AdminServicer_to_server(admin, server)
        await server.start()
        self.stack.push_async_callback(server.stop, None)
        return Worker(built, moving.address, server, servicer, admin, channels, moving)

    def _moving(self, parts: Parts, node: Node, channels: Channels, server: grpc.aio.Server, address: str) -> Moving:
        settings = parts.settings
        moving = Moving(
            Exporter(node, parts.metrics, push_timeout_s=settings.push_timeout_s),
            KeptBlocks(node),
            Settling(node, channels, parts.metrics, grace_s=settings.settle_grace_s),
            address,
        )
        self.stack.push_async_callback(moving.settling.close)
        self.stack.callback(node.cache_feed.close)
        self.stack.push_async_callback(moving.exporter.close, 0.0)
        self.stack.push_async_callback(moving.kept.close)
        kv = KVServicer(node, moving.exporter, moving.kept, max_waiting=settings.max_waiting)
        tandem_pb2_grpc.add_KVServicer_to_server(kv, server)
        return moving


async def _say_nothing() -> None:
    """Nobody here asks a registry."""


@asynccontextmanager
async def cluster(
    *,
    prefills: int = 1,
    shape: Shape | None = None,
    prefill: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
) -> AsyncIterator[Cluster]:
    """Open one decode worker and ``prefills`` prefill workers of one shape."""
    async with AsyncExitStack() as stack:
        channels = Channels(SECRET)
        stack.push_async_callback(channels.close)
        opened = Cluster(stack, InProcessFabric(), channels)
        await opened.add_decode(shape, **(decode or {}))
        for _ in range(prefills):
            await opened.add_prefill(shape, **(prefill or {}))
        yield opened


async def until(condition: Callable[[], object], otherwise: str = "It did not come true.") -> None:
    """Wait until ``condition()`` is true; fails after the deadline, measures nothing."""

    async def is_met() -> bool:
        return bool(condition())

    await until_async(is_met, otherwise)


async def until_async(condition: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    """Wait until ``await condition()`` is true."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(otherwise) from None


def _serve_prefill(node: Node, server: grpc.aio.Server, channels: Channels, parts: Parts, moving: Moving) -> Service:
    settings = parts.settings
    assert isinstance(settings, PrefillSettings)
    pulling = Pulling(
        node,
        channels,
        parts.arrivals,
        moving.settling,
        min_tokens=settings.min_fetch_tokens,
        step_timeout_s=settings.fetch_step_timeout_s,
    )
    servicer = PrefillServicer(node, settings, moving.exporter, pulling)
    tandem_pb2_grpc.add_PrefillServicer_to_server(servicer, server)
    return servicer
