"""One embedding worker from start to end.

admin port -> model folder, if it can be had -> gRPC -> join ... SIGTERM ... drain -> leave -> close
"""

import asyncio
import os
import secrets
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health

from services.cluster.presence import Presence
from services.cluster.redis_registry import RedisRegistry
from services.cluster.registry import Member, Role
from services.cluster.secret import load_or_create_secret
from services.embed.card import card_of
from services.embed.model import SentenceEncoder
from services.embed.service import EmbedAdminServicer, EmbeddingServicer
from services.embed.settings import EmbedSettings
from services.embed.source import find_model
from services.embed.work import EmbeddingWork
from services.engine.weights.sources import ModelFolder
from services.errors import ConfigurationError
from services.kv.card import ModelCard
from services.rpc import tandem_pb2_grpc
from services.rpc.server import listen, new_server
from services.rpc.tls import tls_of
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.admin_server import serve_admin
from services.telemetry.clock import SystemClock
from services.telemetry.logs import get_logger
from services.telemetry.metrics import EmbedMetrics, counter_values, process_registry

_CLOSE_TIMEOUT_S = 10.0

_log = get_logger(__name__)


class EmbedHost:
    """The life of one process."""

    def __init__(self, settings: EmbedSettings) -> None:
        self._settings = settings
        self._clock = SystemClock()
        self._stop = asyncio.Event()
        self._is_ready = False
        self._prometheus = process_registry()
        self._metrics = EmbedMetrics(self._prometheus)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; without a model, wait for one.

        Raises:
            ConfigurationError: a port cannot be used, or the model's folder is damaged.
        """
        settings = self._settings
        os.nice(settings.niceness)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        serving = serve_admin(settings.admin_host, settings.admin_port, self._prometheus, lambda: self._is_ready)
        async with serving:
            folder = await self._found()
            if folder is not None:
                await self._serve(folder)

    async def _found(self) -> ModelFolder | None:
        """Return the model's folder as soon as it can be had; None if the process is told to leave before."""
        while not self._stop.is_set():
            try:
                return await asyncio.to_thread(self._find)
            except ConfigurationError as error:
                _log.warning("embedding.off", reason=error.message, next_try_s=self._settings.retry_s)
            try:
                async with asyncio.timeout(self._settings.retry_s):
                    await self._stop.wait()
            except TimeoutError:
                continue
        return None

    def _find(self) -> ModelFolder:
        return find_model(
            self._settings.embedding_model,
            cache_dir=self._settings.cache_dir,
            progress=lambda text, share: _log.event("embedding.model", step=text),
        )

    async def _serve(self, found: ModelFolder) -> None:
        settings = self._settings
        card = await asyncio.to_thread(card_of, found.path, settings.embedding_name or found.name)
        secret, tls = load_or_create_secret(settings.secret_file.expanduser()), tls_of(settings)
        server = new_server(secret)
        try:
            port = listen(server, f"{settings.host}:{settings.port}", tls)
        except RuntimeError as error:
            text = f"The port {settings.host}:{settings.port} cannot be used."
            raise ConfigurationError(text, param="port") from error
        async with AsyncExitStack() as stack:
            work = await stack.enter_async_context(self._work(found.path))
            stack.push_async_callback(server.stop, _CLOSE_TIMEOUT_S)
            registry = RedisRegistry(settings.redis_url, secret, self._clock)
            stack.push_async_callback(registry.close)
            service = EmbeddingServicer(card, work)
            member = _member(card, f"{settings.advertise_host or settings.host}:{port}")
            presence = Presence(registry, member, card, load=lambda: service.load, clock=self._clock)
            await self._run_server(server, service, member, presence)

    def _work(self, folder: Path) -> EmbeddingWork:
        settings = self._settings
        return EmbeddingWork(
            lambda: SentenceEncoder(folder, device=settings.device, threads=settings.threads),
            max_batch_tokens=settings.max_batch_tokens,
            max_waiting=settings.max_waiting,
            on_tokens=self._metrics.tokens.inc,
        )

    async def _run_server(
        self, server: grpc.aio.Server, service: EmbeddingServicer, member: Member, presence: Presence
    ) -> None:
        health = grpc_health.HealthServicer()
        admin = EmbedAdminServicer(
            member.member_id,
            service,
            announce=lambda: self._announce(presence, health),
            drain_timeout_s=self._settings.drain_timeout_s,
            counters=lambda: counter_values(self._prometheus),
        )
        tandem_pb2_grpc.add_EmbeddingServicer_to_server(service, server)
        tandem_pb2_grpc.add_AdminServicer_to_server(admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        await server.start()
        await health.set("", health_pb2.HealthCheckResponse.SERVING)
        async with presence:
            self._is_ready = True
            _log.event("embedding.listening", member=member.member_id, address=member.address)
            await self._stop.wait()
            remaining = await admin.drain(self._settings.drain_timeout_s)
            _log.event("embedding.drained", remaining=remaining)

    async def _announce(self, presence: Presence, health: grpc_health.HealthServicer) -> None:
        self._is_ready = False
        await presence.drain()
        await self._clock.sleep(self._settings.drain_delay_s)
        await health.enter_graceful_shutdown()


def _member(card: ModelCard, address: str) -> Member:
    return Member(
        member_id=f"{Role.EMBED.value}-{secrets.token_hex(4)}",
        role=Role.EMBED,
        address=address,
        model_name=card.model_name,
        card_digest=card.digest,
        fingerprint=card.fingerprint,
        transport="none",
        protocol_version=PROTOCOL_VERSION,
        max_sequences=1,
    )
