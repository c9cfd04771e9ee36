"""Asks workers over gRPC health."""

import grpc
from grpc_health.v1 import health_pb2

from services.rpc.channel import Channels


class GrpcHealthClient:
    """Calls over ``channels``."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def is_serving(self, address: str, timeout_s: float) -> bool:
        """Return whether the process at ``address`` answers in time that it serves."""
        try:
            reply = await self._channels.health(address).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
