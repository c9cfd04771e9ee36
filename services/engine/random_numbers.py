"""Counter-based random numbers: Philox4x32-10.

J. Salmon, M. Moraes, R. Dror, D. Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011), section 3.3.
There is no state: a number is a function of a 64-bit key and a 128-bit counter.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Words = npt.NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def uniforms(seeds: Sequence[int], choice_indices: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) per row, a pure function of (seed, choice index, position).

    Args:
        seeds: 64-bit keys, ``[num_rows]``.
        choice_indices: 32-bit, ``[num_rows]``.
        positions: 32-bit output positions, ``[num_rows]``.

    Returns:
        float64 ``[num_rows]``, multiples of 2**-52.
    """
    key = np.array(seeds, dtype=np.uint64)
    zero = np.zeros(len(key), dtype=np.uint64)
    counter = (np.array(positions, dtype=np.uint64), np.array(choice_indices, dtype=np.uint64), zero, zero)
    high, low, _, _ = philox(counter, (key & _MASK, key >> _HALF))
    return ((high << np.uint64(20)) | (low >> np.uint64(12))).astype(np.float64) * 2.0**-52


def philox(
    counter: tuple[_Words, _Words, _Words, _Words], key: tuple[_Words, _Words]
) -> tuple[_Words, _Words, _Words, _Words]:
    """Return four random 32-bit words per row for 32-bit words of counter and key, all held in uint64."""
    word_0, word_1, word_2, word_3 = counter
    key_0, key_1 = key
    for _ in range(_ROUNDS):
        product_0, product_1 = word_0 * _MULTIPLIER_0, word_2 * _MULTIPLIER_1
        word_0, word_2 = (product_1 >> _HALF) ^ word_1 ^ key_0, (product_0 >> _HALF) ^ word_3 ^ key_1
        word_1, word_3 = product_1 & _MASK, product_0 & _MASK
        key_0, key_1 = (key_0 + _WEYL_0) & _MASK, (key_1 + _WEYL_1) & _MASK
    return word_0, word_1, word_2, word_3
