"""Random commands and steps: every block has one place, every token is right, and in the end nothing is left."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.engine.output import FinalBlocks, Reservation, SampledToken
from services.engine.request import AttemptKey, NewRequest, Outcome, Request
from services.errors import Overloaded, PoolExhausted
from services.kv.hashes import BlockHash, block_hashes
from tests.engine.scheduling import BLOCK, World, alone, check_ledger, next_token, spec, world

MAX_STEP_TOKENS, MAX_MIXED_TOKENS, MAX_RUNNING = 12, 6, 5
Key = TypeVar("Key")
outcomes = st.sampled_from(Outcome)
picks = st.integers(0, 10**6)


def choose(options: Iterable[Key], pick: int) -> Key:
    keys = list(options)
    return keys[pick % len(keys)]


@dataclass
class Peer:
    """A prefill worker's side of one attempt."""

    request: NewRequest
    reservation: Reservation
    key: AttemptKey
    num_arrived: int = 0

    @property
    def unwritten(self) -> tuple[int, ...]:
        return self.reservation.block_table[self.reservation.first_wanted + self.num_arrived :]


class SchedulerMachine(RuleBasedStateMachine):
    """Plays workers, peers and clients; remembers what was promised to each."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World
        self.requests: dict[str, NewRequest] = {}
        self.peers: dict[str, Peer] = {}
        self.quarantine: dict[AttemptKey, tuple[int, ...]] = {}
        self.leases: dict[int, FinalBlocks] = {}
        self.num_ids = 0

    @initialize(
        num_blocks=st.integers(8, 24),
        share=st.sampled_from([0.3, 0.7, 1.0]),
        num_parked=st.integers(0, 16),
        num_guesses=st.integers(0, 5),
    )
    def begin(self, num_blocks: int, share: float, num_parked: int, num_guesses: int) -> None:
        self.world = world(
            num_parked=num_parked,
            num_speculative_tokens=num_guesses,
            num_blocks=num_blocks,
            max_step_tokens=MAX_STEP_TOKENS,
            max_mixed_prefill_tokens=MAX_MIXED_TOKENS,
            max_running=MAX_RUNNING,
            max_reserved_share=share,
        )

    # -- clients ------------------------------------------------------------------------------------

    @rule(stem=st.integers(0, 1), length=st.integers(1, 22), tail=st.integers(0, 2), max_tokens=st.integers(1, 10))
    def add(self, stem: int, length: int, tail: int, max_tokens: int) -> None:
        request = self.new_request(stem, length, tail, max_tokens)
        self.world.scheduler.add(request)

    @rule(stem=st.integers(0, 1), length=st.integers(1, 22), max_tokens=st.integers(1, 10))
    def export(self, stem: int, length: int, max_tokens: int) -> None:
        request = self.new_request(stem, length, 0, max_tokens, export=True)
        cached = self.world.scheduler.add(request).cached
        if cached is not None:
            self.leases[cached.hold] = cached

    @rule(stem=st.integers(0, 1), length=st.integers(1, 22), tail=st.integers(0, 2), max_tokens=st.integers(1, 10))
    def reserve(self, stem: int, length: int, tail: int, max_tokens: int) -> None:
        request = self.new_request(stem, length, tail, max_tokens)
        key = AttemptKey(request.request_id, 1)
        try:
            reservation = self.world.scheduler.reserve(request, key)
        except Overloaded:
            del self.requests[request.request_id]
        else:
            self.peers[request.request_id] = Peer(request, reservation, key)
            self.check_prefix(self.peers[request.request_id])

    @precondition(lambda self: self.requests)
    @rule(pick=picks, outcome=outcomes)
    def cancel(self, pick: int, outcome: Outcome) -> None:
        request_id = choose(self.requests, pick)
        peer = self.peers.pop(request_id, None)
        if peer is None:
            self.world.scheduler.cancel(request_id)
        else:
            self.leave(peer, outcome)
            self.world.scheduler.cancel(request_id, num_arrived=peer.num_arrived, outcome=outcome)
        del self.requests[request_id]

    @precondition(lambda self: self.requests)
    @rule(pick=picks)
    def hand_over(self, pick: int) -> None:
        request_id = choose(self.requests, pick)
        request = self.world.scheduler._queues.get(request_id)
        assert request is not None
        num_whole, names = request.num_computed_tokens // BLOCK, self.names_of(request)
        assert self.world.scheduler.hand_over(request_id, max_tokens=request.num_tokens - 1) is None
        handed_over = self.world.scheduler.hand_over(request_id, max_tokens=request.num_tokens)
        if request_id in self.peers or request.spec.export:
            assert handed_over is None
            return
        assert handed_over is not None and handed_over.num_blocks <= num_whole
        assert handed_over.num_tokens == request.num_tokens
        assert (handed_over.hold is None) == (handed_over.num_blocks == 0)
        del self.requests[request_id]
        if handed_over.hold is not None:
            kept = self.lease(names)
            assert kept is not None and len(kept.block_ids) >= handed_over.num_blocks
            self.world.scheduler.release(handed_over.hold)

    @precondition(lambda self: self.requests)
    @rule(pick=picks, first=st.integers(0, 3))
    def ask_by_name(self, pick: int, first: int) -> None:
        request = self.world.scheduler._queues.get(choose(self.requests, pick))
        assert request is not None
        self.lease(self.names_of(request), first)

    def names_of(self, request: Request) -> list[BlockHash]:
        return block_hashes(request.spec.cache_seed, request.token_ids, BLOCK)

    def lease(self, names: Sequence[BlockHash], first: int = 0) -> FinalBlocks | None:
        found = self.world.scheduler.lease("peer", names[first:], first)
        if found is not None:
            assert found.token_digests == tuple(names[first : first + len(found.block_ids)])
            self.leases[found.hold] = found
        return found

    # -- peers --------------------------------------------------------------------------------------

    @precondition(lambda self: self.peers)
    @rule(pick=picks, num_blocks=st.integers(1, 4))
    def arrive(self, pick: int, num_blocks: int) -> None:
        peer = self.peers[choose(self.peers, pick)]
        self.write(peer, min(num_blocks, len(peer.unwritten)))

    @precondition(lambda self: self.peers)
    @rule(pick=picks)
    def start(self, pick: int) -> None:
        request_id = choose(self.peers, pick)
        peer = self.peers.pop(request_id)
        self.write(peer, len(peer.unwritten))
        token = next_token(peer.request.prompt_token_ids)
        self.world.tokens[request_id] = [token]
        if self.world.scheduler.start(request_id, SampledToken(token)) is not None:
            self.finish(request_id)

    @precondition(lambda self: self.peers)
    @rule(pick=picks, outcome=outcomes)
    def reattempt(self, pick: int, outcome: Outcome) -> None:
        request_id = choose(self.peers, pick)
        peer = self.peers.pop(request_id)
        self.leave(peer, outcome)
        key = AttemptKey(request_id, peer.key.epoch + 1)
        try:
            reservation = self.world.scheduler.reattempt(request_id, key, num_arrived=peer.num_arrived, outcome=outcome)
        except PoolExhausted:
            assert outcome is Outcome.UNKNOWN
            del self.requests[request_id]
        else:
            self.peers[request_id] = Peer(peer.request, reservation, key)
            self.check_prefix(self.peers[request_id])

    @precondition(lambda self: self.peers)
    @rule(pick=picks, outcome=outcomes)
    def run_locally(self, pick: int, outcome: Outcome) -> None:
        request_id = choose(self.peers, pick)
        peer = self.peers.pop(request_id)
        self.leave(peer, outcome)
        self.world.scheduler.run_locally(request_id, num_arrived=peer.num_arrived, outcome=outcome)

    @precondition(lambda self: self.quarantine)
    @rule(pick=picks)
    def write_late(self, pick: int) -> None:
        self.scribble(self.quarantine[choose(self.quarantine, pick)])

    @precondition(lambda self: self.quarantine)
    @rule(pick=picks)
    def settle(self, pick: int) -> None:
        key = choose(self.quarantine, pick)
        self.scribble(self.quarantine.pop(key))
        self.world.scheduler.settle(key)

    @precondition(lambda self: self.leases)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        lease = self.leases.pop(choose(self.leases, pick))
        self.world.scheduler.release(lease.hold)

    # -- the engine ---------------------------------------------------------------------------------

    @rule(num_steps=st.integers(1, 6))
    def steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()

    def step(self) -> None:
        scheduler = self.world.scheduler
        had_work, generating = scheduler.has_work, {*scheduler._queues.generating}
        output = self.world.step()
        schedule = self.world.schedules[-1]
        assert had_work == (not schedule.is_empty or bool(output.failures) or output.stats.num_preempted > 0)
        assert output.stats.num_tokens <= MAX_STEP_TOKENS
        rows = {r.request_id: len(s.new_token_ids) for r, s in zip(schedule.requests, schedule.sequences, strict=True)}
        if generating & rows.keys():
            assert sum(num for request_id, num in rows.items() if request_id not in generating) <= MAX_MIXED_TOKENS
        for sequence in schedule.sequences:
            end = sequence.start + len(sequence.new_token_ids)
            assert sequence.needs_logits or end % BLOCK == 0
            assert len(sequence.block_table) == -(-end // BLOCK) or sequence.needs_logits
        for final in output.final_blocks:
            self.leases[final.hold] = final
        for failure in output.failures:
            del self.requests[failure.request_id]
        for token in output.tokens:
            if token.finish_reason is not None or self.requests[token.request_id].export:
                self.finish(token.request_id)

    @invariant()
    def each_block_has_one_place(self) -> None:
        if hasattr(self, "world"):
            ledger = check_ledger(self.world.scheduler)
            assert ledger.quarantined == sum(map(len, self.quarantine.values()))
            assert ledger.reserved == sum(self.num_wanted(peer) for peer in self.peers.values())
            assert ledger.leased <= len({block for lease in self.leases.values() for block in lease.block_ids})

    @invariant()
    def leased_blocks_keep_their_content(self) -> None:
        for lease in self.leases.values():
            for index, block in enumerate(lease.block_ids, lease.first_block):
                assert len(self.world.slots[block, 0]) == index * BLOCK + 1

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        scheduler = self.world.scheduler
        while self.peers:
            self.start(0)
        while self.quarantine:
            self.settle(0)
        for _ in range(1000):
            while self.leases:
                self.release(0)
            if scheduler.has_work:
                self.step()
        load = scheduler.load()
        assert (load.num_running, load.num_waiting, self.requests) == (0, 0, {})
        assert check_ledger(scheduler).is_idle

    # -- what is promised ---------------------------------------------------------------------------

    def new_request(self, stem: int, length: int, tail: int, max_tokens: int, export: bool = False) -> NewRequest:
        self.num_ids += 1
        prompt = [*((stem + position) % 5 for position in range(length)), *([self.num_ids % 50] * tail)]
        request = spec(f"r{self.num_ids}", prompt[: 32 - max_tokens], max_tokens=max_tokens, export=export)
        self.requests[request.request_id] = request
        return request

    def finish(self, request_id: str) -> None:
        request = self.requests.pop(request_id)
        tokens = self.world.tokens[request_id]
        assert tokens == alone(request.prompt_token_ids, len(tokens))
        assert len(tokens) == (1 if request.export else request.params.max_tokens)

    def num_wanted(self, peer: Peer) -> int:
        return len(peer.reservation.block_table) - peer.reservation.first_wanted

    def check_prefix(self, peer: Peer) -> None:
        """Blocks that are not wanted must hold what the request's first tokens are."""
        for index, block in enumerate(peer.reservation.block_table[: peer.reservation.first_wanted]):
            for offset in range(min(BLOCK, len(peer.request.prompt_token_ids) - index * BLOCK)):
                end = index * BLOCK + offset + 1
                assert self.world.slots[block, offset] == peer.request.prompt_token_ids[:end]

    def write(self, peer: Peer, num_blocks: int) -> None:
        start = peer.reservation.first_wanted + peer.num_arrived
        prompt = peer.request.prompt_token_ids
        end = min((start + num_blocks) * BLOCK, len(prompt))
        self.world.write(peer.reservation.block_table, prompt, start * BLOCK, end)
        peer.num_arrived += num_blocks

    def leave(self, peer: Peer, outcome: Outcome) -> None:
        if outcome is Outcome.UNKNOWN and peer.unwritten:
            self.quarantine[peer.key] = peer.unwritten

    def scribble(self, blocks: tuple[int, ...]) -> None:
        for block in blocks:
            for offset in range(BLOCK):
                self.world.slots[block, offset] = ()


SchedulerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestScheduler = SchedulerMachine.TestCase
TestScheduler = pytest.mark.timeout(120)(TestScheduler)
