"""A priority queue whose items can change their rank and leave; every operation is O(log n), amortised."""

import heapq
from typing import Any, Generic, Protocol, TypeVar


class _Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


Item = TypeVar("Item")
Rank = TypeVar("Rank", bound=_Ordered)
_MIN_ENTRIES = 16


class Ranking(Generic[Item, Rank]):
    """Items by rank, lowest first; of equal ranks the one that was put first.

    An entry of the heap whose number is not its item's present one is out of date. When most of them are,
    they are thrown away, so that the heap is never larger than twice what it holds.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, int, Item]] = []
        self._numbers: dict[Item, int] = {}
        self._num_put = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, item: Item) -> bool:
        return item in self._numbers

    @property
    def num_entries(self) -> int:
        """Length of the heap, entries that are out of date included."""
        return len(self._heap)

    def put(self, item: Item, rank: Rank) -> None:
        """Give ``item`` its rank, whether it is new or not."""
        self._num_put += 1
        self._numbers[item] = self._num_put
        heapq.heappush(self._heap, (rank, self._num_put, item))
        self._tidy()

    def discard(self, item: Item) -> None:
        """Take ``item`` out; unknown ones are ignored."""
        if self._numbers.pop(item, None) is not None:
            self._tidy()

    def first(self) -> tuple[Item, Rank] | None:
        """Return the first item and its rank, or None when there is none."""
        while self._heap:
            rank, number, item = self._heap[0]
            if self._numbers.get(item) == number:
                return item, rank
            heapq.heappop(self._heap)
        return None

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._numbers) + _MIN_ENTRIES:
            self._heap = [entry for entry in self._heap if self._numbers.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)
