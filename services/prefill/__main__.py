"""The prefill process: ``python -m services.prefill`` or ``tandem prefill``."""

import asyncio
import sys
from collections.abc import Sequence

from services.cluster.registry import Role
from services.config import load
from services.prefill.service import PrefillServicer
from services.prefill.settings import PrefillSettings
from services.rpc import tandem_pb2_grpc
from services.telemetry.defects import count_defects
from services.telemetry.logs import configure_logging
from services.telemetry.metrics import WorkerMetrics, process_registry
from services.worker.host import open_host
from services.worker.pulling import Pulling


def main(argv: Sequence[str] | None = None) -> int:
    """Run a prefill worker until it is told to stop."""
    settings = load(PrefillSettings, sys.argv[1:] if argv is None else argv, prog="tandem prefill").settings
    configure_logging(level=settings.log_level, as_json=settings.log_json, process="prefill")
    asyncio.run(serve(settings))
    return 0


async def serve(settings: PrefillSettings) -> None:
    """Serve until SIGTERM."""
    prometheus = process_registry()
    count_defects(prometheus)
    metrics = WorkerMetrics(prometheus)
    host = open_host(
        settings,
        Role.PREFILL,
        prometheus=prometheus,
        metrics=metrics,
    )
    async with host as worker:
        pulling = Pulling(
            worker.node,
            worker.channels,
            worker.arrivals,
            worker.settling,
            min_tokens=settings.min_fetch_tokens,
            step_timeout_s=settings.fetch_step_timeout_s,
        )
        servicer = PrefillServicer(worker.node, settings, worker.exporter, pulling)
        tandem_pb2_grpc.add_PrefillServicer_to_server(servicer, worker.server)
        await worker.run(servicer)


if __name__ == "__main__":
    sys.exit(main())
