"""One attempt to let a peer fill reserved blocks. An attempt owns its blocks, epoch and notices.

Fetch --->  found n    progress ...   pushed                  (whoever has the blocks, and computes nothing)
notices          blocks 0..k   blocks k+1..n-1   (checked as they arrive)
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc

from services.engine.output import Reservation
from services.engine.request import AttemptKey, Outcome
from services.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    IncompatiblePeer,
    InternalError,
    Overloaded,
    PeerError,
    PeerGone,
    PeerStalled,
    RequestError,
)
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.rpc.errors import translated
from services.worker.arrivals import Arrivals
from services.worker.convert import endpoint_to_message
from services.worker.node import Node

_REFUSALS = (Overloaded, Draining, IncompatiblePeer)
_Event = TypeVar("_Event", pb.RunEvent, pb.FetchEvent)


@dataclass(frozen=True)
class Peer:
    """A worker that may write here."""

    member_id: str
    address: str
    computes: bool
    """Whether it was asked to compute a prompt (``Prefill.Run``), or for blocks that it has (``KV.Fetch``)."""


@dataclass(frozen=True)
class Leaving:
    """What is known of an attempt's blocks when it is left."""

    num_arrived: int
    outcome: Outcome


class Attempt:
    """Lets one peer fill one reservation, once: who has the blocks, or in a subclass who computes them."""

    def __init__(
        self, node: Node, channels: Channels, arrivals: Arrivals, *, reservation: Reservation, key: AttemptKey
    ) -> None:
        self.key = key
        self.reservation = reservation
        self.peer: Peer | None = None
        """Who was asked; None while nobody was."""
        self._node = node
        self._channels = channels
        self._arrivals = arrivals
        self._arrival = arrivals.open(key, reservation, node.sealer)
        self._outcome = Outcome.NOTHING_POSTED
        self._was_accepted = False

    def leave(self) -> Leaving:
        """Stop to accept notices and say what is known of the blocks."""
        self._arrivals.close(self.key)
        return Leaving(self._arrival.num_arrived, self._outcome)

    @property
    def num_wanted(self) -> int:
        """Blocks that the reservation wants from peers."""
        return len(self.reservation.block_table) - self.reservation.first_wanted

    @property
    def num_arrived(self) -> int:
        """Wanted blocks, from the first one on without a gap, that arrived and were verified."""
        return self._arrival.num_arrived

    async def fetch(self, source: pb.KVSource, *, num_blocks: int, step_timeout_s: float) -> int:
        """Get those of the first ``num_blocks`` wanted blocks that ``source`` has; return how many that is.

        Raises:
            PeerError, IntegrityError, Overloaded, Unavailable: they did not come; leave the attempt.
        """
        await self._reached(source.address, step_timeout_s)
        self.peer = Peer(source.member_id, source.address, computes=False)
        call = self._channels.kv(source.address).Fetch(self._fetch_request(source, num_blocks))
        with self._asking(call):
            event = await read_event(call, step_timeout_s)
            if not event.HasField("found") or event.found.blocks > num_blocks:
                raise PeerError("The peer did not say which of the wanted blocks it has.")
            self._was_accepted = True
            await self._verified(call, event.found.blocks, step_timeout_s)
            self._outcome = Outcome.NOTHING_POSTED  # of the others, by the peer's word
        return event.found.blocks

    async def _reached(self, address: str, timeout_s: float) -> None:
        """Connect first: of a peer that was never reached, no write can be on its way."""
        async with _progress_within(timeout_s):
            await self._channels.connected(address)

    @contextmanager
    def _asking(self, call: grpc.aio.UnaryStreamCall[Any, Any]) -> Iterator[None]:
        """Expect writes while the block runs; from here on only a refusal means that there were none."""
        self._outcome = Outcome.UNKNOWN
        self._node.transfers.expect(1)
        try:
            yield
        except _REFUSALS:
            if not self._was_accepted:
                self._outcome = Outcome.NOTHING_POSTED
            raise
        finally:
            self._node.transfers.expect(-1)
            call.cancel()

    async def _verified(self, call: grpc.aio.UnaryStreamCall[Any, Any], num_blocks: int, step_timeout_s: float) -> None:
        """Wait for the data; the call tells when the sender fails, the notices when everything is here."""
        verified = asyncio.create_task(self._arrival.verified(num_blocks))
        pushed = asyncio.create_task(_until_pushed(call, step_timeout_s))
        try:
            await asyncio.wait({verified, pushed}, return_when=asyncio.FIRST_COMPLETED)
            if not verified.done():
                pushed.result()
                async with _progress_within(step_timeout_s):
                    await verified
            verified.result()
        finally:
            verified.cancel()
            pushed.cancel()
            await asyncio.gather(verified, pushed, return_exceptions=True)

    def _target(self, num_blocks: int) -> pb.KVTarget:
        first = self.reservation.first_wanted
        return pb.KVTarget(
            endpoint=endpoint_to_message(self._node.transfers.endpoint),
            epoch=self.key.epoch,
            first_block=first,
            block_ids=self.reservation.block_table[first : first + num_blocks],
        )

    def _fetch_request(self, source: pb.KVSource, num_blocks: int) -> pb.FetchRequest:
        first = self.reservation.first_wanted
        return pb.FetchRequest(
            request_id=self.key.request_id,
            member_id=source.member_id,
            block_hashes=self.reservation.token_digests[first : first + num_blocks],
            target=self._target(num_blocks),
            kept_as=source.kept_as,
        )


async def _until_pushed(call: grpc.aio.UnaryStreamCall[Any, _Event], timeout_s: float) -> None:
    while not (await read_event(call, timeout_s)).HasField("pushed"):
        pass


async def read_event(call: grpc.aio.UnaryStreamCall[Any, _Event], timeout_s: float) -> _Event:
    """Return the next event of a peer's call.

    Raises:
        PeerError, Overloaded, Unavailable: it ended early, failed, or said nothing in time.
    """
    with _failures_of_the_peer(), translated():
        async with _progress_within(timeout_s):
            event = await call.read()
    if event is grpc.aio.EOF:
        raise PeerGone("The peer ended the call early.")
    return cast(_Event, event)


@contextmanager
def _failures_of_the_peer() -> Iterator[None]:
    """Make a defect or an end of the peer a reason to try the next one, not the end of the request.

    A request that was accepted here is not the caller's fault anywhere else.
    """
    try:
        yield
    except RequestError as error:
        raise IncompatiblePeer(f"The peer does not take this request: {error.message}") from error
    except (InternalError, Cancelled, DeadlineExceeded) as error:
        raise PeerError(f"The peer failed: {error.message}") from error


@asynccontextmanager
async def _progress_within(timeout_s: float) -> AsyncGenerator[None, None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise PeerStalled(f"The peer made no progress for {timeout_s:g} s.") from error
