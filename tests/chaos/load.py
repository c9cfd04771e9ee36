"""Callers that never stop asking, and compare every answer with the undisturbed one."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

from tests.chaos.caller import Heard
from tests.chaos.fleet import NUM_QUESTIONS, NUM_TOKENS, Fleet


@dataclass
class Load:
    """So many callers at once; an answer that differs or fails ends the test."""

    fleet: Fleet
    num_callers: int
    cancel_share: float = 0.0
    random: Random = field(default_factory=lambda: Random(0))
    num_answers: int = 0
    num_cancelled: int = 0
    num_replayed: int = 0
    first_tokens_s: list[float] = field(default_factory=list)
    """Time to first token of each stream that met no fault."""
    heard: dict[int, Heard] = field(default_factory=dict)
    """What the streams that are open now have heard."""
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _is_open: asyncio.Event = field(default_factory=asyncio.Event)
    _is_over: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask until the context is left; then let everything end."""
        self._is_open.set()
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.num_callers):
                tasks.create_task(self._ask_for_ever(number))
            try:
                yield
            finally:
                self._is_over = True
                self._is_open.set()

    def pause(self) -> None:
        """Begin nothing new."""
        self._is_open.clear()

    def go_on(self) -> None:
        self._is_open.set()

    async def rest(self, timeout_s: float) -> None:
        """Begin nothing new, and wait until all open streams have ended."""
        self.pause()
        async with asyncio.timeout(timeout_s):
            while self.heard:
                await asyncio.sleep(0.02)

    async def burst(self, num_streams: int) -> None:
        """Ask so much more at once."""
        await asyncio.gather(*(self.ask(index) for index in range(num_streams)))

    async def ask(self, index: int) -> None:
        """Ask one question to its end, or give it up."""
        heard, number = Heard(), next(self._numbers)
        self.heard[number] = heard
        try:
            if self.random.random() < self.cancel_share:
                await self.fleet.caller.give_up(
                    self.fleet.question(index), after_tokens=self.random.randrange(NUM_TOKENS), heard=heard
                )
                self.num_cancelled += 1
            else:
                await self.fleet.caller.ask(self.fleet.question(index), heard)
                assert heard.reason == "length"
                self.fleet.check(index, heard.token_ids)
                self.num_answers += 1
                self.num_replayed += heard.replays > 0
                if not heard.replays:
                    self.first_tokens_s.append(heard.first_token_after_s)
        finally:
            del self.heard[number]

    async def _ask_for_ever(self, number: int) -> None:
        while not self._is_over:
            await self._is_open.wait()
            if not self._is_over:
                await self.ask(self.random.randrange(NUM_QUESTIONS))
