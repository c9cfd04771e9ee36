"""Watches the prefix caches of workers over gRPC."""

from collections.abc import AsyncGenerator

from services.cluster.registry import Member
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.errors import translated


class GrpcCacheClient:
    """Calls over ``channels``."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def watch(self, member: Member) -> AsyncGenerator[pb.CacheEvent, None]:
        """Yield what ``member`` has, and then what changes."""
        call = self._channels.kv(member.address).Watch(pb.WatchRequest(member_id=member.member_id))
        try:
            with translated():
                async for event in call:
                    yield event
        finally:
            call.cancel()
