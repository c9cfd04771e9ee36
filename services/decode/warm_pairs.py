"""Connects to every prefill worker that joins, so that no request pays for the first contact.

Membership is not failure detection: who left may still be at work for us, so its connection is closed only
when the last call over it has ended.
"""

import asyncio
from types import TracebackType
from typing import Self

from services.cluster.background import Background, end_all
from services.cluster.registry import Member, Role
from services.cluster.view import MemberView, tell_addresses
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
    """Follows the members for as long as the context lasts."""

    def __init__(self, node: Node, channels: Channels, view: MemberView) -> None:
        self._node = node
        self._channels = channels
        self._view = view
        self._meeting = Background("warm pairs", _log, node.clock)
        self._closing = Background("channels", _log, node.clock)
        self._greetings: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._meeting.start(self._run)
        self._closing.start(lambda: tell_addresses(self._view, self._channels.keep_only))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._meeting.close()
        await self._closing.close()
        await end_all(self._greetings)

    async def _run(self) -> None:
        async for change in self._view.changes():
            for member in change.joined:
                if member.role is Role.PREFILL and member.fingerprint == self._node.layout.fingerprint:
                    greeting = asyncio.create_task(self._warm(member), name=f"greet {member.member_id}")
                    self._greetings.add(greeting)
                    greeting.add_done_callback(self._greetings.discard)

    async def _warm(self, member: Member) -> None:
        request = pb.ConnectRequest(endpoint=endpoint_to_message(self._node.transfers.endpoint))
        try:
            with translated():
                await self._channels.prefill(member.address).Connect(request, timeout=_CONNECT_TIMEOUT_S)
        except TandemError as error:
            _log.warning("pair.cold", prefill=member.member_id, code=error.code, reason=error.message)
        else:
            _log.event("pair.warm", prefill=member.member_id)
