"""How long an answer will be, guessed from the last ones of the same project."""

from collections import OrderedDict

_WEIGHT = 0.2
"""About the last five answers count, as in Sheng et al. (OSDI 2024), section 4."""
MAX_PROJECTS = 4096


class OutputLengths:
    """Average output tokens per sequence for each project; the least recently used project is forgotten first."""

    def __init__(self) -> None:
        self._averages: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._averages)

    def predicted(self, project: str, most: float) -> float:
        """Return the length to expect, at most ``most``; without experience it is ``most``."""
        return min(most, self._averages.get(project, most))

    def observe(self, project: str, length: float) -> None:
        """Account for one sequence that ended."""
        average = self._averages.pop(project, length)
        self._averages[project] = average + _WEIGHT * (length - average)
        if len(self._averages) > MAX_PROJECTS:
            self._averages.popitem(last=False)
