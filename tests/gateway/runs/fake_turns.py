"""A model that says what a test tells it, calls of functions included."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from services.errors import PeerGone
from services.gateway.runs.turns import (
    Called,
    FullCall,
    Said,
    TurnContext,
    TurnEnded,
    TurnEvent,
    TurnPlan,
    TurnRequest,
    Written,
)


class FakeTurns:
    """Plays one script for each turn; a script is told from the event on that the known tokens reach."""

    def __init__(self, *scripts: Sequence[TurnEvent]) -> None:
        self._scripts = list(scripts)
        self.requests: list[TurnRequest] = []
        self.known: list[list[int]] = []
        self.hangs_after: int | None = None
        """How many events a turn has until it says nothing more."""
        self.fails_after: int | None = None
        """How many events the first attempt of a turn has until its worker is gone."""
        self.hanging = asyncio.Event()

    async def plan(self, request: TurnRequest) -> TurnPlan | None:
        self.requests.append(request)
        script = min(len(self.requests), len(self._scripts)) - 1  # a turn can be planned again by another gateway
        return TurnPlan("card", (1, 2, 3), {"script": script})

    async def write(
        self, context: TurnContext, plan: TurnPlan, known_token_ids: Sequence[int]
    ) -> AsyncGenerator[TurnEvent, None]:
        self.known.append(list(known_token_ids))
        num_told = 0
        for place, event in enumerate(self._scripts[int(plan.sampling["script"])]):
            if place == self.hangs_after:
                self.hanging.set()
                await asyncio.Event().wait()
            if place == self.fails_after:
                self.fails_after = None
                raise PeerGone("The worker is gone.")
            num_told += len(event.token_ids)
            if num_told <= len(known_token_ids) and not isinstance(event, TurnEnded):
                continue
            yield event


def text(*words: str) -> list[TurnEvent]:
    return [*(written(word, 10 + place) for place, word in enumerate(words)), TurnEnded("stop", (2,))]


def written(word: str, token_id: int) -> Said:
    return Said((token_id,), (Written(word),) if word else ())


def calls(*asked: tuple[str, str], before: str = "") -> list[TurnEvent]:
    """Calls by name and arguments, the arguments in two parts."""
    events: list[TurnEvent] = [written(before, 5)] if before else []
    for index, (name, arguments) in enumerate(asked):
        half = len(arguments) // 2
        parts = Called(index, "", name), Called(index, arguments[:half]), Called(index, arguments[half:])
        events += [Said((20 + place,), (part,)) for place, part in enumerate(parts)]
    return [*events, TurnEnded("stop", (2,), calls=tuple(FullCall(*each) for each in asked))]
