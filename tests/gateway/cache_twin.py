"""Workers that tell of their caches what a test says."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence

from services.cluster.registry import Member
from services.errors import PeerGone, TandemError
from services.kv.hashes import BlockHash
from services.rpc import tandem_pb2 as pb


class CacheTwin:
    """Plays the ``Watch`` calls of all members."""

    def __init__(self) -> None:
        self._told: defaultdict[str, asyncio.Queue[pb.CacheEvent | TandemError]] = defaultdict(asyncio.Queue)
        self.open: list[str] = []
        """Members that are watched now."""

    def tell(self, member_id: str, *, added: Sequence[BlockHash] = (), removed: Sequence[BlockHash] = ()) -> None:
        self._told[member_id].put_nowait(pb.CacheEvent(added=added, removed=removed, is_complete=True))

    def lose(self, member_id: str) -> None:
        self._told[member_id].put_nowait(PeerGone("The connection was reset."))

    async def watch(self, member: Member) -> AsyncGenerator[pb.CacheEvent, None]:
        self.open.append(member.member_id)
        try:
            while True:
                event = await self._told[member.member_id].get()
                if isinstance(event, TandemError):
                    raise event
                yield event
        finally:
            self.open.remove(member.member_id)
