import pytest

from services.engine.blocks import BlockPool, Claim, Reason
from services.engine.parking import Parking
from services.kv.hashes import BlockHash, block_hashes

NAMES = block_hashes(b"seed", list(range(32)), 4)


class Store:
    """Remembers which block lies in which slot."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.slots: dict[int, int] = {}
        self.loaded: list[tuple[int, int]] = []
        """Block that was saved, block that it came back to."""

    def save(self, block: int, slot: int) -> None:
        self.slots[slot] = block

    def load(self, slot: int, block: int) -> None:
        self.loaded.append((self.slots[slot], block))


def filled(pool: BlockPool, names: list[BlockHash], owner: str) -> list[int]:
    """Let a sequence with these names run and end."""
    claim = Claim(Reason.USED, owner)
    blocks = pool.take(len(names), claim)
    for index, name in enumerate(names):
        pool.publish(blocks[index], name, index)
    pool.release(claim)
    return blocks


@pytest.fixture
def store() -> Store:
    return Store(8)


def test_what_is_evicted_comes_back_under_its_name(store: Store) -> None:
    pool = BlockPool(4, Parking(store))
    blocks = filled(pool, NAMES[:4], "a")
    filled(pool, list(reversed(NAMES[4:8])), "b")
    assert (pool.find(NAMES[:4]), pool.num_parked) == ([], 4)
    pool.restore(NAMES[:4], leaving=0)
    found = pool.find(NAMES[:4])
    assert [saved for saved, _ in store.loaded] == blocks
    assert [block for _, block in store.loaded] == found
    assert pool.audit() == pool.ledger()
    assert pool.ledger().is_idle


def test_only_as_much_comes_back_as_there_is_room_for(store: Store) -> None:
    pool = BlockPool(4, Parking(store))
    filled(pool, NAMES[:4], "a")
    pool.take(3, Claim(Reason.USED, "b"))
    pool.restore(NAMES[:4], leaving=0)
    assert len(pool.find(NAMES[:4])) == 1
    pool.release(Claim(Reason.USED, "b"))
    pool.restore(NAMES[:4], leaving=2)
    assert len(pool.find(NAMES[:4])) == 2
    pool.restore(NAMES[:4], leaving=0)
    assert len(pool.find(NAMES[:4])) == 4
    assert pool.num_parked == 0


def test_the_block_that_was_parked_first_is_lost_first() -> None:
    pool = BlockPool(4, Parking(Store(2)))
    filled(pool, NAMES[:4], "a")
    told = dict(pool.take_cache_changes())
    assert told == dict.fromkeys(NAMES[:4], True)
    pool.take(4, Claim(Reason.USED, "b"))
    assert pool.take_cache_changes() == {NAMES[3]: False, NAMES[2]: False}  # ends go before beginnings
    pool.release(Claim(Reason.USED, "b"))
    pool.restore(NAMES[:4], leaving=0)
    assert len(pool.find(NAMES[:4])) == 2


def test_a_block_that_is_computed_again_is_not_parked_any_more(store: Store) -> None:
    parking = Parking(store)
    pool = BlockPool(4, parking)
    filled(pool, NAMES[:4], "a")
    pool.take(4, Claim(Reason.USED, "b"))
    pool.release(Claim(Reason.USED, "b"))
    filled(pool, NAMES[:2], "c")
    assert len(parking) == 2
    pool.take(4, Claim(Reason.USED, "d"))
    assert len(parking) == 4


def test_without_a_store_nothing_is_kept() -> None:
    pool = BlockPool(2)
    filled(pool, NAMES[:2], "a")
    pool.take(2, Claim(Reason.USED, "b"))
    assert pool.num_parked == 0
    assert pool.take_cache_changes() == dict.fromkeys(NAMES[:2], False)


def test_the_end_of_a_sequence_that_is_computed_again_is_told_when_it_goes() -> None:
    """Others know of it since it was cached first, so they must hear of its end."""
    names = block_hashes(b"long", list(range(44)), 4)
    pool = BlockPool(11, Parking(Store(16)))
    filled(pool, names, "a")
    pool.ended(names[-1])
    assert pool.take_cache_changes()[names[-1]]
    pool.take(11, Claim(Reason.USED, "b"))
    pool.release(Claim(Reason.USED, "b"))
    filled(pool, names, "c")
    pool.take_cache_changes()
    pool.take(11, Claim(Reason.USED, "d"))
    pool.release(Claim(Reason.USED, "d"))
    filled(pool, block_hashes(b"other", list(range(44)), 4), "e")
    pool.take(11, Claim(Reason.USED, "f"))
    assert pool.take_cache_changes()[names[-1]] is False
