"""Connects to every prefill worker that joins, so that no request pays for the first contact."""

import asyncio
from types import TracebackType
from typing import Self

from services.cluster.registry import Member, Role
from services.cluster.view import MemberView
from services.errors import TandemError
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.errors import translated
from services.telemetry.logs import get_logger
from services.worker.convert import endpoint_to_message
from services.worker.node import Node

_log = get_logger(__name__)
_CONNECT_TIMEOUT_S = 15.0


class WarmPairs:
    """A background task for as long as the context lasts."""

    def __init__(self, node: Node, channels: Channels, view: MemberView) -> None:
        self._node = node
        self._channels = channels
        self._view = view
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="warm pairs")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        async for change in self._view.changes():
            for member in change.joined:
                if member.role is Role.PREFILL and member.fingerprint == self._node.layout.fingerprint:
                    await self._warm(member)
            for member in change.left:
                await self._channels.forget(member.address)

    async def _warm(self, member: Member) -> None:
        request = pb.ConnectRequest(endpoint=endpoint_to_message(self._node.transfers.endpoint))
        try:
            with translated():
                await self._channels.prefill(member.address).Connect(request, timeout=_CONNECT_TIMEOUT_S)
        except TandemError as error:
            _log.warning("pair.cold", prefill=member.member_id, code=error.code, reason=error.message)
        else:
            _log.event("pair.warm", prefill=member.member_id)
