"""How far into queues of due objects a gateway looks, so that what it leaves at their front hides nothing."""


class Passed:
    """Objects that were looked at and left, by project; each look begins behind them until the end of the queue."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def of(self, project: str) -> int:
        """Return how many objects to pass over."""
        return self._counts.get(project, 0)

    def looked(self, project: str, *, num_left: int, is_at_end: bool) -> None:
        """Note that so many more were left; at the end of the queue the next look begins at its front again."""
        if is_at_end:
            self._counts.pop(project, None)
        else:
            self._counts[project] = self.of(project) + num_left
