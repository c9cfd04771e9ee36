"""A clock whose sleepers wake when a test moves it."""

import asyncio


class SteppingClock:
    """``sleep`` suspends until ``advance`` passes its end."""

    def __init__(self, start_s: float = 1_000.0) -> None:
        self.delays_s: list[float] = []
        self._now_s = start_s
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now_s

    def wall(self) -> float:
        return self._now_s

    async def sleep(self, delay_s: float) -> None:
        self.delays_s.append(delay_s)
        wake = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now_s + delay_s, wake))
        await wake

    async def advance(self, delay_s: float) -> None:
        """Move, wake whoever is due and let them run until they sleep again."""
        self._now_s += delay_s
        due = [wake for end_s, wake in self._sleepers if end_s <= self._now_s]
        self._sleepers = [(end_s, wake) for end_s, wake in self._sleepers if end_s > self._now_s]
        for wake in due:
            if not wake.done():
                wake.set_result(None)
        await settle()


async def settle() -> None:
    """Let every ready task run."""
    for _ in range(20):
        await asyncio.sleep(0)
