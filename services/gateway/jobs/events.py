"""Events of a job: what clients read, and what another gateway needs to go on from there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

Body = Mapping[str, Any]
"""An object as the API shows it."""

ENDS = frozenset({"completed", "incomplete", "failed", "expired", "cancelled"})
"""Statuses that a job never leaves."""
PAUSES = ENDS | {"requires_action"}
"""Statuses in which nothing happens unless a client does something; streams end there."""


@dataclass(frozen=True)
class Event:
    """Something that happened; its data is what clients get."""

    name: str
    data: Body
    token_ids: tuple[int, ...] = ()
    """Output tokens since the event before it that had any; this event and those before show all of their text."""
    pauses_job: bool = False
    """Whether nothing follows unless a client does something."""

    @property
    def is_delta(self) -> bool:
        """Whether the event adds to an object instead of giving it whole."""
        return self.name.endswith(".delta")

    def with_metadata(self, object_id: str, metadata: Any) -> "Event":
        """Return the event with the metadata that a client gave one object meanwhile."""
        if self.is_delta or self.data.get("id") != object_id:
            return self
        return replace(self, data={**self.data, "metadata": metadata})


@dataclass(frozen=True)
class LogEntry:
    """An event at its place in the log of a job."""

    number: int
    """From 1."""
    name: str
    data: bytes
    """JSON."""
    token_ids: tuple[int, ...] = ()
    pauses_job: bool = False

    @property
    def event(self) -> Event:
        """The event itself."""
        return Event(self.name, orjson.loads(self.data), self.token_ids, self.pauses_job)


def with_tokens(events: Sequence[Event], silent_ids: list[int], token_ids: Sequence[int]) -> list[Event]:
    """Return events of which the last one carries ``token_ids`` and those that no event carried before.

    ``silent_ids`` are the latter; without an event to carry them they become more.
    """
    silent_ids.extend(token_ids)
    if not events:
        return []
    carrying = replace(events[-1], token_ids=tuple(silent_ids))
    silent_ids.clear()
    return [*events[:-1], carrying]


def numbered(events: Sequence[Event], first: int) -> tuple[LogEntry, ...]:
    """Return events as entries of the log, from number ``first`` on."""
    return tuple(
        LogEntry(first + place, event.name, orjson.dumps(event.data), event.token_ids, event.pauses_job)
        for place, event in enumerate(events)
    )
