"""Runs hypothesis against something that lives in an event loop; short and repeatable, or long and random."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

ValueT = TypeVar("ValueT")
EXAMPLE_DEADLINE_S = 60.0
"""Whatever takes longer hangs."""


@dataclass(frozen=True)
class Budget:
    """How many examples are tried for each property, and which."""

    seed: int
    factor: int = 1

    def run(
        self,
        runner: asyncio.Runner,
        values: st.SearchStrategy[ValueT],
        check: Callable[[ValueT], Coroutine[Any, Any, None]],
        *,
        examples: int,
    ) -> None:
        """Check ``examples`` values (times the factor), each within a deadline."""

        async def within_deadline(value: ValueT) -> None:
            async with asyncio.timeout(EXAMPLE_DEADLINE_S):
                await check(value)

        @seed(self.seed)
        @settings(
            max_examples=examples * self.factor,
            deadline=None,
            database=None,
            phases=(Phase.explicit, Phase.generate),  # what is broken stays broken, so that nothing can be shrunk
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(values)
        def property_holds(value: ValueT) -> None:
            runner.run(within_deadline(value))

        property_holds()
