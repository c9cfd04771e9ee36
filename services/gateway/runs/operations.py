"""Operations of ``store/lua/runs.lua``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.errors import Conflict, LeaseLost, ObjectNotFound, ObjectRefused, RunEnded, TandemError
from services.gateway.runs.events import LogEntry
from services.gateway.runs.lifecycle import Body
from services.gateway.store.changes import Payloads, refused, with_payload
from services.gateway.store.kinds import Ref


@dataclass(frozen=True)
class RequireIdleThread:
    """Makes a change depend on that no run is active in a thread."""

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
    """Gives a thread to a run; ``may_wait`` lets the run wait for its turn if another one has the thread."""

    ref: Ref
    run: Ref
    may_wait: bool = False

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "claim_thread", "ref": self.ref.key, "run": self.run.key, "may_wait": self.may_wait}

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        if problem == "active":
            return ObjectRefused(f"Thread {self.ref.id} already has an active run {detail}.")
        return refused(self.ref, problem, detail)


@dataclass(frozen=True)
class TakeRun:
    """Makes a gateway the only one that may write a run; ``is_forced`` does it though another one's lease holds."""

    ref: Ref
    owner: str
    now_ms: int
    until_ms: int
    is_forced: bool = False

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {
            "name": "take_run",
            "ref": self.ref.key,
            "owner": self.owner,
            "now_ms": self.now_ms,
            "until_ms": self.until_ms,
            "is_forced": self.is_forced,
        }

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        if problem == "ended":
            return RunEnded(f"The run '{self.ref.id}' has ended.")
        if problem == "held":
            return LeaseLost(f"Another gateway holds the run '{self.ref.id}'.")
        return refused(self.ref, problem, detail)


@dataclass(frozen=True)
class ForgetRun:
    """Removes what is left of a run that was deleted with its thread; leaves all others alone."""

    ref: Ref

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "forget_run", "ref": self.ref.key}

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        return refused(self.ref, problem, detail)


@dataclass(frozen=True)
class Lease:
    """Until when a run is left to its gateway."""

    owner: str
    """Empty if no gateway works on the run."""
    now_ms: int
    due_ms: int | None
    """When any gateway may take it; None means that it has ended."""
    expires_ms: int = 0
    """When it expires; until then a run that waits for its thread is left alone."""


@dataclass(frozen=True)
class WriteRun:
    """New events of a run and what they change, written by the gateway with the present fencing number."""

    ref: Ref
    fence: int
    lease: Lease
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
            "name": "write_run",
            "ref": self.ref.key,
            "fence": self.fence,
            "owner": self.lease.owner,
            "now_ms": self.lease.now_ms,
            "expires_ms": self.lease.expires_ms,
            "events": [_encoded(entry, payloads) for entry in self.entries],
            "first_event": self.entries[0].number if self.entries else 0,
            "retention_ms": round(1e3 * self.retention_s),
        }
        if self.lease.due_ms is not None:
            encoded["due_ms"] = self.lease.due_ms
        if self.body is not None:
            encoded |= {"body": payloads.add(orjson.dumps(self.body)), "version": self.version}
        return with_payload(encoded, "private", self.private, payloads)

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        if problem == "fence":
            return LeaseLost(f"Another gateway took the run '{self.ref.id}'.")
        if problem == "position":
            return Conflict(f"The next event of the run '{self.ref.id}' is not number {detail}.")
        if problem == "absent":
            return ObjectNotFound(self.ref.absent_text)
        return refused(self.ref, problem, detail)


def _encoded(entry: LogEntry, payloads: Payloads) -> dict[str, Any]:
    encoded = {"name": entry.name, "data": payloads.add(entry.data)}
    progress = orjson.dumps(entry.token_ids) if entry.token_ids else None
    return with_payload(encoded, "progress", progress, payloads)
