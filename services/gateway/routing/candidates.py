"""Filter: which members can take a request at all."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from services.cluster.registry import Member, Role
from services.rpc.versions import understands


@dataclass(frozen=True)
class Requirements:
    """What both sides of a request must have in common."""

    fingerprint: str
    """Of the KV layout; it covers model, tokenizer and numerics class."""
    protocol_version: int
    """Of this gateway; it serves workers that understand it."""


def fits(member: Member, role: Role, wanted: Requirements) -> bool:
    """Whether a member of that role can take what is ``wanted``; prefill workers fit the decode workers that do."""
    return (
        member.role is role
        and member.fingerprint == wanted.fingerprint
        and understands(member.protocol_version, wanted.protocol_version)
        and not member.draining
    )


def without(members: Sequence[Member], left_out: Collection[str]) -> Sequence[Member]:
    """Return ``members`` without those of the ids in ``left_out``."""
    return [member for member in members if member.member_id not in left_out] if left_out else members


def decode_candidates(
    fitting: Sequence[Member], *, avoid: Collection[str], suspects: Collection[str]
) -> Sequence[Member]:
    """Return the decode workers to choose from; suspects only where nobody else is left."""
    allowed = without(fitting, avoid)
    return without(allowed, suspects) or allowed
