from hypothesis import given
from hypothesis import strategies as st

from services.gateway.routing.prefixes import PrefixIndex
from services.kv.hashes import BlockHash, block_hashes
from services.kv.landmarks import is_landmark

BLOCKS = 40


def chain(seed: int, num_blocks: int = BLOCKS) -> list[BlockHash]:
    return block_hashes(b"seed", [seed * 1000 + index for index in range(num_blocks)], 1)


def told(hashes: list[BlockHash]) -> list[BlockHash]:
    """What a worker says of a sequence that ended."""
    return [*(name for index, name in enumerate(hashes) if is_landmark(index)), *hashes[-1:]]


def test_each_member_is_found_with_as_much_as_it_has() -> None:
    index, hashes = PrefixIndex(), chain(1)
    for member_id, num_blocks in (("a", 3), ("b", 40), ("c", 15)):
        index.update(member_id, added=told(hashes[:num_blocks]), removed=())
    assert index.overlaps(hashes) == {"a": 3, "b": 40, "c": 15}
    assert index.overlaps(hashes[:14]) == {"a": 3, "b": 8, "c": 8}
    assert index.overlaps(hashes[:2]) == {"a": 2, "b": 2, "c": 2}
    assert index.overlaps(chain(2)) == {}
    assert index.overlaps([]) == {}


def test_what_is_removed_is_not_found_any_more() -> None:
    index, hashes = PrefixIndex(), chain(1)
    index.update("a", added=told(hashes), removed=())
    index.update("a", added=(), removed=told(hashes)[9:])
    assert index.overlaps(hashes) == {"a": 16}
    index.update("a", added=(), removed=told(hashes))
    assert index.overlaps(hashes) == {}


def test_a_hole_ends_a_prefix() -> None:
    index, hashes = PrefixIndex(), chain(1)
    index.update("a", added=[*hashes[:2], *hashes[3:]], removed=())
    assert index.overlaps(hashes) == {"a": 2}


def test_who_is_forgotten_leaves_nothing_behind_and_the_others_alone() -> None:
    index, hashes = PrefixIndex(), chain(1)
    for member_id in ("a", "b"):
        index.update(member_id, added=told(hashes), removed=())
    index.forget("a")
    index.forget("a")
    index.update("c", added=told(hashes[:4]), removed=())
    assert index.overlaps(hashes) == {"b": 40, "c": 4}
    index.forget("b")
    index.forget("c")
    assert (index._holders, index._members, index._bits, index._names_of) == ({}, {}, {}, {})


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2), st.integers(0, BLOCKS)), max_size=12))
def test_it_agrees_with_a_list_of_everything(caches: list[tuple[str, int, int]]) -> None:
    index = PrefixIndex()
    held: dict[tuple[str, int], int] = {}
    for member_id, seed, num_blocks in caches:
        index.update(member_id, added=told(chain(seed)[:num_blocks]), removed=())
        held[member_id, seed] = max(held.get((member_id, seed), 0), num_blocks)
    for seed in range(3):
        wanted = {member_id: num for (member_id, of), num in held.items() if of == seed and num}
        assert index.overlaps(chain(seed)) == wanted
