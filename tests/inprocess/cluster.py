"""A whole cluster in one process: real engines, threads, servicers and gRPC; only model and fabric are twins."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from services.cluster.registry import Role
from services.decode.__main__ import prompt_services
from services.decode.arrivals import Arrivals
from services.decode.handover import Handover
from services.decode.prompt import PromptServices
from services.decode.service import DecodeServicer
from services.decode.settings import DecodeSettings
from services.engine.engine import Engine
from services.engine.grammar import Grammars
from services.engine.limits import SchedulerConfig
from services.engine.output import Ledger
from services.engine.sampler import BatchSampler
from services.engine.scheduler import Scheduler
from services.faults.armed import ArmedFaults
from services.faults.plan import FaultPlan
from services.kv.card import ModelCard
from services.kv.layout import KVLayout
from services.prefill.service import PrefillServicer
from services.prefill.settings import PrefillSettings
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import Channels
from services.rpc.faults import client_interceptors, server_interceptors
from services.rpc.server import new_server
from services.telemetry.clock import SystemClock
from services.telemetry.metrics import WorkerMetrics, counter_values
from services.transfer.faults import FaultyTransport, Scratch, ScriptedFaults
from services.transfer.inproc import InProcessFabric, InProcessTransport
from services.transfer.loop import NoticeHandler, TransferThread
from services.transfer.memory import KVMemory, allocate
from services.transfer.step_faults import with_faults
from services.worker.admin import AdminServicer, Service
from services.worker.engine_thread import EngineThread
from services.worker.exporter import Exporter
from services.worker.grammar_compiler import GrammarCompiler
from services.worker.kept_blocks import KeptBlocks
from services.worker.kv_service import KVServicer
from services.worker.node import Node
from services.worker.seal import Sealer
from services.worker.settings import WorkerSettings
from services.worker.step_metrics import StepMetrics
from services.worker.throughput import Throughput
from tests.inprocess.fake_grammar import FakeGrammars
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S, SLOT_BYTES, VOCAB_SIZE, HashModel, layout

SECRET = b"the cluster secret"
CONTEXT_LENGTH = 512


@dataclass(frozen=True)
class Shape:
    """What differs between the workers of two tests."""

    num_blocks: int = 64
    layout: KVLayout = field(default_factory=layout)
    slot_bytes: int = SLOT_BYTES
    max_step_tokens: int = 8
    """Two blocks, so that prompts have many chunks."""
    max_running: int = 64
    grammars: Grammars = field(default_factory=FakeGrammars)


@dataclass(frozen=True)
class Moving:
    """What pushes a worker's blocks to others."""

    exporter: Exporter
    kept: KeptBlocks


@dataclass
class Worker:
    """One worker incarnation with all its parts."""

    node: Node
    address: str
    server: grpc.aio.Server
    servicer: Service
    admin: AdminServicer
    model: HashModel
    memory: KVMemory
    faults: FaultyTransport
    channels: Channels
    metrics: WorkerMetrics
    prometheus: CollectorRegistry
    defects: list[str]
    arrivals: Arrivals
    moving: Moving
    steps: ArmedFaults
    """What happens at the protocol steps of this worker."""

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
        known = PrefillSettings(**{"model": "hash", **settings})
        metrics, prometheus = _metrics()
        parts = _Parts(Role.PREFILL, shape or Shape(), known, metrics, prometheus)
        worker = await self._start(
            parts,
            on_notice=lambda agent, notice: metrics.stale_notices.inc(),
            serve=lambda node, server, channels, moving: _serve_prefill(node, server, known, moving),
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
        metrics, prometheus = _metrics()
        arrivals = Arrivals(metrics)
        parts = _Parts(Role.DECODE, shape or Shape(), known, metrics, prometheus, known.max_reserved_share, arrivals)
        worker = await self._start(
            parts,
            on_notice=arrivals.on_notice,
            serve=lambda node, server, channels, moving: self._serve_decode(
                prompt_services(node, channels, arrivals, metrics, known), server, moving
            ),
        )
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
        self.stack.push_async_callback(services.settling.close)
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
        parts: "_Parts",
        *,
        on_notice: NoticeHandler,
        serve: Callable[[Node, grpc.aio.Server, Channels, Moving], Service],
    ) -> Worker:
        settings, shape, defects = parts.settings, parts.shape, list[str]()
        memory = allocate(shape.num_blocks + 1, shape.layout.block_bytes)
        model = HashModel(memory, shape.slot_bytes)
        sealer, throughput, clock = Sealer(memory.block, enabled=settings.payload_digests), Throughput(), SystemClock()
        engine = EngineThread(
            Engine(model, BatchSampler(), _scheduler(parts)),
            clock=clock,
            seal=sealer.seal,
            on_step=StepMetrics(parts.metrics, throughput),
            on_defect=lambda: defects.append("engine"),
        )
        self.stack.push_async_callback(engine.close, DEADLINE_S)
        self.stack.callback(model.gate.open)
        member_id = f"{parts.role.value}-{secrets.token_hex(4)}"
        faults = FaultyTransport(
            InProcessTransport(
                agent=member_id, fingerprint=shape.layout.fingerprint, memory=memory, fabric=self.fabric
            ),
            ScriptedFaults(),
            clock=clock,
            scratch=Scratch(memory, shape.num_blocks),
        )
        steps = ArmedFaults(FaultPlan())
        transfers = TransferThread(with_faults(faults, steps, memory, clock), on_notice=on_notice)
        transfers.start()
        self.stack.push_async_callback(transfers.close, DEADLINE_S)
        node = Node(
            member_id=member_id,
            role=parts.role,
            card=_card(shape),
            layout=shape.layout,
            engine=engine,
            grammars=GrammarCompiler(shape.grammars),
            transfers=transfers,
            sealer=sealer,
            throughput=throughput,
            clock=clock,
        )
        channels = Channels(SECRET, interceptors=client_interceptors(steps, clock))
        self.stack.push_async_callback(channels.close)
        server = new_server(SECRET, interceptors=server_interceptors(steps, clock))
        port = server.add_insecure_port("127.0.0.1:0")
        moving = Moving(
            Exporter(node, parts.metrics, push_timeout_s=settings.push_timeout_s),
            KeptBlocks(node),
        )
        self.stack.push_async_callback(moving.kept.close)
        tandem_pb2_grpc.add_KVServicer_to_server(KVServicer(node, moving.exporter, moving.kept), server)
        servicer = serve(node, server, channels, moving)
        admin = AdminServicer(
            node,
            servicer,
            announce=_say_nothing,
            drain_timeout_s=settings.drain_timeout_s,
            counters=lambda: counter_values(parts.prometheus),
        )
        tandem_pb2_grpc.add_AdminServicer_to_server(admin, server)
        await server.start()
        self.stack.push_async_callback(server.stop, None)
        return Worker(
            node=node,
            address=f"127.0.0.1:{port}",
            server=server,
            servicer=servicer,
            admin=admin,
            model=model,
            memory=memory,
            faults=faults,
            channels=channels,
            metrics=parts.metrics,
            prometheus=parts.prometheus,
            defects=defects,
            arrivals=parts.arrivals,
            moving=moving,
            steps=steps,
        )


async def _say_nothing() -> None:
    """Nobody here asks a registry."""


@dataclass(frozen=True)
class _Parts:
    role: Role
    shape: Shape
    settings: WorkerSettings
    metrics: WorkerMetrics
    prometheus: CollectorRegistry
    max_reserved_share: float = 0.0
    arrivals: Arrivals = field(default_factory=lambda: Arrivals(_metrics()[0]))


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


def _metrics() -> tuple[WorkerMetrics, CollectorRegistry]:
    prometheus = CollectorRegistry()
    return WorkerMetrics(prometheus), prometheus


def _serve_prefill(node: Node, server: grpc.aio.Server, settings: PrefillSettings, moving: Moving) -> Service:
    servicer = PrefillServicer(node, settings, moving.exporter)
    tandem_pb2_grpc.add_PrefillServicer_to_server(servicer, server)
    return servicer


def _scheduler(parts: _Parts) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            num_blocks=parts.shape.num_blocks,
            block_size=BLOCK_SIZE,
            context_length=CONTEXT_LENGTH,
            max_step_tokens=parts.shape.max_step_tokens,
            max_mixed_prefill_tokens=min(parts.shape.max_step_tokens, parts.settings.max_mixed_prefill_tokens),
            max_running=parts.shape.max_running,
            max_waiting=parts.settings.max_waiting,
            max_reserved_share=parts.max_reserved_share,
        )
    )


def _card(shape: Shape) -> ModelCard:
    return ModelCard(
        model_name="hash",
        fingerprint=shape.layout.fingerprint,
        numerics_class=shape.layout.numerics_class,
        context_length=CONTEXT_LENGTH,
        vocab_size=VOCAB_SIZE,
        block_size=BLOCK_SIZE,
        block_bytes=shape.layout.block_bytes,
        eos_token_ids=(),
        tokenizer_json="{}",
        chat_template=None,
    )
