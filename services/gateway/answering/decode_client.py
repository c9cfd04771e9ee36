"""How the gateway calls decode workers."""

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Protocol, Self

import grpc

from services.errors import AuthenticationFailed, Cancelled, IncompatiblePeer, PeerGone, PeerStalled, TandemError
from services.gateway.web.watchdog import Watchdog
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.errors import from_rpc_error


class DecodeClient(Protocol):
    """Starts sequences on decode workers."""

    def generate(self, address: str, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateEvent, None]:
        """Yield what happens to the sequence; closing the generator cancels it.

        Raises:
            TandemError: what the worker raised.
            PeerGone: the connection was refused or reset.
        """


class GrpcDecodeClient:
    """Calls over ``channels``."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def generate(self, address: str, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateEvent, None]:
        """Yield what happens to the sequence."""
        call = self._channels.decode(address).Generate(request)
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise _as_seen_from_here(from_rpc_error(error)) from error
        finally:
            call.cancel()


def _as_seen_from_here(error: TandemError) -> TandemError:
    """Return what a worker's error means for a request whose caller is not to blame for it."""
    if isinstance(error, AuthenticationFailed):
        return IncompatiblePeer("The decode worker has another cluster secret or protocol version.")
    if isinstance(error, Cancelled):
        return PeerGone("The decode worker cancelled the sequence.")
    return error


class PacedEvents:
    """Reads events with a deadline for each of them; ``async with``, leaving which ends the call."""

    def __init__(self, events: AsyncGenerator[pb.GenerateEvent, None]) -> None:
        self._events = events
        self._watchdog = Watchdog()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watchdog.close()
        await self._events.aclose()

    async def next(self, timeout_s: float, waiting_for: str) -> pb.GenerateEvent | None:
        """Return the next event, or None after the last.

        Raises:
            PeerStalled: nothing came in time.
        """
        try:
            with self._watchdog.within(timeout_s):
                return await anext(self._events, None)
        except TimeoutError as error:
            raise PeerStalled(f"The decode worker sent no {waiting_for} within {timeout_s:g} s.") from error
