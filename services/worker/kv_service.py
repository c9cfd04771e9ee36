"""The one movement of KV between workers: who has blocks pushes them into memory that the asker reserved."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from services.engine.output import FinalBlocks
from services.engine.request import AttemptKey
from services.engine.scheduler import Scheduler
from services.errors import InvalidRequest
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.telemetry.logs import get_logger
from services.worker.exporter import Exporter
from services.worker.kept_blocks import KeptBlocks
from services.worker.node import Node
from services.worker.outgoing import Outgoing

_log = get_logger(__name__)
_BLOCKS_PER_PUSH = 32
"""So that the peer can check what is here while the rest is on its way."""
_Context = grpc.aio.ServicerContext[object, object]


class KVServicer(tandem_pb2_grpc.KVServicer):
    """Answers other workers; also while this one leaves, since that is when its blocks are needed elsewhere."""

    def __init__(self, node: Node, exporter: Exporter, kept: KeptBlocks, *, max_waiting: int) -> None:
        self._node = node
        self._max_waiting = max_waiting
        self._exporter = exporter
        self._kept = kept

    async def Fetch(self, request: pb.FetchRequest, context: _Context) -> AsyncGenerator[pb.FetchEvent, None]:
        """Push the longest run of the named blocks that is here."""
        self._node.require_member(request.member_id)
        self._node.require_fingerprint(request.target.endpoint.fingerprint)
        self._node.require_place(self._exporter.num_live, max_waiting=self._max_waiting)
        if len(request.block_hashes) != len(request.target.block_ids):
            raise InvalidRequest("The target has not as many blocks as there are hashes.", param="target")
        num_found: int | None = None

        def settled(outgoing: Outgoing) -> None:
            # The asker hangs up as soon as everything is there, which may be before we know that it is.
            if outgoing.num_blocks == num_found and not outgoing.has_failed:
                self._kept.let_go(request.kept_as)
            _log.event(
                "kv.settled",
                request_id=str(outgoing.attempt),
                wanted=len(request.block_hashes),
                found=num_found,
                blocks=outgoing.num_blocks,
                failed=outgoing.has_failed,
            )

        key = AttemptKey(request.request_id, request.target.epoch)
        async with self._exporter.attempt(key, request.target, on_settled=settled) as outgoing:
            name = str(key)
            stream = self._node.engine.subscribe(name)
            try:
                num_found = await self._node.engine.call(lambda scheduler: self._lease(scheduler, name, request))
                yield pb.FetchEvent(found=pb.FetchFound(blocks=num_found))
                while outgoing.num_blocks < num_found:
                    final = await stream.next()
                    if isinstance(final, FinalBlocks):
                        outgoing.post(final)
                        await outgoing.all_pushed()
                        if outgoing.num_blocks < num_found:
                            yield pb.FetchEvent(progress=pb.FetchProgress(blocks=outgoing.num_blocks))
            finally:
                self._node.engine.unsubscribe(name)  # leases that were not taken end with it
        yield pb.FetchEvent(pushed=pb.FetchPushed(blocks=outgoing.num_blocks))

    async def Watch(self, request: pb.WatchRequest, context: _Context) -> AsyncGenerator[pb.CacheEvent, None]:
        """Tell which prefix blocks are here, and what changes."""
        self._node.require_member(request.member_id)
        async with aclosing(self._node.cache_feed.watch()) as events:
            async for event in events:
                yield event

    async def Settle(self, request: pb.SettleRequest, context: _Context) -> pb.SettleReply:
        """Answer once no write of the attempt is outstanding and none will be posted."""
        return await self._exporter.settle(request)

    def _lease(self, scheduler: Scheduler, name: str, request: pb.FetchRequest) -> int:
        """Lease what is here, as one event for each push (on the engine thread); return how many blocks that is."""
        num_found, hashes = 0, list(request.block_hashes)
        while num_found < len(hashes):
            wanted = hashes[num_found : num_found + _BLOCKS_PER_PUSH]
            final = scheduler.lease(name, wanted, request.target.first_block + num_found)
            if final is None:
                break
            self._node.engine.emit(final)
            num_found += len(final.block_ids)
            if len(final.block_ids) < len(wanted):
                break
        return num_found
