"""Operations of ``store/lua/ingestions.lua``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.errors import Conflict, TandemError
from services.gateway.store.changes import Payloads, refused
from services.gateway.store.kinds import Ref
from services.gateway.store.leases import lease_refused

QUEUE = "ingestions"
"""Where the leases of files are that are to be indexed."""


class _Ingestion:
    ref: Ref

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        if problem == "position":
            return Conflict(f"Another gateway indexes {self.ref.id}.")
        return lease_refused(self.ref, problem, detail)


@dataclass(frozen=True)
class EnqueueIngestion(_Ingestion):
    """Lets gateways index a file of a vector store."""

    ref: Ref
    file: Ref
    """What it is made of."""
    now_ms: int

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "enqueue_ingestion", "ref": self.ref.key, "file": self.file.key, "now_ms": self.now_ms}

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        return refused(self.file, problem, detail)


@dataclass(frozen=True)
class RenewStoredFile(_Ingestion):
    """Makes a file that is in its vector store like one that is added now; whoever indexes it loses it."""

    ref: Ref

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "renew_stored_file", "ref": self.ref.key}


@dataclass(frozen=True)
class DiscardChunks(_Ingestion):
    """Removes what was made of a file that will not be indexed to its end; in one change with the end of its lease."""

    ref: Ref

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "discard_chunks", "ref": self.ref.key}


@dataclass(frozen=True)
class BeginChunks(_Ingestion):
    """Says which embedding model the vectors are of; ``details`` has ``num_chunks``, written before."""

    ref: Ref
    fence: int
    space: str

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "begin_chunks", "ref": self.ref.key, "fence": self.fence, "space": self.space}


@dataclass(frozen=True)
class WriteChunks(_Ingestion):
    """Adds the next chunks and their vectors."""

    ref: Ref
    fence: int
    first: int
    """Number of the first of them."""
    chunks: Sequence[bytes]
    vectors: bytes
    owners: bytes
    until_ms: int

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {
            "name": "write_chunks",
            "ref": self.ref.key,
            "fence": self.fence,
            "first": self.first,
            "chunks": [payloads.add(chunk) for chunk in self.chunks],
            "vectors": payloads.add(self.vectors),
            "owners": payloads.add(self.owners),
            "until_ms": self.until_ms,
        }


@dataclass(frozen=True)
class TouchIndex(_Ingestion):
    """Says that searches of a vector store may find something else; a store that is gone is no problem."""

    ref: Ref
    added_bytes: int = 0

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "touch_index", "ref": self.ref.key, "added_bytes": self.added_bytes}
