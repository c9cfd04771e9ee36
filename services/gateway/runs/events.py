"""Events of a run: what clients read, and what another gateway needs to go on from there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from services.gateway.runs.lifecycle import PAUSES, Body

DONE = b"event: done\ndata: [DONE]\n\n"


@dataclass(frozen=True)
class RunEvent:
    """Something that happened; all but deltas carry a whole object, which is its new state."""

    name: str
    data: Body
    token_ids: tuple[int, ...] = ()
    """Output tokens since the event before it that had any; this event and those before show all of their text."""

    @property
    def is_delta(self) -> bool:
        """Whether the event adds to an object instead of giving it whole."""
        return self.name.endswith(".delta")

    @property
    def pauses_run(self) -> bool:
        """Whether nothing follows unless a client does something."""
        return self.name.startswith("thread.run.") and self.name.removeprefix("thread.run.") in PAUSES

    def with_metadata(self, object_id: str, metadata: Any) -> "RunEvent":
        """Return the event with the metadata that a client gave one object meanwhile."""
        if self.is_delta or self.data["id"] != object_id:
            return self
        return replace(self, data={**self.data, "metadata": metadata})


@dataclass(frozen=True)
class LogEntry:
    """An event at its place in the log of a run."""

    number: int
    """From 1."""
    name: str
    data: bytes
    """JSON."""
    token_ids: tuple[int, ...] = ()

    @property
    def event(self) -> RunEvent:
        """The event itself."""
        return RunEvent(self.name, orjson.loads(self.data), self.token_ids)

    @property
    def pauses_run(self) -> bool:
        """Whether nothing follows unless a client does something."""
        return RunEvent(self.name, {}).pauses_run

    def sse(self) -> bytes:
        """Return the entry as a server-sent event; its id is where a client can begin again."""
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (self.number, self.name.encode(), self.data)


def run_event(run: Body) -> RunEvent:
    """Return the event that tells the new status of a run."""
    return RunEvent(f"thread.run.{run['status']}", run)


def step_event(step: Body) -> RunEvent:
    """Return the event that tells the new status of a step."""
    return RunEvent(f"thread.run.step.{step['status']}", step)


def message_event(message: Body) -> RunEvent:
    """Return the event that tells the new status of a message."""
    return RunEvent(f"thread.message.{message['status']}", message)


def numbered(events: Sequence[RunEvent], first: int) -> tuple[LogEntry, ...]:
    """Return events as entries of the log, from number ``first`` on."""
    return tuple(
        LogEntry(first + place, event.name, orjson.dumps(event.data), event.token_ids)
        for place, event in enumerate(events)
    )
