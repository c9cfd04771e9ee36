"""How long a side waits for the other one, in tests that lose messages on purpose."""

from collections.abc import Awaitable, Callable

PATIENCE_S = (0.4, 1.6, 6.4)
"""What is lost is waited for, so the first is short; on a slow host even a message that comes may take longer."""


async def with_patience(scenario: Callable[[float], Awaitable[int]]) -> None:
    """Run ``scenario``, which returns how many faults it met, until it met one.

    Whoever gives up an innocent peer goes another way, on which the step of the fault may never happen. The scenario
    asserts the same of either way; only that the fault happened takes a side that waits long enough for it.
    """
    for patience_s in PATIENCE_S:
        if await scenario(patience_s):
            return
    raise AssertionError(f"The step of the fault did not happen, not even when each side waits {PATIENCE_S[-1]:g} s.")
