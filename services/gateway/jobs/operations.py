"""Operations of ``store/lua/jobs.lua``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.errors import Conflict, ObjectRefused, TandemError
from services.gateway.jobs.events import Body, LogEntry
from services.gateway.store.changes import Payloads, refused, with_payload
from services.gateway.store.kinds import Ref
from services.gateway.store.leases import lease_refused

QUEUE = "jobs"
"""Where the leases of jobs are."""


@dataclass(frozen=True)
class RequireIdleThread:
    """Makes a change depend on that no job is active in a thread."""

    ref: Ref

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "require_idle_thread", "ref": self.ref.key}

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        if problem == "active":
            return ObjectRefused(f"Can't add messages to {self.ref.id} while a run {detail} is active.")
        return refused(self.ref, problem, detail)


@dataclass(frozen=True)
class ClaimThread:
    """Gives a thread to a job that the same change creates."""

    ref: Ref
    job: Ref
    may_wait: bool = False
    """Whether the job waits for its turn if another one has the thread."""
    last_child: int | None = None
    """The last number that the thread gave to something in it, if nothing may have come since."""

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        encoded = {"name": "claim_thread", "ref": self.ref.key, "job": self.job.key, "may_wait": self.may_wait}
        return encoded if self.last_child is None else {**encoded, "last_child": self.last_child}

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        if problem == "active":
            return ObjectRefused(f"Thread {self.ref.id} already has an active run {detail}.")
        if problem == "moved":
            return Conflict(f"Something was added to {self.ref.id} meanwhile; read it again and retry.")
        return refused(self.ref, problem, detail)


@dataclass(frozen=True)
class WriteJob:
    """New events of a job and what they change, written by the gateway with the present fencing number."""

    ref: Ref
    fence: int
    now_ms: int
    due_ms: int | None
    """When any gateway may take the job; None means that it has ended."""
    expires_ms: int
    """When its time is over; until then a job that waits for its thread is left alone."""
    entries: Sequence[LogEntry] = ()
    body: Body | None = None
    version: int | None = None
    """The version that ``body`` replaces."""
    private: bytes | None = None
    retention_s: float = 0.0
    """How long the events are kept after the last one."""

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        encoded = {
            "name": "write_job",
            "ref": self.ref.key,
            "fence": self.fence,
            "now_ms": self.now_ms,
            "expires_ms": self.expires_ms,
            "events": [_encoded(entry, payloads) for entry in self.entries],
            "first_event": self.entries[0].number if self.entries else 0,
            "retention_ms": round(1e3 * self.retention_s),
        }
        if self.due_ms is not None:
            encoded["due_ms"] = self.due_ms
        if self.body is not None:
            encoded |= {"body": payloads.add(orjson.dumps(self.body)), "version": self.version}
        return with_payload(encoded, "private", self.private, payloads)

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        if problem == "position":
            return Conflict(f"The next event of the {self.ref.kind.noun} '{self.ref.id}' is not number {detail}.")
        return lease_refused(self.ref, problem, detail)


def _encoded(entry: LogEntry, payloads: Payloads) -> dict[str, Any]:
    encoded = {"name": entry.name, "data": payloads.add(entry.data), "pauses_job": entry.pauses_job}
    progress = orjson.dumps(entry.token_ids) if entry.token_ids else None
    return with_payload(encoded, "progress", progress, payloads)
