"""Operations of ``lua/leases.lua``: at most one gateway works on an object."""

from dataclasses import dataclass
from typing import Any

from services.errors import JobEnded, LeaseLost, TandemError
from services.gateway.store.changes import Payloads, refused
from services.gateway.store.kinds import Ref


@dataclass(frozen=True)
class _Lease:
    """An operation on one object of a queue."""

    queue: str
    ref: Ref

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        return lease_refused(self.ref, problem, detail)


@dataclass(frozen=True)
class TakeLease(_Lease):
    """Makes a gateway the only one that may write an object; ``details`` has its ``fence``."""

    now_ms: int
    until_ms: int
    is_forced: bool = False
    """Take it though the lease of another gateway holds."""

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        times = {"now_ms": self.now_ms, "until_ms": self.until_ms}
        return {"name": "take_lease", **_named(self), **times, "is_forced": self.is_forced}


@dataclass(frozen=True)
class RenewLease(_Lease):
    """Moves the end of a lease; the present time gives the object to whoever wants it."""

    fence: int
    until_ms: int

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "renew_lease", **_named(self), "fence": self.fence, "until_ms": self.until_ms}


@dataclass(frozen=True)
class EndLease(_Lease):
    """Takes an object out of its queue; without a fence whoever holds it is refused from now on."""

    fence: int | None = None

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        encoded = {"name": "end_lease", **_named(self)}
        return encoded if self.fence is None else {**encoded, "fence": self.fence}


@dataclass(frozen=True)
class ForgetLease(_Lease):
    """Takes an object out of its queue that was deleted; leaves all others alone."""

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "forget_lease", **_named(self)}


def lease_refused(ref: Ref, problem: str, detail: str) -> TandemError:
    """Return the error for a problem that any operation of a held object can have."""
    if problem == "ended":
        return JobEnded(f"Nothing is left to do for the {ref.kind.noun} '{ref.id}'.")
    if problem in ("held", "fence"):
        return LeaseLost(f"Another gateway holds the {ref.kind.noun} '{ref.id}'.")
    return refused(ref, problem, detail)


def _named(lease: _Lease) -> dict[str, Any]:
    return {"queue": lease.queue, "ref": lease.ref.key}
