"""Fair queueing between projects by tokens; plain Python, no clock, no waiting.

Start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM 1996, section 2) with one
virtual counter per project instead of tags per request: the counter is the start tag of the project's next
request, and the project with the lowest one is served. Costs are predictions; what a request really took is
booked when it ends, as in VTC with length prediction (Sheng et al.: "Fairness in Serving Large Language
Models", OSDI 2024, section 4).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.gateway.admission.ranking import Ranking

Item = TypeVar("Item")


@dataclass
class _Line(Generic[Item]):
    """What one project has waiting."""

    counter: float
    items: Ranking[Item, int] = field(default_factory=Ranking)
    is_parked: bool = False


@dataclass(frozen=True)
class Head(Generic[Item]):
    """The item whose turn it is."""

    project: str
    item: Item


class FairQueue(Generic[Item]):
    """Items of many projects; within one project by priority (lowest first), then by arrival.

    The virtual time is the start tag of what was served last. A project that comes back from a pause starts
    there, so that a pause earns nothing, and a correction never takes a counter below it, so that nobody who
    comes new waits for more than one turn of each project before its own first one.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        """``weights`` are 1 unless given: twice the weight, twice the tokens."""
        self._weights = weights or {}
        self._lines: dict[str, _Line[Item]] = {}
        self._ready: Ranking[str, float] = Ranking()
        """Projects with something waiting that are not parked, by counter."""
        self._idle: Ranking[str, float] = Ranking()
        """Projects with nothing waiting that are still ahead of the virtual time, by counter."""
        self._virtual_time = 0.0
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def num_projects(self) -> int:
        """Projects with something waiting."""
        return len(self._lines) - len(self._idle)

    @property
    def num_known(self) -> int:
        """Projects that something is remembered of."""
        return len(self._lines)

    def num_waiting_of(self, project: str) -> int:
        """Return how many items of ``project`` wait."""
        line = self._lines.get(project)
        return len(line.items) if line is not None else 0

    def push(self, project: str, item: Item, *, priority: int = 0) -> None:
        """Let ``item`` wait; an item waits once."""
        line = self._lines.setdefault(project, _Line(self._virtual_time))
        if not line.items:
            line.counter = max(line.counter, self._virtual_time)
        line.items.put(item, priority)
        self._num_waiting += 1
        self._file(project, line)

    def head(self) -> Head[Item] | None:
        """Return whose turn it is, or None when nobody waits who is not parked."""
        first = self._ready.first()
        if first is None:
            return None
        project, _ = first
        item = self._lines[project].items.first()
        return Head(project, item[0]) if item is not None else None

    def serve(self, head: Head[Item], cost: float) -> None:
        """Take out the item whose turn it is and charge its project."""
        line = self._lines[head.project]
        self._virtual_time = max(self._virtual_time, line.counter)
        line.counter += cost / self._weight(head.project)
        self._take(head.project, line, head.item)
        self._forget()

    def correct(self, project: str, cost: float) -> None:
        """Charge what was charged too little, or give back (below 0) what was too much."""
        line = self._lines.get(project)
        if line is None and cost <= 0:
            return
        if line is None:
            line = self._lines[project] = _Line(self._virtual_time)
        line.counter = max(self._virtual_time, line.counter + cost / self._weight(project))
        self._file(project, line)
        self._forget()

    def withdraw(self, project: str, item: Item) -> bool:
        """Take out an item that no longer wants its turn; return whether it was there."""
        line = self._lines.get(project)
        if line is None or item not in line.items:
            return False
        self._take(project, line, item)
        self._forget()
        return True

    def park(self, project: str) -> None:
        """Leave ``project`` out: a limit of its own is reached."""
        line = self._lines[project]
        line.is_parked = True
        self._file(project, line)

    def unpark(self, project: str) -> None:
        """Let ``project`` take part again, as if it came back from a pause; others are ignored."""
        line = self._lines.get(project)
        if line is not None and line.is_parked:
            line.is_parked = False
            line.counter = max(line.counter, self._virtual_time)
            self._file(project, line)

    def _take(self, project: str, line: _Line[Item], item: Item) -> None:
        line.items.discard(item)
        self._num_waiting -= 1
        if not line.items:
            line.is_parked = False
        self._file(project, line)

    def _file(self, project: str, line: _Line[Item]) -> None:
        """Put a project where its state says."""
        self._ready.discard(project)
        self._idle.discard(project)
        if not line.items:
            self._idle.put(project, line.counter)
        elif not line.is_parked:
            self._ready.put(project, line.counter)

    def _forget(self) -> None:
        """Drop projects that would start at the virtual time anyway; nobody is owed anything when nobody waits."""
        while (first := self._idle.first()) is not None and (not self._num_waiting or first[1] <= self._virtual_time):
            self._idle.discard(first[0])
            del self._lines[first[0]]

    def _weight(self, project: str) -> float:
        return self._weights.get(project, 1.0)
