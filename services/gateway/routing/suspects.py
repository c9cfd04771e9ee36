"""Members that failed a request a moment ago."""

from services.telemetry.clock import Clock


class Suspects:
    """Marks that expire by themselves."""

    def __init__(self, clock: Clock, duration_s: float) -> None:
        self._clock = clock
        self._duration_s = duration_s
        self._until_s: dict[str, float] = {}

    def mark(self, member_id: str) -> None:
        """Avoid the member for a while from now on."""
        self._until_s[member_id] = self._clock.now() + self._duration_s

    def clear(self, member_id: str) -> None:
        """Trust the member again: it took a request."""
        self._until_s.pop(member_id, None)

    def now(self) -> frozenset[str]:
        """Return the ids that are suspect now."""
        now_s = self._clock.now()
        self._until_s = {member_id: until_s for member_id, until_s in self._until_s.items() if until_s > now_s}
        return frozenset(self._until_s)
