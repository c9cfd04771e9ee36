"""The decode process: ``python -m services.decode`` or ``tandem decode``."""

import asyncio
import sys
from collections.abc import Sequence

from services.cluster.registry import Role
from services.cluster.view import MemberView
from services.config import load
from services.decode.arrivals import Arrivals
from services.decode.policy import PrefillPolicy
from services.decode.prompt import PromptServices
from services.decode.reserving import Reserving
from services.decode.service import DecodeServicer
from services.decode.settings import DecodeSettings
from services.decode.settling import Settling
from services.decode.warm_pairs import WarmPairs
from services.rpc import tandem_pb2_grpc
from services.telemetry.logs import configure_logging
from services.telemetry.metrics import WorkerMetrics, process_registry
from services.worker.host import WorkerHost, open_host


def main(argv: Sequence[str] | None = None) -> int:
    """Run a decode worker until it is told to stop."""
    settings = load(DecodeSettings, sys.argv[1:] if argv is None else argv, prog="tandem decode").settings
    configure_logging(level=settings.log_level, as_json=settings.log_json, process="decode")
    asyncio.run(serve(settings))
    return 0


async def serve(settings: DecodeSettings) -> None:
    """Serve until SIGTERM."""
    prometheus = process_registry()
    metrics = WorkerMetrics(prometheus)
    arrivals = Arrivals(metrics)
    host = open_host(
        settings,
        Role.DECODE,
        max_reserved_share=settings.max_reserved_share,
        on_notice=arrivals.on_notice,
        prometheus=prometheus,
        metrics=metrics,
    )
    async with host as worker:
        await _serve(worker, settings, arrivals)


async def _serve(worker: WorkerHost, settings: DecodeSettings, arrivals: Arrivals) -> None:
    settling = Settling(worker.node, worker.channels, grace_s=settings.settle_grace_s)
    services = PromptServices(
        node=worker.node,
        channels=worker.channels,
        arrivals=arrivals,
        settling=settling,
        reserving=Reserving(worker.node, timeout_s=settings.reserve_timeout_s, max_waiting=settings.max_waiting),
        policy=PrefillPolicy(
            always_local_tokens=settings.local_prefill_tokens,
            max_mixed_prefill_tokens=settings.max_mixed_prefill_tokens,
        ),
        settings=settings,
        metrics=worker.metrics,
    )
    servicer = DecodeServicer(services)
    tandem_pb2_grpc.add_DecodeServicer_to_server(servicer, worker.server)
    async with MemberView(worker.registry, worker.node.clock) as view, WarmPairs(worker.node, worker.channels, view):
        await worker.run(servicer)
    await settling.close()


if __name__ == "__main__":
    sys.exit(main())
