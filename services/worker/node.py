"""One worker incarnation, as its servicers see it: identity, engine, transfers."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.cluster.registry import MemberLoad, Role
from services.engine.output import EngineLoad, Ledger
from services.engine.scheduler import Scheduler
from services.errors import Draining, IncompatiblePeer, InvalidRequest, Overloaded
from services.kv.card import ModelCard
from services.kv.layout import KVLayout
from services.rpc import tandem_pb2 as pb
from services.telemetry.clock import Clock
from services.transfer.loop import TransferThread
from services.worker.cache_feed import CacheFeed
from services.worker.convert import load_to_message
from services.worker.engine_thread import EngineThread
from services.worker.grammar_compiler import GrammarCompiler
from services.worker.seal import Sealer
from services.worker.throughput import Throughput


@dataclass(frozen=True)
class Snapshot:
    """Load and ledger at one moment between two steps."""

    load: EngineLoad
    ledger: Ledger


class Node:
    """What a prefill and a decode service have in common. The host builds it and owns its parts."""

    def __init__(
        self,
        *,
        member_id: str,
        role: Role,
        card: ModelCard,
        layout: KVLayout,
        engine: EngineThread,
        cache_feed: CacheFeed,
        grammars: GrammarCompiler,
        transfers: TransferThread,
        sealer: Sealer,
        throughput: Throughput,
        clock: Clock,
    ) -> None:
        self.member_id = member_id
        self.role = role
        self.card = card
        self.layout = layout
        self.engine = engine
        self.cache_feed = cache_feed
        self.grammars = grammars
        self.transfers = transfers
        self.sealer = sealer
        self.throughput = throughput
        self.clock = clock
        self.is_draining = False
        self._audited: tuple[int, int] | None = None
        """Steps and commands of the engine at the next look, if nothing happens; belongs to the engine thread."""

    async def snapshot(self) -> Snapshot:
        """Return load and ledger, read between two steps."""
        return await self.engine.call(lambda scheduler: Snapshot(scheduler.load(), scheduler.ledger()))

    async def audit(self) -> Snapshot:
        """Return the same; while nothing is computed, the ledger is counted anew from all claims.

        Raises:
            InternalError: the block pool contradicts itself.
        """
        return await self.engine.call(
            lambda scheduler: Snapshot(
                scheduler.load(), scheduler.ledger() if scheduler.has_work else scheduler.audit()
            )
        )

    async def audit_of_changes(self) -> Snapshot:
        """Return what ``audit`` does, and count anew only if there was a step or a command since the last time.

        Raises:
            InternalError: the block pool contradicts itself.
        """

        def look(scheduler: Scheduler) -> Snapshot:
            audited, now = self._audited, (self.engine.num_steps, self.engine.num_commands)
            ledger = scheduler.ledger() if scheduler.has_work or now == audited else scheduler.audit()
            if not scheduler.has_work:
                self._audited = (self.engine.num_steps, self.engine.num_commands + 1)  # the next look is a command
            return Snapshot(scheduler.load(), ledger)

        return await self.engine.call(look)

    def load_message(self) -> pb.Load:
        """Return the load after the last step or command as the wire has it."""
        return load_to_message(self.engine.load, self.throughput.prefill_tokens_per_s)

    def load_with(self, num_live: int) -> MemberLoad:
        """Return the load after the last step or command, and what a drain waits for, as membership publishes it."""
        load = self.engine.load
        return MemberLoad(
            running=load.num_running,
            waiting=load.num_waiting,
            queued_tokens=load.num_queued_tokens,
            available_blocks=load.num_available_blocks,
            total_blocks=load.num_total_blocks,
            prefill_tokens_per_s=self.throughput.prefill_tokens_per_s,
            live=num_live,
            is_closed=self.is_draining,
        )

    def require_open(self) -> None:
        """Refuse new work while leaving.

        Raises:
            Draining: this worker leaves.
        """
        if self.is_draining:
            raise Draining(f"Worker {self.member_id} is draining.", retry_after_s=1.0)

    def require_place(self, num_live: int, *, max_waiting: int) -> None:
        """Refuse a call beyond those that run and those that may wait, whatever they wait for.

        Raises:
            Overloaded: ``num_live`` calls are in progress.
        """
        if num_live >= self.engine.max_sequences + max_waiting:
            raise Overloaded(f"{num_live} requests are in progress on {self.member_id} already.", retry_after_s=1.0)

    def require_tokens(self, token_ids: Sequence[int]) -> None:
        """Refuse token ids that the model does not have.

        Raises:
            InvalidRequest: an id is not in the vocabulary.
        """
        if token_ids and max(token_ids) >= self.card.vocab_size:
            raise InvalidRequest(f"Token id {max(token_ids)} is not in the vocabulary of {self.card.vocab_size}.")

    def require_fingerprint(self, fingerprint: str) -> None:
        """Refuse a peer with another model, layout or numerics class.

        Raises:
            IncompatiblePeer: the fingerprints differ.
        """
        if fingerprint != self.layout.fingerprint:
            raise IncompatiblePeer(
                f"Layout {fingerprint[:12]} was expected, {self.member_id} has {self.layout.fingerprint[:12]}."
            )

    def require_member(self, member_id: str) -> None:
        """Refuse a call that was meant for an earlier process at this address.

        Raises:
            IncompatiblePeer: another incarnation was meant.
        """
        if member_id != self.member_id:
            raise IncompatiblePeer(f"{member_id} was expected here, but this is {self.member_id}.")
