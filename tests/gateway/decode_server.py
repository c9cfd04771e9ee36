"""A real gRPC server that plays the decode twin's scripts."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.server import new_server
from tests.gateway.twins import DecodeTwin

SECRET = b"0123456789abcdef" * 2


class Servicer(tandem_pb2_grpc.DecodeServicer):
    def __init__(self, twin: DecodeTwin) -> None:
        self._twin = twin

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncGenerator[pb.GenerateEvent, None]:
        async with aclosing(self._twin.generate("server", request)) as events:
            async for event in events:
                yield event


@asynccontextmanager
async def serving(twin: DecodeTwin) -> AsyncIterator[str]:
    """Serve on a free port of this host; yields the address."""
    server = new_server(SECRET)
    tandem_pb2_grpc.add_DecodeServicer_to_server(Servicer(twin), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
