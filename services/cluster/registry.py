"""Membership: which workers belong to the cluster, in which role, with what model and load."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from services.kv.card import ModelCard


class Role(Enum):
    """What a worker does."""

    PREFILL = "prefill"
    DECODE = "decode"
    EMBED = "embed"


@dataclass(frozen=True)
class MemberLoad:
    """How busy a member said it is. Tokens are prompt tokens not computed yet."""

    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    available_blocks: int = 0
    total_blocks: int = 0
    prefill_tokens_per_s: float = 0.0
    live: int = 0
    """What a drain of it waits for: requests that are not over, and pushes of blocks that are outstanding."""
    is_closed: bool = False
    """Whether it refuses new work already, so that ``live`` only falls."""


@dataclass(frozen=True)
class Member:
    """One incarnation of a worker. Every start gets a new ``member_id``."""

    member_id: str
    role: Role
    address: str
    """host:port of its gRPC server."""
    model_name: str
    card_digest: str
    fingerprint: str
    transport: str
    protocol_version: int
    """Of the wire: ``services.rpc.versions``."""
    layout_version: int = 1
    """Of the KV layout; part of the fingerprint, and published so that people can see why two workers do not pair."""
    max_sequences: int = 0
    """Most sequences that it runs at once; 0 if it does not tell."""
    draining: bool = False
    load: MemberLoad = MemberLoad()


class Registry(Protocol):
    """Says who belongs; it is not a failure detector."""

    async def join(self, member: Member, card: ModelCard) -> None:
        """Publish the card under its digest and the member under a lease.

        Raises:
            StateUnavailable: the store cannot be reached.
        """

    async def renew(self, member: Member) -> None:
        """Extend the lease and publish ``member`` as it is now (load, draining).

        Raises:
            NotFound: the lease ran out, or the store lost its data; join again.
            StateUnavailable: the store cannot be reached.
        """

    async def leave(self, member_id: str) -> None:
        """Withdraw the member; unknown ids are ignored.

        Raises:
            StateUnavailable: the store cannot be reached.
        """

    async def members(self) -> Sequence[Member]:
        """Return everybody with a valid signature and an unexpired lease.

        Raises:
            StateUnavailable: the store cannot be reached.
        """

    async def card(self, digest: str) -> ModelCard:
        """Return the card published under ``digest``.

        Raises:
            NotFound: no such card.
            StateUnavailable: the store cannot be reached.
            IntegrityError: the stored text does not have that digest.
        """


class DrainRequests(Protocol):
    """Asks workers to leave where their own port cannot be reached."""

    async def ask_to_leave(self, member_id: str) -> None:
        """Leave a note for a member; it stands for hours, and ids are never used twice.

        Raises:
            StateUnavailable: the store cannot be reached.
        """

    async def is_asked_to_leave(self, member_id: str) -> bool:
        """Return whether somebody with the cluster secret left a note.

        Raises:
            StateUnavailable: the store cannot be reached.
        """
