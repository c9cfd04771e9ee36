"""The decode process: ``python -m services.decode`` or ``tandem decode``."""

import asyncio
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.cluster.registry import Member, Role
from services.cluster.view import MemberView
from services.config import load
from services.decode.handover import Handover
from services.decode.policy import PrefillPolicy
from services.decode.prompt import PromptServices
from services.decode.reserving import Reserving
from services.decode.service import DecodeServicer
from services.decode.settings import DecodeSettings
from services.decode.warm_pairs import WarmPairs
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import Channels
from services.rpc.versions import understands
from services.telemetry.defects import count_defects
from services.telemetry.logs import configure_logging
from services.telemetry.metrics import WorkerMetrics, process_registry
from services.worker.arrivals import Arrivals
from services.worker.host import WorkerHost, open_host
from services.worker.node import Node
from services.worker.settling import Settling


def main(argv: Sequence[str] | None = None) -> int:
    """Run a decode worker until it is told to stop."""
    settings = load(DecodeSettings, sys.argv[1:] if argv is None else argv, prog="tandem decode").settings
    configure_logging(level=settings.log_level, as_json=settings.log_json, process="decode")
    asyncio.run(serve(settings))
    return 0


async def serve(settings: DecodeSettings) -> None:
    """Serve until SIGTERM."""
    prometheus = process_registry()
    count_defects(prometheus)
    metrics = WorkerMetrics(prometheus)
    async with open_host(settings, Role.DECODE, prometheus=prometheus, metrics=metrics) as worker:
        await _serve(worker, settings)


async def _serve(worker: WorkerHost, settings: DecodeSettings) -> None:
    node, channels = worker.node, worker.channels
    incoming = Incoming(worker.arrivals, worker.settling, own_address=worker.address)
    services = prompt_services(node, channels, incoming, worker.metrics, settings)
    view = MemberView(worker.registry, node.clock)
    handover = Handover(
        node, worker.kept, worker.metrics, settings=settings, room=lambda: _room_elsewhere(node, view.members())
    )
    servicer = DecodeServicer(services, worker.exporter, handover)
    tandem_pb2_grpc.add_DecodeServicer_to_server(servicer, worker.server)
    async with (
        view,
        WarmPairs(node, channels, view),
    ):
        await worker.run(servicer)


def _room_elsewhere(node: Node, members: Iterable[Member]) -> int:
    """Return how many blocks decode workers like this one have to spare."""
    num_blocks = 0
    for member in members:
        is_other = member.role is Role.DECODE and member.member_id != node.member_id and not member.draining
        if is_other and member.fingerprint == node.layout.fingerprint and understands(member.protocol_version):
            num_blocks += max(0, member.load.available_blocks - member.load.running)  # each will grow
    return num_blocks


@dataclass(frozen=True)
class Incoming:
    """What a worker has for blocks that come, and where peers find it."""

    arrivals: Arrivals
    settling: Settling
    own_address: str


def prompt_services(
    node: Node, channels: Channels, incoming: Incoming, metrics: WorkerMetrics, settings: DecodeSettings
) -> PromptServices:
    """Return what the prompts of one worker share."""
    return PromptServices(
        node=node,
        channels=channels,
        arrivals=incoming.arrivals,
        settling=incoming.settling,
        own_source=pb.KVSource(member_id=node.member_id, address=incoming.own_address),
        reserving=Reserving(node, timeout_s=settings.reserve_timeout_s),
        policy=PrefillPolicy(
            always_local_tokens=settings.local_prefill_tokens,
            max_local_tokens=settings.max_local_prefill_tokens,
            max_mixed_prefill_tokens=settings.max_mixed_prefill_tokens,
        ),
        settings=settings,
        metrics=metrics,
    )


if __name__ == "__main__":
    sys.exit(main())
