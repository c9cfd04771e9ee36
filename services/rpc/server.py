"""Server side of the wire: who may call, and how our errors leave."""

from __future__ import annotations  # grpc's classes are generic in the type stubs only

import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from services.errors import AuthenticationFailed, IncompatiblePeer, InternalError, InvalidRequest, TandemError
from services.rpc.channel import CHANNEL_OPTIONS, SECRET_KEY, VERSION_KEY
from services.rpc.errors import shortened, status_of, trailing_metadata
from services.rpc.tls import Tls
from services.rpc.versions import PROTOCOL_VERSION, understands
from services.telemetry.logs import get_logger

_log = get_logger(__name__)
_MAX_VERSION_DIGITS = 9
_MAX_DETAILS = 1000
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
"""What a probe may ask without the secret; it is answered at once, while a watch would stay."""
MAX_CONCURRENT_CALLS = 4096
_ANY_PINGS = ("grpc.http2.max_ping_strikes", 0)
"""On a busy host pings that were sent in good time arrive together; that is no reason to end a member's calls."""
_Context = grpc.aio.ServicerContext[Any, Any]


def new_server(secret: bytes, *, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> grpc.aio.Server:
    """Return a server that answers only callers with the cluster secret and a known protocol version."""
    options = (*CHANNEL_OPTIONS, ("grpc.so_reuseport", 0), _ANY_PINGS)
    return grpc.aio.server(
        interceptors=[_Gate(secret), *interceptors], options=options, maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS
    )


def listen(server: grpc.aio.Server, address: str, tls: Tls | None) -> int:
    """Bind ``server`` to ``host:port``, for callers with a certificate if ``tls`` is given; return the port.

    Raises:
        RuntimeError: the address cannot be used.
    """
    if tls is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, tls.server_credentials())


async def abort(context: _Context, error: TandemError) -> None:
    """End a call with ``error``; its text travels as metadata, which has little room."""
    await context.abort(status_of(error), shortened(error.message, _MAX_DETAILS), trailing_metadata(error))


class _Gate(grpc.aio.ServerInterceptor):
    """Refuses strangers, and is one of the three places that catch everything: every call ends with an answer."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method == _HEALTH_CHECK:
            return handler
        refusal = self._refusal(dict(handler_call_details.invocation_metadata or ()))
        return _guarded(handler, handler_call_details.method, refusal)

    def _refusal(self, metadata: dict[str, str | bytes]) -> TandemError | None:
        secret = metadata.get(SECRET_KEY, b"")
        if not isinstance(secret, bytes) or not hmac.compare_digest(secret, self._secret):
            return AuthenticationFailed("The caller does not know the cluster secret.")
        version = str(metadata.get(VERSION_KEY, ""))[:_MAX_VERSION_DIGITS]
        if not version.isdecimal() or not understands(int(version)):
            return IncompatiblePeer(f"This worker speaks protocol {PROTOCOL_VERSION}, not {version!r}.")
        return None


def _guarded(
    handler: grpc.RpcMethodHandler[Any, Any], method: str, refusal: TandemError | None
) -> grpc.RpcMethodHandler[Any, Any]:
    async def answer(data: bytes, context: _Context, respond: Callable[[Any, _Context], Awaitable[Any]]) -> Any:
        if refusal is not None:
            _log.warning("rpc.refused", method=method, peer=context.peer(), code=refusal.code)
            return await abort(context, refusal)
        try:
            return await respond(_parsed(handler, data), context)
        except TandemError as error:
            await abort(context, error)
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError):
                raise
            _log.failure("rpc.defect", error, method=method)
            await abort(context, InternalError("Internal error; the worker's log has the details."))

    if handler.response_streaming:

        async def stream(data: bytes, context: _Context) -> None:
            await answer(data, context, _writer(handler.unary_stream))

        return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)

    respond: Any = handler.unary_unary

    async def unary(data: bytes, context: _Context) -> Any:
        return await answer(data, context, respond)

    return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)


def _parsed(handler: grpc.RpcMethodHandler[Any, Any], data: bytes) -> Any:
    """Return the request, which is read only now: nothing that a stranger sends is, and garbage has an answer."""
    assert handler.request_deserializer is not None
    try:
        return handler.request_deserializer(data)
    except DecodeError as error:
        raise InvalidRequest("The request is not a message of this method.") from error


def _writer(generate: Any) -> Callable[[Any, _Context], Awaitable[None]]:
    """Drive a servicer's async generator so that its ``finally`` runs as soon as the call is cancelled."""

    async def write_all(request: Any, context: _Context) -> None:
        events: AsyncGenerator[Any, None] = generate(request, context)
        async with aclosing(events):
            async for event in events:
                try:
                    await context.write(event)
                except grpc.aio.InternalError:  # the caller went away while the event waited for him
                    return _log.event("rpc.abandoned", peer=context.peer())

    return write_all
