"""What every worker tells operators: status, ledger, and how to leave."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import grpc

from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.convert import duration_from_message
from services.worker.convert import load_to_message
from services.worker.node import Node

_Context = grpc.aio.ServicerContext[object, object]
_DRAIN_POLL_S = 0.05
_LONGEST_DRAIN_S = 86_400.0


class Service(Protocol):
    """The part of a prefill or decode service that a drain waits for."""

    @property
    def num_live(self) -> int:
        """Requests that are not over, and attempts of peers and kept blocks that a transfer may still read."""

    async def hand_over(self, *, waited_s: float, timeout_s: float) -> None:
        """Give running work to peers if a drain that ends after ``timeout_s`` has waited long enough for its end.

        Called again and again while a drain waits.
        """


class AdminServicer(tandem_pb2_grpc.AdminServicer):
    """Answers operators, tests and ``tandem status``."""

    def __init__(
        self,
        node: Node,
        service: Service,
        *,
        announce: Callable[[], Awaitable[None]],
        drain_timeout_s: float,
        counters: Callable[[], dict[str, float]],
    ) -> None:
        self._node = node
        self._service = service
        self._announce = announce
        self._drain_timeout_s = drain_timeout_s
        self._counters = counters
        self._drains: set[asyncio.Task[int]] = set()

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.StatusReply:
        """Tell identity, load and ledger."""
        snapshot = await self._node.audit()
        return pb.StatusReply(
            member_id=self._node.member_id,
            role=self._node.role.value,
            model=self._node.card.model_name,
            fingerprint=self._node.layout.fingerprint,
            load=load_to_message(snapshot.load, self._node.throughput.prefill_tokens_per_s),
            ledger=snapshot.ledger.by_claim(),
            counters=self._counters(),
            draining=self._node.is_draining,
            live=self._service.num_live,
        )

    async def Drain(self, request: pb.DrainRequest, context: _Context) -> pb.DrainReply:
        """Take no new work; answer when the running work ended or the time is over."""
        if request.member_id:
            self._node.require_member(request.member_id)
        wanted_s = duration_from_message("timeout_s", request.timeout_s, _LONGEST_DRAIN_S)
        timeout_s = wanted_s if request.timeout_s else self._drain_timeout_s
        draining = asyncio.create_task(self.drain(timeout_s), name="drain")
        self._drains.add(draining)
        draining.add_done_callback(self._drains.discard)
        return pb.DrainReply(remaining=await asyncio.shield(draining))  # a caller who hangs up does not end it

    async def drain(self, timeout_s: float) -> int:
        """Say so, take no new work, and return how many requests are left when none runs or the time is over."""
        await self._announce()
        self._node.is_draining = True
        began_s = self._node.clock.now()
        try:
            async with asyncio.timeout(timeout_s):
                while self._service.num_live:
                    await self._service.hand_over(waited_s=self._node.clock.now() - began_s, timeout_s=timeout_s)
                    await self._node.clock.sleep(_DRAIN_POLL_S)
        except TimeoutError:
            pass
        return self._service.num_live
