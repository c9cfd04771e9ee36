"""Which blocks stand for those before them where a worker tells others what it has cached.

A block is cached no longer than those before it in its sequence, so its name alone tells of a whole prefix. Naming
the first blocks of a sequence, then every eighth, and the one with which it ended keeps whole conversations and short
common beginnings exact, and long prompts cheap to tell of and to look up.
"""

from collections.abc import Iterable
from itertools import chain

_NUM_EXACT = 8
_STRIDE = 8


def is_landmark(index: int) -> bool:
    """Return whether the ``index``-th whole block of a sequence, counted from 0, is told of wherever it stands."""
    return index < _NUM_EXACT or index % _STRIDE == _STRIDE - 1


def landmarks(num_blocks: int) -> Iterable[int]:
    """Return the indices of the landmarks among the first ``num_blocks`` blocks, in order."""
    first = _NUM_EXACT + _STRIDE - 1 - _NUM_EXACT % _STRIDE
    return chain(range(min(_NUM_EXACT, num_blocks)), range(first, num_blocks, _STRIDE))
