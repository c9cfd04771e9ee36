"""Blocks of sequences that left this worker, kept until a peer has fetched them, each until its deadline."""

import asyncio
from dataclasses import dataclass

from services.telemetry.logs import get_logger
from services.worker.node import Node

_log = get_logger(__name__)


@dataclass(frozen=True)
class _Kept:
    hold: int
    giving_up: asyncio.Task[None]


class KeptBlocks:
    """Owns leases by name; ``close`` gives up all of them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._kept: dict[str, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, name: str, hold: int, *, keep_s: float) -> None:
        """Own ``hold`` for at most ``keep_s`` from now on; what was kept under this name before is let go."""
        self.let_go(name)
        giving_up = asyncio.create_task(self._give_up(name, keep_s), name=f"keep {name}")
        self._kept[name] = _Kept(hold, giving_up)

    def let_go(self, name: str) -> None:
        """Nobody needs the blocks any more; unknown names are ignored."""
        kept = self._kept.pop(name, None)
        if kept is not None:
            kept.giving_up.cancel()
            self._node.engine.post(lambda scheduler: scheduler.release(kept.hold))

    async def close(self) -> None:
        """Let everything go."""
        tasks = [kept.giving_up for kept in self._kept.values()]
        for name in list(self._kept):
            self.let_go(name)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _give_up(self, name: str, keep_s: float) -> None:
        await self._node.clock.sleep(keep_s)
        _log.warning("handover.unclaimed", request_id=name, after_s=keep_s)
        self.let_go(name)
