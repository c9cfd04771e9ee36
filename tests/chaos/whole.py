"""A gateway behind a real socket, in front of a cluster with real engines, all in one process."""

import asyncio
import socket
import string
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import httpx
from prometheus_client import CollectorRegistry
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from services.cluster.memory import MemoryRegistry
from services.cluster.view import MemberView
from services.gateway.__main__ import Gateway, Surroundings, build
from services.gateway.admission.ledger import MemoryShareLedger
from services.gateway.answering.decode_client import GrpcDecodeClient
from services.gateway.answering.timeline import MemoryTimelineStore
from services.gateway.embeddings.client import GrpcEmbeddingClient
from services.gateway.keys import MemoryKeyStore
from services.gateway.routing.cache_client import GrpcCacheClient
from services.gateway.routing.health_client import GrpcHealthClient
from services.gateway.settings import GatewaySettings
from services.gateway.web.server import HttpServer
from services.kv.card import ModelCard
from services.telemetry.clock import SystemClock
from services.telemetry.metrics import GatewayMetrics
from tests.gateway.twins import END_ID, SPECIAL_TOKENS, absent_objects, card, member
from tests.inprocess.cluster import CONTEXT_LENGTH, Cluster, cluster
from tests.inprocess.hash_model import BLOCK_SIZE, VOCAB_SIZE

DEADLINE_S = 30.0


@dataclass
class Whole:
    """What a test talks to, and where it looks for what was left behind."""

    gateway: Gateway
    workers: Cluster
    client: httpx.AsyncClient
    port: int
    metrics: CollectorRegistry

    async def assert_nothing_left(self) -> None:
        """No request is open or waits, and no block, stream, attempt or call is held by any worker."""
        async with asyncio.timeout(DEADLINE_S):
            while self.gateway.drain.num_open:
                await asyncio.sleep(0.001)
        assert self.metrics.get_sample_value("tandem_requests_waiting") == 0
        await self.workers.settled()
        assert not any(worker.defects for worker in (*self.workers.decodes, *self.workers.prefills))

    async def send(self, data: bytes, *, half_close: bool = True, deadline_s: float = DEADLINE_S) -> bytes:
        """Send raw bytes and return everything until the gateway hangs up."""
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(data)
                if half_close:
                    writer.write_eof()
                return await reader.read()
            except ConnectionError:
                return b""
            finally:
                writer.close()


def character_tokenizer() -> str:
    """A token per printable character and three markers: as many as the model of the in-process cluster has."""
    characters = [c for c in string.printable if c not in "\x0b\x0c\r"][: VOCAB_SIZE - len(SPECIAL_TOKENS)]
    vocab = {text: index for index, text in enumerate([*SPECIAL_TOKENS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL_TOKENS])
    return tokenizer.to_str()


def model_card(workers: Cluster) -> ModelCard:
    known = workers.decode.node.card
    return card(
        fingerprint=known.fingerprint,
        numerics_class=known.numerics_class,
        context_length=CONTEXT_LENGTH,
        vocab_size=VOCAB_SIZE,
        block_size=BLOCK_SIZE,
        block_bytes=known.block_bytes,
        eos_token_ids=(END_ID,),
        tokenizer_json=character_tokenizer(),
    )


@asynccontextmanager
async def whole(**changes: Any) -> AsyncIterator[Whole]:
    """One gateway, one decode and one prefill worker; ``changes`` are settings of the gateway."""
    clock = SystemClock()
    with ThreadPoolExecutor(2) as executor:
        async with cluster(decode={"prefill_step_timeout_s": 5.0, "reserve_timeout_s": 5.0}) as workers:
            view = MemberView(registry := MemoryRegistry(clock, lease_s=1e9), clock)
            model = model_card(workers)
            for worker in (*workers.decodes, *workers.prefills):
                joining = member(worker.node.member_id, worker.node.role, model=model, load=worker.node.load_with(0))
                await registry.join(replace(joining, address=worker.address), model)
            await view.refresh()
            metrics = CollectorRegistry()
            around = Surroundings(
                view=view,
                client=GrpcDecodeClient(workers.channels),
                embedder=GrpcEmbeddingClient(workers.channels),
                caches=GrpcCacheClient(workers.channels),
                health=GrpcHealthClient(workers.channels),
                keys=MemoryKeyStore(clock),
                timelines=MemoryTimelineStore(clock, 900),
                shares=MemoryShareLedger(clock),
                objects=absent_objects(),
                executor=executor,
                secret=b"a secret of tests",
                registry=metrics,
                metrics=GatewayMetrics(metrics),
                clock=clock,
                random=Random(1),
            )
            port = _free_port()
            settings = GatewaySettings(port=port, serve_admin_on_main=True, **changes)
            gateway = build(settings, around)
            server = HttpServer(gateway.app, settings, gateway.drain)
            serving = asyncio.create_task(server.run())
            async with gateway.recorder, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None) as client:
                await _until_listening(port)
                yield Whole(gateway, workers, client, port, metrics)
            server._on_signal()
            await asyncio.wait_for(serving, DEADLINE_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until_listening(port: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            return
