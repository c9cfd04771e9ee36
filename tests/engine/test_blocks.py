"""Blocks: claims, the cache, eviction, the ledger."""

import pytest

from services.engine.blocks import BlockPool, Claim, Reason
from services.engine.request import AttemptKey
from services.errors import InternalError, PoolExhausted
from services.kv.hashes import BlockHash

ALICE, BOB = Claim(Reason.USED, "alice"), Claim(Reason.USED, "bob")
LEASE, SECOND_LEASE = Claim(Reason.LEASED, 1), Claim(Reason.LEASED, 2)
ATTEMPT = AttemptKey("carol", 1)
RESERVED, QUARANTINED = Claim(Reason.RESERVED, ATTEMPT), Claim(Reason.QUARANTINED, ATTEMPT)


def name(text: str) -> BlockHash:
    return text.encode().ljust(16)


def cached_chain(pool: BlockPool, text: str, length: int) -> list[int]:
    """Return a chain of blocks that somebody computed and left."""
    claim = Claim(Reason.USED, text)
    blocks = pool.take(length, claim)
    publish_chain(pool, text, blocks)
    pool.release(claim)
    return blocks


def publish_chain(pool: BlockPool, text: str, blocks: list[int]) -> None:
    for index, block in enumerate(blocks):
        pool.publish(block, name(f"{text}{index}"), index)


def names(text: str, length: int) -> list[BlockHash]:
    return [name(f"{text}{index}") for index in range(length)]


def test_released_blocks_are_free_unless_they_were_published() -> None:
    pool = BlockPool(4)
    blocks = pool.take(3, ALICE)
    pool.publish(blocks[0], name("a"), 0)
    pool.release(ALICE)
    assert (pool.ledger().cached, pool.ledger().free) == (1, 3)
    assert pool.find([name("a"), name("b")]) == [blocks[0]]


def test_taking_too_many_takes_nothing() -> None:
    pool = BlockPool(4)
    pool.take(3, ALICE)
    with pytest.raises(PoolExhausted):
        pool.take(2, BOB)
    assert not pool.is_held(BOB)
    assert pool.ledger().free == 1


def test_a_block_counts_once_under_its_strongest_claim() -> None:
    pool = BlockPool(1)
    (block,) = pool.take(1, ALICE)
    assert pool.ledger().used == 1
    pool.claim([block], QUARANTINED)
    pool.claim([block], LEASE)
    pool.claim([block], RESERVED)
    seen = []
    for claim in (ALICE, QUARANTINED, RESERVED, LEASE):
        assert pool.ledger() == pool.audit()
        assert pool.ledger().is_balanced
        seen.append([reason for reason in Reason if pool.num_claimed(reason)])
        pool.release(claim)
    assert seen == [[Reason.QUARANTINED], [Reason.QUARANTINED], [Reason.RESERVED], [Reason.LEASED]]
    assert pool.ledger().free == 1


def test_a_block_with_two_users_stays_until_both_have_left() -> None:
    pool = BlockPool(1)
    blocks = pool.take(1, ALICE)
    pool.claim(blocks, BOB)
    pool.release(ALICE)
    assert pool.num_available == 0
    pool.release(BOB)
    assert pool.num_available == 1


def test_quarantine_keeps_blocks_from_everybody_until_it_ends() -> None:
    pool = BlockPool(2)
    pool.claim(pool.take(2, RESERVED), QUARANTINED)
    pool.release(RESERVED)
    assert (pool.ledger().quarantined, pool.num_available) == (2, 0)
    pool.release(QUARANTINED)
    assert (pool.ledger().quarantined, pool.num_available) == (0, 2)


def test_free_blocks_are_taken_before_cached_ones() -> None:
    pool = BlockPool(4)
    cached_chain(pool, "a", 2)
    pool.take(2, ALICE)
    assert len(pool.find(names("a", 2))) == 2


def test_the_chain_used_longest_ago_is_evicted_first_and_its_end_before_its_beginning() -> None:
    pool = BlockPool(6)
    cached_chain(pool, "a", 3)
    cached_chain(pool, "b", 3)
    pool.claim(pool.find(names("a", 3)), ALICE)
    pool.release(ALICE)
    lengths = []
    for count in range(6):
        pool.take(1, Claim(Reason.USED, str(count)))
        lengths.append((len(pool.find(names("a", 3))), len(pool.find(names("b", 3)))))
    assert lengths == [(3, 2), (3, 1), (3, 0), (2, 0), (1, 0), (0, 0)]
    assert pool.audit().used == 6


def test_the_end_goes_first_also_when_leases_on_the_beginning_ended_earlier() -> None:
    pool = BlockPool(4)
    blocks = pool.take(4, ALICE)
    publish_chain(pool, "a", blocks)
    pool.claim(blocks[:2], LEASE)
    pool.claim(blocks[2:], SECOND_LEASE)
    for claim in (ALICE, LEASE, SECOND_LEASE):
        pool.release(claim)
    pool.take(1, BOB)
    assert pool.find(names("a", 4)) == blocks[:3]


def test_a_claimed_block_is_not_evicted_and_can_be_later() -> None:
    pool = BlockPool(3)
    cached_chain(pool, "a", 3)
    kept = pool.find(names("a", 2))
    pool.claim(kept, ALICE)
    pool.take(1, BOB)
    assert pool.num_available == 0
    assert pool.find(names("a", 3)) == kept
    pool.release(ALICE)
    pool.take(2, BOB)
    assert pool.find(names("a", 3)) == []


def test_a_chain_that_is_in_use_outlives_younger_ones() -> None:
    pool = BlockPool(4)
    blocks = cached_chain(pool, "a", 2)
    cached_chain(pool, "b", 2)
    pool.claim(blocks, ALICE)
    pool.take(2, BOB)
    assert (pool.find(names("a", 2)), pool.find(names("b", 2))) == (blocks, [])


def test_a_lease_counts_as_a_use() -> None:
    pool = BlockPool(4)
    blocks = cached_chain(pool, "a", 2)
    cached_chain(pool, "b", 2)
    pool.claim(blocks, LEASE)
    pool.release(LEASE)
    pool.take(2, BOB)
    assert pool.find(names("a", 2)) == blocks


def test_of_two_blocks_with_one_name_the_second_is_free_when_released() -> None:
    pool = BlockPool(2)
    (first,), (second,) = pool.take(1, ALICE), pool.take(1, BOB)
    pool.publish(first, name("a"), 0)
    pool.publish(second, name("a"), 0)
    pool.release(BOB)
    pool.release(ALICE)
    assert (pool.ledger().cached, pool.ledger().free) == (1, 1)
    assert pool.find([name("a")]) == [first]


def test_shared_blocks_that_nobody_claims_count_as_taken_when_asking_for_room() -> None:
    pool = BlockPool(4)
    blocks = cached_chain(pool, "a", 2)
    assert pool.fits(2, sharing=blocks)
    assert not pool.fits(3, sharing=blocks)
    assert not pool.fits(2, sharing=blocks, leaving=1)
    pool.claim(blocks, ALICE)
    assert pool.fits(2, sharing=blocks)


def test_releasing_an_unknown_claim_changes_nothing() -> None:
    pool = BlockPool(2)
    pool.release(ALICE)
    assert pool.ledger().is_idle


def test_the_audit_notices_a_block_that_is_free_and_claimed() -> None:
    pool = BlockPool(2)
    pool._free.append(pool.take(1, ALICE)[0])
    assert not pool.ledger().is_balanced
    with pytest.raises(InternalError):
        pool.audit()
