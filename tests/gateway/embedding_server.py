"""A real gRPC server in which the twin of an embedding worker answers, and its membership."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from services.cluster.redis_registry import RedisRegistry
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.server import new_server
from services.telemetry.clock import SystemClock
from tests.gateway.decode_server import SECRET
from tests.gateway.embedding_twin import EmbeddingTwin, embedding_card, embedding_member


class Servicer(tandem_pb2_grpc.EmbeddingServicer):
    def __init__(self, twin: EmbeddingTwin) -> None:
        self._twin = twin

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedReply:
        return await self._twin.embed("server", request, 0.0)


@asynccontextmanager
async def embedding_worker(redis_url: str) -> AsyncIterator[EmbeddingTwin]:
    """Serve on a free port of this host as a member of the cluster at ``redis_url``."""
    twin, server = EmbeddingTwin(), new_server(SECRET)
    tandem_pb2_grpc.add_EmbeddingServicer_to_server(Servicer(twin), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    registry = RedisRegistry(redis_url, SECRET, SystemClock(), lease_s=600, timeout_s=30.0)
    try:
        await registry.join(replace(embedding_member(), address=f"127.0.0.1:{port}"), embedding_card())
        yield twin
    finally:
        await registry.close()
        await server.stop(None)
