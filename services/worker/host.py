"""One worker process from start to end: the life cycle, spelled out.

admin port -> model -> threads -> gRPC -> warm-up -> join ... SIGTERM ... drain -> leave -> close
"""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health
from prometheus_client import CollectorRegistry

from services.cluster.presence import Presence
from services.cluster.redis_registry import RedisRegistry
from services.cluster.registry import Member, Role
from services.cluster.secret import load_or_create_secret
from services.errors import ConfigurationError, InternalError, StateUnavailable, TandemError
from services.faults.armed import faults_of
from services.resources import collect_garbage_seldom
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import Channels
from services.rpc.faults import client_interceptors, server_interceptors
from services.rpc.server import listen, new_server
from services.rpc.tls import Tls, tls_of
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.admin_server import serve_admin
from services.telemetry.clock import SystemClock
from services.telemetry.logs import get_logger
from services.telemetry.metrics import WorkerMetrics, counter_values
from services.transfer.faults import with_faults
from services.transfer.loop import NoticeHandler, TransferThread
from services.transfer.nixl import NixlOptions
from services.transfer.open import TransportOptions, open_transport
from services.transfer.tcp import TcpOptions
from services.transfer.transport import Transport
from services.worker.admin import AdminServicer, Service
from services.worker.arrivals import Arrivals
from services.worker.building import Built, build
from services.worker.cache_feed import CacheFeed
from services.worker.engine_thread import EngineThread
from services.worker.exporter import Exporter
from services.worker.grammar_compiler import GrammarCompiler
from services.worker.grammar_trial import GrammarSetup, TrialProcess
from services.worker.kept_blocks import KeptBlocks
from services.worker.kv_service import KVServicer
from services.worker.node import Node
from services.worker.quarantine import excess_of_quarantine
from services.worker.seal import Sealer
from services.worker.settings import WorkerSettings
from services.worker.settling import Settling
from services.worker.step_metrics import StepMetrics
from services.worker.throughput import Throughput
from services.worker.warm_up import warm_up

_log = get_logger(__name__)
_CLOSE_TIMEOUT_S = 10.0
_EXPORTS_TIMEOUT_S = 1.0
"""For pushes that a drain has not seen to their end."""
_LOAD_REFRESH_S = 1.0
_NOTE_INTERVAL_S = 2.0


@dataclass
class _State:
    is_ready: bool = False
    is_broken: bool = False
    is_unhealthy: bool = False
    """It still serves, but is to be replaced."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def ready(self) -> bool:
        return self.is_ready

    def live(self) -> bool:
        return not self.is_broken and not self.is_unhealthy

    def break_down(self) -> None:
        self.is_broken = True
        self.stop.set()

    def retire(self) -> None:
        self.is_unhealthy = True
        self.stop.set()


@dataclass
class WorkerHost:
    """A worker that is up but not in the cluster yet: the service registers with ``server``, then calls ``run``."""

    node: Node
    channels: Channels
    metrics: WorkerMetrics
    exporter: Exporter
    kept: KeptBlocks
    arrivals: Arrivals
    settling: Settling
    registry: RedisRegistry
    server: grpc.aio.Server
    address: str
    _settings: WorkerSettings
    _prometheus: CollectorRegistry
    _state: _State

    async def run(self, service: Service) -> None:
        """Serve until SIGTERM, SIGINT or a defect, then drain, leave and return."""
        health = grpc_health.HealthServicer()
        presence = Presence(
            self.registry,
            self._member(),
            self.node.card,
            load=lambda: self.node.load_with(service.num_live),
            clock=self.node.clock,
        )
        admin = AdminServicer(
            self.node,
            service,
            announce=lambda: self._announce(presence, health),
            drain_timeout_s=self._settings.drain_timeout_s,
            counters=lambda: counter_values(self._prometheus),
        )
        tandem_pb2_grpc.add_AdminServicer_to_server(admin, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(health, self.server)
        await self.server.start()
        await warm_up(self.node)
        collect_garbage_seldom()
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        async with presence, asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(self._refresh_load()), tasks.create_task(self._drain_when_asked(admin))]
            self._state.is_ready = True
            await self._state.stop.wait()
            _log.event("worker.draining", live=service.num_live)
            remaining = await admin.drain(self._settings.drain_timeout_s)
            _log.event("worker.drained", remaining=remaining)
            for task in beside:
                task.cancel()

    async def _announce(self, presence: Presence, health: grpc_health.HealthServicer) -> None:
        """Tell everybody that this worker leaves, and give them time to hear it."""
        self._state.is_ready = False
        self.metrics.is_draining.set(1)
        await presence.drain()
        if not self._state.is_broken:
            await self.node.clock.sleep(self._settings.drain_delay_s)
        await health.enter_graceful_shutdown()

    async def _drain_when_asked(self, admin: AdminServicer) -> None:
        """Do what ``Admin.Drain`` does when a note in the registry asks for it; the process stays until SIGTERM."""
        while not await self._is_asked_to_leave():
            await self.node.clock.sleep(_NOTE_INTERVAL_S)
        _log.event("worker.asked_to_leave", member=self.node.member_id)
        await admin.drain(self._settings.drain_timeout_s)

    async def _is_asked_to_leave(self) -> bool:
        try:
            return await self.registry.is_asked_to_leave(self.node.member_id)
        except StateUnavailable:
            return False  # nobody can have asked; the presence says that the registry is away

    def _member(self) -> Member:
        return Member(
            member_id=self.node.member_id,
            role=self.node.role,
            address=self.address,
            model_name=self.node.card.model_name,
            card_digest=self.node.card.digest,
            fingerprint=self.node.layout.fingerprint,
            transport=self._settings.transport,
            protocol_version=PROTOCOL_VERSION,
            layout_version=self.node.layout.version,
            max_sequences=self.node.engine.max_sequences,
        )

    async def _refresh_load(self) -> None:
        """Keep the published load and ledger fresh; a ledger that contradicts itself ends the worker."""
        while True:
            try:
                snapshot = await self.node.audit_of_changes()
            except InternalError as error:
                _log.failure("ledger.broken", error)
                return self._state.break_down()
            except TandemError:
                return  # the engine failed, which stops this worker in its own way
            self.metrics.set_ledger(snapshot.ledger.by_claim())
            reason = excess_of_quarantine(snapshot.ledger, self._settings.max_quarantined_share)
            if reason is not None and not self._state.is_unhealthy:
                _log.warning("worker.unhealthy", reason=reason)
                self._state.retire()
            self.metrics.running.set(snapshot.load.num_running)
            self.metrics.waiting.set(snapshot.load.num_waiting)
            self.metrics.queued_tokens.set(snapshot.load.num_queued_tokens)
            self.metrics.parked_blocks.set(snapshot.load.num_parked_blocks)
            await self.node.clock.sleep(_LOAD_REFRESH_S)


@asynccontextmanager
async def open_host(
    settings: WorkerSettings,
    role: Role,
    *,
    prometheus: CollectorRegistry,
    metrics: WorkerMetrics,
) -> AsyncIterator[WorkerHost]:
    """Bring a worker up, from the admin port to the gRPC server, and take everything down again.

    Raises:
        ConfigurationError, ModelRefused: this worker cannot run; the text says why.
        InternalError: the engine failed while it ran.
    """
    clock, state = SystemClock(), _State()
    _stop_on_signals(state)
    async with AsyncExitStack() as stack:
        serving = serve_admin(settings.admin_host, settings.admin_port, prometheus, state.ready, liveness=state.live)
        admin = await stack.enter_async_context(serving)
        secret, faults = load_or_create_secret(settings.secret_file.expanduser()), faults_of(settings.fault_plan)
        built = await asyncio.to_thread(build, settings, clock=clock)
        tls = tls_of(settings)
        server = new_server(secret, interceptors=server_interceptors(faults, clock))
        address = _bind(stack, settings, server, tls)
        channels = Channels(secret, tls, interceptors=client_interceptors(faults, clock))
        registry = RedisRegistry(settings.redis_url, secret, clock)
        stack.push_async_callback(channels.close)
        stack.push_async_callback(registry.close)
        sealer, throughput = Sealer(built.cache.block_view, enabled=settings.payload_digests), Throughput()
        cache_feed, arrivals = CacheFeed(clock), Arrivals(metrics)
        transport = with_faults(_transport(built, settings, secret), faults, built.memory, clock)
        node = Node(
            member_id=f"{role.value}-{secrets.token_hex(4)}",
            role=role,
            card=built.card,
            layout=built.layout,
            engine=_engine_thread(stack, built, sealer, cache_feed, StepMetrics(metrics, throughput), state),
            cache_feed=cache_feed,
            grammars=_grammar_compiler(stack, built, settings, role),
            transfers=_transfer_thread(stack, transport, arrivals.on_notice),
            sealer=sealer,
            throughput=throughput,
            clock=clock,
        )
        exporter, kept = _kv_service(stack, node, metrics, server, settings)
        settling = _settling(stack, node, channels, metrics, settings)
        _log.event("worker.listening", member=node.member_id, address=address, admin_port=admin.port)
        moving = (exporter, kept, arrivals, settling)
        yield WorkerHost(node, channels, metrics, *moving, registry, server, address, settings, prometheus, state)
    if state.is_broken:
        raise InternalError("The engine failed; the log has the details.")


def _kv_service(
    stack: AsyncExitStack, node: Node, metrics: WorkerMetrics, server: grpc.aio.Server, settings: WorkerSettings
) -> tuple[Exporter, KeptBlocks]:
    """Let others see and fetch blocks; return what pushes them and what keeps them."""
    stack.callback(node.cache_feed.close)
    exporter, kept = Exporter(node, metrics, push_timeout_s=settings.push_timeout_s), KeptBlocks(node)
    stack.push_async_callback(exporter.close, _EXPORTS_TIMEOUT_S)
    stack.push_async_callback(kept.close)
    servicer = KVServicer(node, exporter, kept, max_waiting=settings.max_waiting)
    tandem_pb2_grpc.add_KVServicer_to_server(servicer, server)
    return exporter, kept


def _settling(
    stack: AsyncExitStack, node: Node, channels: Channels, metrics: WorkerMetrics, settings: WorkerSettings
) -> Settling:
    settling = Settling(node, channels, metrics, grace_s=settings.settle_grace_s)
    stack.push_async_callback(settling.close)
    return settling


def _stop_on_signals(state: _State) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, state.stop.set)


def _engine_thread(
    stack: AsyncExitStack, built: Built, sealer: Sealer, cache_feed: CacheFeed, on_step: StepMetrics, state: _State
) -> EngineThread:
    engine = EngineThread(
        built.engine,
        clock=SystemClock(),
        seal=sealer.seal,
        on_step=on_step,
        on_cache_change=cache_feed.changed,
        on_defect=state.break_down,
    )
    stack.push_async_callback(engine.close, _CLOSE_TIMEOUT_S)
    return engine


def _grammar_compiler(stack: AsyncExitStack, built: Built, settings: WorkerSettings, role: Role) -> GrammarCompiler:
    """Grammars are tried where requests come in; a prefill worker is asked for what its decode worker has compiled."""
    setup = GrammarSetup(built.card.tokenizer_json, built.card.vocab_size, built.card.eos_token_ids)
    trial = TrialProcess(setup, timeout_s=settings.grammar_timeout_s) if role is Role.DECODE else None
    grammars = GrammarCompiler(built.grammars, trial)
    stack.push_async_callback(grammars.close)
    return grammars


def _transport(built: Built, settings: WorkerSettings, secret: bytes) -> Transport:
    listen = TcpOptions(secret=secret, listen_host=settings.host, advertised_host=settings.advertise_host)
    return open_transport(
        settings.transport,
        agent=f"tandem-{secrets.token_hex(8)}",
        fingerprint=built.layout.fingerprint,
        memory=built.memory,
        options=TransportOptions(tcp=listen, nixl=NixlOptions(secret=secret)),
    )


def _transfer_thread(stack: AsyncExitStack, transport: Transport, on_notice: NoticeHandler) -> TransferThread:
    transfers = TransferThread(transport, on_notice=on_notice)
    transfers.start()
    stack.push_async_callback(transfers.close, _CLOSE_TIMEOUT_S)
    return transfers


def _bind(stack: AsyncExitStack, settings: WorkerSettings, server: grpc.aio.Server, tls: Tls | None) -> str:
    """Bind before there is anything to push with: a port that refuses means that no write can come any more."""
    try:
        port = listen(server, f"{settings.host}:{settings.port}", tls)
    except RuntimeError as error:
        raise ConfigurationError(f"The port {settings.host}:{settings.port} cannot be used.", param="port") from error
    stack.push_async_callback(server.stop, _CLOSE_TIMEOUT_S)
    return f"{settings.advertise_host or settings.host}:{port}"
