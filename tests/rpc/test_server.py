"""What a server answers to those who do not speak its language."""

from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest

from services.errors import InvalidRequest
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import MAX_MESSAGE_BYTES, MAX_METADATA_BYTES, SECRET_KEY, VERSION_KEY
from services.rpc.errors import CODE_KEY
from services.rpc.server import new_server
from services.rpc.versions import PROTOCOL_VERSION

SECRET = b"cluster secret"
METADATA = ((SECRET_KEY, SECRET), (VERSION_KEY, str(PROTOCOL_VERSION)))
SETTLE = "/tandem.v1.Prefill/Settle"
RUN = "/tandem.v1.Prefill/Run"
NO_MESSAGE = b"\xff\xff\xff"


class Talkative(tandem_pb2_grpc.PrefillServicer):
    async def Settle(self, request: pb.SettleRequest, context: Any) -> pb.SettleReply:
        raise InvalidRequest("x" * 100_000)


@pytest.fixture
async def channel() -> AsyncIterator[Any]:
    """A channel of any messages; the type stubs know only those of generated stubs."""
    server = new_server(SECRET)
    tandem_pb2_grpc.add_PrefillServicer_to_server(Talkative(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)]) as opened:
        yield opened
    await server.stop(None)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str | bytes | None, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    trailing: Iterable[tuple[str, str | bytes]] = caught.value.trailing_metadata() or ()
    return caught.value.code(), dict(trailing).get(CODE_KEY), caught.value.details() or ""


async def test_bytes_that_are_no_message_are_an_invalid_request(channel: Any) -> None:
    status, code, _ = await refusal(channel.unary_unary(SETTLE)(NO_MESSAGE, metadata=METADATA))
    assert (status, code) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_value")


async def test_so_they_are_where_a_stream_is_answered(channel: Any) -> None:
    status, code, _ = await refusal(channel.unary_stream(RUN)(NO_MESSAGE, metadata=METADATA).read())
    assert (status, code) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_value")


async def test_what_a_stranger_sends_is_not_even_read(channel: Any) -> None:
    status, code, _ = await refusal(channel.unary_unary(SETTLE)(NO_MESSAGE))
    assert (status, code) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key")


async def test_a_long_explanation_is_shortened_and_keeps_its_code(channel: Any) -> None:
    status, code, details = await refusal(channel.unary_unary(SETTLE)(b"", metadata=METADATA))
    assert (status, code) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_value")
    assert details.startswith("xxx") and details.endswith("...") and len(details) == 1000


async def test_a_message_that_is_too_large_is_refused_by_its_length(channel: Any) -> None:
    status, _, _ = await refusal(channel.unary_unary(SETTLE)(bytes(MAX_MESSAGE_BYTES + 1), metadata=METADATA))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_that_is_too_large_is_refused(channel: Any) -> None:
    large = (*METADATA, ("x", "y" * MAX_METADATA_BYTES))
    status, _, _ = await refusal(channel.unary_unary(SETTLE)(b"", metadata=large))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    status, code, _ = await refusal(channel.unary_unary(SETTLE)(b"", metadata=METADATA))
    assert code == "invalid_value"
