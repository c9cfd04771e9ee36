"""Faults of one worker's transport, by the number of a push or of a notice, counted from 0."""

from collections.abc import Mapping

from services.faults.armed import ArmedFaults
from services.faults.plan import Action, FaultPlan, ScriptedFault
from services.telemetry.clock import SystemClock

STALL_S = 1e9
"""What is stalled waits for ``TransportFaults.resume``."""
NOTHING: Mapping[int, Action] = {}


def scripted(
    *,
    pushes: Mapping[int, Action] = NOTHING,
    ends: Mapping[int, Action] = NOTHING,
    notices: Mapping[int, Action] = NOTHING,
) -> FaultPlan:
    """Return a plan; what it does to the end of a push, the sender is told."""
    by_step = {"push.posted": pushes, "push.done": ends, "notice.received": notices}
    lines = [
        ScriptedFault(step=f"transfer.{step}", action=action, nth=number + 1)
        for step, actions in by_step.items()
        for number, action in actions.items()
    ]
    return FaultPlan(faults=tuple(lines), stall_s=STALL_S)


class TransportFaults(ArmedFaults):
    """Faults by a clock that can leap."""

    def __init__(self) -> None:
        super().__init__(FaultPlan())
        self.clock = _LeapingClock()

    @property
    def num_pushes(self) -> int:
        """Pushes that were asked for."""
        return self._occurrences["transfer.push.posted"]

    def resume(self) -> None:
        """Let everything go on that is stalled now (from any thread)."""
        self.clock.leap_s += STALL_S


class _LeapingClock(SystemClock):
    leap_s = 0.0

    def now(self) -> float:
        return super().now() + self.leap_s
