"""Members that failed a request: avoided at once, and until they took a request or answered a probe."""

from collections.abc import Collection

from services.telemetry.clock import Clock


class Suspects:
    """Marks that stay until they are taken back; each has a time from which on its member may be asked again."""

    def __init__(self, clock: Clock, pause_s: float) -> None:
        self._clock = clock
        self._pause_s = pause_s
        self._probed_from_s: dict[str, float] = {}

    def mark(self, member_id: str) -> None:
        """Avoid the member, and leave it in peace for a while from now on."""
        self._probed_from_s[member_id] = self._clock.now() + self._pause_s

    def clear(self, member_id: str) -> None:
        """Trust the member again."""
        self._probed_from_s.pop(member_id, None)

    def now(self) -> frozenset[str]:
        """Return the ids that are suspect now."""
        return frozenset(self._probed_from_s)

    def due(self) -> frozenset[str]:
        """Return the ids of suspects that may be asked how they are."""
        now_s = self._clock.now()
        return frozenset(member_id for member_id, from_s in self._probed_from_s.items() if from_s <= now_s)

    def keep_only(self, member_ids: Collection[str]) -> None:
        """Forget members that are gone."""
        for member_id in self._probed_from_s.keys() - set(member_ids):
            del self._probed_from_s[member_id]
