"""A gRPC boundary that misbehaves on purpose: interceptors that see every message of every call, in both directions.

    caller ── request ──> .received ──> servicer
    caller <── message ── .sends.KIND <── servicer

Both sides meet each message, the sender just before it leaves and the receiver just before it is handed up. A
corrupted message that can still be read is another message: nothing but TLS protects a call's content.
"""

from __future__ import annotations  # grpc's classes are generic in the type stubs only

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message

from services.errors import InternalError, TandemError
from services.faults.armed import ArmedFaults
from services.faults.plan import Action, Fault
from services.faults.steps import STEPS, reply_step, request_step
from services.telemetry.clock import Clock
from services.telemetry.logs import get_logger

_log = get_logger(__name__)
_Context = grpc.aio.ServicerContext[Any, Any]
_LATER = frozenset({Action.DELAY, Action.STALL})
_LOSSY = frozenset({*_LATER, Action.DROP, Action.CORRUPT})
_ALL = frozenset({*_LOSSY, Action.DUPLICATE})


def server_interceptors(faults: ArmedFaults | None, clock: Clock) -> Sequence[grpc.aio.ServerInterceptor]:
    """Return what a server needs to misbehave; nothing without faults."""
    return () if faults is None else (_FaultyServer(_Boundary(faults, clock)),)


def client_interceptors(faults: ArmedFaults | None, clock: Clock) -> Sequence[grpc.aio.ClientInterceptor]:
    """Return what a channel needs to misbehave; nothing without faults."""
    if faults is None:
        return ()
    boundary = _Boundary(faults, clock)
    return (_FaultyUnaryClient(boundary), _FaultyStreamClient(boundary))


class _Boundary:
    """Does to one message what the plan says."""

    def __init__(self, faults: ArmedFaults, clock: Clock) -> None:
        self._faults = faults
        self._clock = clock

    async def passed(self, step: str, message: Any, able: frozenset[Action]) -> list[Any]:
        """Return what comes of a message: itself, nothing, two of it, or another one.

        Raises:
            InternalError: it was corrupted and cannot be read any more.
        """
        fault = self._faults.at(step, able)
        if fault is None:
            return [message]
        if fault.action in _LATER:
            await self._clock.sleep(fault.seconds)
        elif fault.action is Action.DROP:
            return []
        elif fault.action is Action.DUPLICATE:
            return [message, message]
        elif fault.action is Action.CORRUPT:
            return [_with_a_flipped_bit(message, fault)]
        return [message]


class _FaultyServer(grpc.aio.ServerInterceptor):
    def __init__(self, boundary: _Boundary) -> None:
        self._boundary = boundary
        self._copies: set[asyncio.Task[None]] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or request_step(method) not in STEPS:
            return handler
        codecs = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._streaming(method, handler.unary_stream), *codecs)
        return grpc.unary_unary_rpc_method_handler(self._single(method, handler.unary_unary), *codecs)

    def _streaming(self, method: str, respond: Any) -> Callable[[Any, _Context], AsyncGenerator[Any, None]]:
        async def stream(request: Any, context: _Context) -> AsyncGenerator[Any, None]:
            request, *copies = await self._received(method, request)
            if copies:
                self._run_aside(_drained(respond(copies[0], context)))
            async with aclosing(respond(request, context)) as messages:
                async for message in messages:
                    for passed in await self._boundary.passed(_step_of(method, message), message, _ALL):
                        yield passed

        return stream

    def _single(self, method: str, respond: Any) -> Callable[[Any, _Context], Awaitable[Any]]:
        async def answer(request: Any, context: _Context) -> Any:
            request, *copies = await self._received(method, request)
            if copies:
                self._run_aside(respond(copies[0], context))
            reply = await respond(request, context)
            passed = await self._boundary.passed(reply_step(method, "reply"), reply, _LOSSY)
            return passed[0] if passed else await _nothing()

        return answer

    async def _received(self, method: str, request: Any) -> list[Any]:
        return await self._boundary.passed(request_step(method), request, _ALL) or [await _nothing()]

    def _run_aside(self, answering: Awaitable[Any]) -> None:
        """Answer a request that came twice; nobody reads that answer."""

        async def answer() -> None:
            try:
                await answering
            except TandemError as error:
                _log.event("faults.copy_refused", code=error.code)

        task = asyncio.create_task(answer(), name="copy of a request")
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)


class _FaultyUnaryClient(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, boundary: _Boundary) -> None:
        self._boundary = boundary

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        method = _name_of(client_call_details)
        if request_step(method) not in STEPS:
            return await continuation(client_call_details, request)
        try:
            async with asyncio.timeout(client_call_details.timeout):
                requests = await self._boundary.passed(request_step(method), request, _LOSSY)
                call = await continuation(client_call_details, requests[0] if requests else await _nothing())
                replies = await self._boundary.passed(reply_step(method, "reply"), await call, _LOSSY)
                return replies[0] if replies else await _nothing()
        except TimeoutError as error:
            late = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(*late, "A fault was injected: the answer is late.") from error


class _FaultyStreamClient(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, boundary: _Boundary) -> None:
        self._boundary = boundary

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        method = _name_of(client_call_details)
        if request_step(method) not in STEPS:
            return await continuation(client_call_details, request)
        requests = await self._boundary.passed(request_step(method), request, _LOSSY)
        call = await continuation(client_call_details, requests[0] if requests else await _nothing())
        return self._messages(method, call)

    async def _messages(self, method: str, call: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        async for message in call:
            for passed in await self._boundary.passed(_step_of(method, message), message, _ALL):
                yield passed


def _name_of(details: grpc.aio.ClientCallDetails) -> str:
    method: str | bytes = details.method
    return method.decode() if isinstance(method, bytes) else method


def _step_of(method: str, message: Any) -> str:
    has_kinds = "event" in message.DESCRIPTOR.oneofs_by_name
    return reply_step(method, str(message.WhichOneof("event")) if has_kinds else "reply")


async def _nothing() -> NoReturn:
    """What was lost never comes; whoever waits has a deadline, or cancels."""
    while True:
        await asyncio.get_running_loop().create_future()


async def _drained(messages: AsyncGenerator[Any, None]) -> None:
    async with aclosing(messages):
        async for _ in messages:
            pass


def _with_a_flipped_bit(message: Message, fault: Fault) -> Message:
    data = bytearray(message.SerializeToString())
    if not data:
        return message
    randomness = random.Random(f"bit of {fault}")
    data[randomness.randrange(len(data))] ^= 1 << randomness.randrange(8)
    try:
        return type(message).FromString(bytes(data))
    except DecodeError as error:
        raise InternalError("A fault was injected: a message cannot be read.") from error
