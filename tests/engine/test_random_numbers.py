import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.random_numbers import philox, uniforms
from services.kv.sampling import MAX_SEED

KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[np.ndarray[tuple[int], np.dtype[np.uint64]]]:
    return [np.array([int(word, 16)], dtype=np.uint64) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    c, k = words(counter), words(key)
    result = philox((c[0], c[1], c[2], c[3]), (k[0], k[1]))
    assert " ".join(f"{int(word[0]):08x}" for word in result) == expected


rows = st.tuples(st.integers(0, MAX_SEED), st.integers(0, 2**32 - 1), st.integers(0, 2**31))


@given(st.lists(rows, min_size=1, max_size=9))
def test_a_number_depends_on_its_own_row_only(batch: list[tuple[int, int, int]]) -> None:
    seeds, choices, positions = (list(column) for column in zip(*batch, strict=True))
    together = uniforms(seeds, choices, positions)
    alone = [uniforms([seed], [choice], [position])[0] for seed, choice, position in batch]
    assert together.tolist() == alone
    assert all(0.0 <= number < 1.0 for number in alone)


def test_numbers_differ_by_seed_choice_and_position() -> None:
    numbers = uniforms([0, 1, 2**32, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1])
    assert len(set(numbers.tolist())) == 5


def test_numbers_are_uniform() -> None:
    numbers = uniforms([7] * 100_000, [0] * 100_000, range(100_000))
    counts = np.histogram(numbers, bins=100, range=(0.0, 1.0))[0]
    assert ((counts - 1_000.0) ** 2 / 1_000.0).sum() < 148.2  # chi-square, 99 degrees of freedom, p = 0.001
