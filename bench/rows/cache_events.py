"""Applying what workers tell of their caches: blocks that came and went, on one core."""

from bench.rows.hashing import BLOCK_SIZE, hashes, prompt
from bench.timing import best_cpu_s
from services.gateway.routing.prefixes import PrefixIndex
from services.kv.hashes import BlockHash

EVENTS_PER_UPDATE = 8
"""What a worker tells at once, after a step."""


class Feeds:
    """Workers whose caches hold parts of the same prompts."""

    def __init__(self, num_workers: int, num_blocks: int) -> None:
        names = hashes(prompt(num_blocks * BLOCK_SIZE))
        self.index = PrefixIndex()
        starts = range(0, num_blocks, EVENTS_PER_UPDATE)
        self._updates: list[tuple[str, list[BlockHash]]] = [
            (f"worker-{(start // EVENTS_PER_UPDATE) % num_workers}", names[start : start + EVENTS_PER_UPDATE])
            for start in starts
        ]

    @property
    def num_events(self) -> int:
        """Events of one round: each block comes and goes."""
        return 2 * sum(len(names) for _, names in self._updates)

    def come(self) -> None:
        """Tell of all blocks."""
        for worker, names in self._updates:
            self.index.update(worker, added=names, removed=())

    def go(self) -> None:
        """Take all back."""
        for worker, names in self._updates:
            self.index.update(worker, added=(), removed=names)


def measure(num_workers: int = 1000, num_blocks: int = 20_000, rounds: int = 5) -> float:
    """Return events per second."""
    feeds = Feeds(num_workers, num_blocks)

    def round_trip() -> None:
        feeds.come()
        feeds.go()

    return feeds.num_events / best_cpu_s(round_trip, rounds)
