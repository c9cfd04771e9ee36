"""Operations of ``store/lua/files.lua``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.errors import Conflict, TandemError
from services.gateway.store.changes import Payloads, refused
from services.gateway.store.kinds import Ref


@dataclass(frozen=True)
class AdoptBytes:
    """Makes bytes that lie elsewhere those of an object, without copying them."""

    ref: Ref
    sources: Sequence[str]
    """Names of their keys, after the project's prefix, in order."""

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "adopt_bytes", "ref": self.ref.key, "sources": list(self.sources)}

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        if problem == "lost":
            return Conflict(
                "The bytes are no longer there: it took too long, or another request used them. Send again."
            )
        return refused(self.ref, problem, detail)


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
class ForgetExpiry:
    """Removes the end of an object that is gone; leaves that of others."""

    ref: Ref

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "forget_expiry", "ref": self.ref.key}

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        return refused(self.ref, problem, detail)
