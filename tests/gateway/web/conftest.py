import asyncio

import pytest


class LoopTime:
    """The time of the running event loop, which stands still until a test lets it pass."""

    def __init__(self, patches: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._now_s = loop.time()
        patches.setattr(loop, "time", lambda: self._now_s)

    def pass_by(self, duration_s: float) -> None:
        """Let what was due within ``duration_s`` happen next."""
        self._now_s += duration_s


@pytest.fixture
async def loop_time(monkeypatch: pytest.MonkeyPatch) -> LoopTime:
    return LoopTime(monkeypatch)
