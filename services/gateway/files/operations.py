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
