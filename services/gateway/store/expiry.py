"""Operations of ``lua/expiry.lua``: objects that end at a time of their own."""

from dataclasses import dataclass
from typing import Any

from services.errors import Conflict, TandemError
from services.gateway.store.changes import Payloads, refused
from services.gateway.store.kinds import Ref


@dataclass(frozen=True)
class ExpireAt:
    """Lets an object end at a time; None lets it stay."""

    ref: Ref
    at_s: int | None
    """Seconds since the Unix epoch."""

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        encoded = {"name": "expire_at", "ref": self.ref.key}
        return encoded if self.at_s is None else {**encoded, "at_ms": 1000 * self.at_s}

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        return refused(self.ref, problem, detail)


@dataclass(frozen=True)
class RequireDue:
    """Refuses a change that ends an object whose end was put off meanwhile."""

    ref: Ref
    now_ms: int

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "require_due", "ref": self.ref.key, "now_ms": self.now_ms}

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        if problem == "not_due":
            return Conflict(f"The time of the {self.ref.kind.noun} '{self.ref.id}' is not over.")
        return refused(self.ref, problem, detail)


@dataclass(frozen=True)
class ForgetExpiry:
    """Removes the end of an object that is gone; leaves that of others."""

    ref: Ref

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "forget_expiry", "ref": self.ref.key}

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        return refused(self.ref, problem, detail)
