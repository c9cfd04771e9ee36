"""The worker process: a real decode servicer over a stub engine; joins, and serves until it is killed."""

import argparse
import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from bench.front.model import BLOCK_SIZE, CONTEXT_LENGTH, NUM_STEPS, StubModel, StubSampler, card, layout
from services.cluster.presence import Presence
from services.cluster.redis_registry import RedisRegistry
from services.cluster.registry import Member, Role
from services.cluster.secret import load_or_create_secret
from services.decode.__main__ import Incoming, prompt_services
from services.decode.handover import Handover
from services.decode.service import DecodeServicer
from services.decode.settings import DecodeSettings
from services.engine.engine import Engine
from services.engine.grammar import NoGrammars
from services.engine.limits import SchedulerConfig
from services.engine.scheduler import Scheduler
from services.resources import collect_garbage_seldom
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import Channels
from services.rpc.server import new_server
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.clock import SystemClock
from services.telemetry.metrics import WorkerMetrics
from services.transfer.inproc import InProcessFabric, InProcessTransport
from services.transfer.loop import TransferThread
from services.transfer.memory import allocate
from services.worker.arrivals import Arrivals
from services.worker.cache_feed import CacheFeed
from services.worker.engine_thread import EngineThread
from services.worker.exporter import Exporter
from services.worker.grammar_compiler import GrammarCompiler
from services.worker.kept_blocks import KeptBlocks
from services.worker.kv_service import KVServicer
from services.worker.node import Node
from services.worker.seal import Sealer
from services.worker.settling import Settling
from services.worker.step_metrics import StepMetrics
from services.worker.throughput import Throughput

MEMBER_ID = "decode-stub"
MAX_RUNNING = 1024
NUM_BLOCKS = 64_000
CLOSE_TIMEOUT_S = 5.0


def scheduler() -> Scheduler:
    """Return a scheduler with room for everybody."""
    return Scheduler(
        SchedulerConfig(
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            context_length=CONTEXT_LENGTH,
            max_step_tokens=MAX_RUNNING + 1024,
            max_mixed_prefill_tokens=1024,
            max_running=MAX_RUNNING,
        )
    )


def engine_thread(
    sampler: Callable[[Callable[[], int]], StubSampler],
    metrics: WorkerMetrics,
    throughput: Throughput,
    cache_feed: CacheFeed,
) -> EngineThread:
    """Return the thread of the stub engine; its sampler knows how many tokens nobody has taken."""
    threads: list[EngineThread] = []
    waiting = sampler(lambda: threads[0].unread.count)
    threads.append(
        EngineThread(
            Engine(StubModel(), waiting, scheduler()),
            clock=SystemClock(),
            seal=lambda final: final,
            on_step=StepMetrics(metrics, throughput),
            on_cache_change=cache_feed.changed,
            on_defect=lambda: None,
        )
    )
    return threads[0]


async def serve(redis_url: str, secret: bytes, made_at: np.ndarray, interval_s: float) -> None:
    """Serve until cancelled."""
    clock, metrics, throughput = SystemClock(), WorkerMetrics(CollectorRegistry()), Throughput()
    settings = DecodeSettings(model="stub", local_prefill_tokens=CONTEXT_LENGTH)
    arrivals, cache_feed = Arrivals(metrics), CacheFeed(clock)
    async with AsyncExitStack() as stack:
        engine = engine_thread(
            lambda num_unread: StubSampler(num_unread, made_at, interval_s), metrics, throughput, cache_feed
        )
        stack.push_async_callback(engine.close, CLOSE_TIMEOUT_S)
        memory = allocate(1, layout().block_bytes)
        transport = InProcessTransport(
            agent=MEMBER_ID, fingerprint=layout().fingerprint, memory=memory, fabric=InProcessFabric()
        )
        transfers = TransferThread(transport, on_notice=arrivals.on_notice)
        transfers.start()
        stack.push_async_callback(transfers.close, CLOSE_TIMEOUT_S)
        node = Node(
            member_id=MEMBER_ID,
            role=Role.DECODE,
            card=card(),
            layout=layout(),
            engine=engine,
            cache_feed=cache_feed,
            grammars=GrammarCompiler(NoGrammars()),
            transfers=transfers,
            sealer=Sealer(memory.block, enabled=False),
            throughput=throughput,
            clock=clock,
        )
        channels = Channels(secret)
        stack.push_async_callback(channels.close)
        server = new_server(secret)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        exporter, kept = Exporter(node, metrics, push_timeout_s=settings.push_timeout_s), KeptBlocks(node)
        settling = Settling(node, channels, metrics, grace_s=0.0)
        incoming = Incoming(arrivals, settling, address)
        services = prompt_services(node, channels, incoming, metrics, settings)
        handover = Handover(node, kept, metrics, settings=settings, room=lambda: 0)
        servicer = DecodeServicer(services, exporter, handover)
        tandem_pb2_grpc.add_DecodeServicer_to_server(servicer, server)
        kv = KVServicer(node, exporter, kept, max_waiting=settings.max_waiting)
        tandem_pb2_grpc.add_KVServicer_to_server(kv, server)
        await server.start()
        stack.push_async_callback(server.stop, None)
        registry = RedisRegistry(redis_url, secret, clock)
        stack.push_async_callback(registry.close)
        load = lambda: node.load_with(servicer.num_live)  # noqa: E731
        await stack.enter_async_context(Presence(registry, _member(address), node.card, load=load, clock=clock))
        collect_garbage_seldom()
        await asyncio.Event().wait()


def _member(address: str) -> Member:
    return Member(
        member_id=MEMBER_ID,
        role=Role.DECODE,
        address=address,
        model_name=card().model_name,
        card_digest=card().digest,
        fingerprint=layout().fingerprint,
        transport="inproc",
        protocol_version=PROTOCOL_VERSION,
        max_sequences=MAX_RUNNING,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--secret-file", type=Path, required=True)
    parser.add_argument("--made-at", type=Path, required=True, help="file of NUM_STEPS float64 that takes the times")
    parser.add_argument("--interval-s", type=float, default=0.0, help="least time between two steps")
    options = parser.parse_args()
    made_at = np.memmap(options.made_at, dtype=np.float64, mode="r+", shape=(NUM_STEPS,))
    secret = load_or_create_secret(options.secret_file)
    asyncio.run(serve(options.redis_url, secret, made_at, options.interval_s))


if __name__ == "__main__":
    main()
