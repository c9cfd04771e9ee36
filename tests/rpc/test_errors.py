import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import pytest

from services import errors
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import Channels
from services.rpc.errors import translated
from services.rpc.server import new_server

SECRET = b"cluster secret"


def tree(root: type[errors.TandemError]) -> list[type[errors.TandemError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in tree(child))]


class Raising(tandem_pb2_grpc.DecodeServicer):
    def __init__(self) -> None:
        self.error: Exception = errors.InternalError("unset")
        self.closed = 0

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncGenerator[pb.GenerateEvent, None]:
        try:
            yield pb.GenerateEvent(accepted=pb.Accepted(cached_tokens=1))
            if request.request_id == "forever":
                await asyncio.Event().wait()
            raise self.error
        finally:
            self.closed += 1


@pytest.fixture
async def served() -> AsyncIterator[tuple[Raising, str]]:
    servicer, server = Raising(), new_server(SECRET)
    tandem_pb2_grpc.add_DecodeServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


async def outcome(address: str, secret: bytes = SECRET) -> errors.TandemError:
    channels = Channels(secret)
    try:
        with pytest.raises(errors.TandemError) as caught, translated():
            async for _ in channels.decode(address).Generate(pb.GenerateRequest(), timeout=10):
                pass
        return caught.value
    finally:
        await channels.close()


def test_every_error_has_its_own_code() -> None:
    codes = [kind.code for kind in tree(errors.TandemError) if kind is not errors.InternalError]
    assert len(codes) == len({*codes})


@pytest.mark.parametrize("kind", tree(errors.TandemError)[1:], ids=lambda kind: kind.__name__)
async def test_the_same_class_comes_out_at_the_other_side(
    served: tuple[Raising, str], kind: type[errors.TandemError]
) -> None:
    servicer, address = served
    servicer.error = kind("why é", param="top_p", retry_after_s=2.5)
    error = await outcome(address)
    assert type(error) is kind
    assert (error.message, error.param, error.retry_after_s) == ("why é", "top_p", 2.5)


async def test_a_defect_is_answered_without_its_details(served: tuple[Raising, str]) -> None:
    servicer, address = served
    servicer.error = RuntimeError("password")
    error = await outcome(address)
    assert type(error) is errors.InternalError
    assert "password" not in error.message


async def test_a_caller_without_the_secret_is_refused_before_the_servicer(served: tuple[Raising, str]) -> None:
    servicer, address = served
    assert type(await outcome(address, b"guess")) is errors.AuthenticationFailed
    assert servicer.closed == 0


async def test_nobody_listening_is_a_gone_peer(served: tuple[Raising, str], unused_tcp_port: int) -> None:
    assert type(await outcome(f"127.0.0.1:{unused_tcp_port}")) is errors.PeerGone


async def test_a_cancelled_call_closes_the_servicers_generator(served: tuple[Raising, str]) -> None:

    servicer, address = served
    channels = Channels(SECRET)
    call = channels.decode(address).Generate(pb.GenerateRequest(request_id="forever"), timeout=10)
    assert isinstance(await call.read(), pb.GenerateEvent)
    call.cancel()
    async with asyncio.timeout(30):
        while not servicer.closed:
            await asyncio.sleep(0.01)
    await channels.close()
    assert isinstance(call, grpc.aio.Call)
