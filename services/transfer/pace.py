"""How long to sleep between two polls: short while something is under way, longer and longer while nothing comes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaceSettings:
    """Seconds between polls, and by which factor fruitless polls lengthen them."""

    first_s: float = 0.0002
    busy_limit_s: float = 0.0005
    idle_limit_s: float = 0.02
    growth: float = 1.5


class Pace:
    """A back-off that starts over whenever something happened."""

    def __init__(self, settings: PaceSettings) -> None:
        self._settings = settings
        self._interval_s = settings.first_s

    def start_over(self) -> None:
        """Something happened: poll again soon."""
        self._interval_s = self._settings.first_s

    def next_s(self, *, is_busy: bool) -> float:
        """Return how long to sleep before the next poll."""
        limit_s = self._settings.busy_limit_s if is_busy else self._settings.idle_limit_s
        interval_s = min(self._interval_s, limit_s)
        self._interval_s = min(interval_s * self._settings.growth, limit_s)
        return interval_s
