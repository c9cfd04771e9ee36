"""Filter: which members can take a request at all."""

from collections.abc import Collection, Iterable
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


def decode_candidates(
    members: Iterable[Member], wanted: Requirements, *, avoid: Collection[str], suspects: Collection[str]
) -> list[Member]:
    """Return the decode workers to choose from; suspects only where nobody else is left."""
    fit = [member for member in members if _fits(member, Role.DECODE, wanted) and member.member_id not in avoid]
    trusted = [member for member in fit if member.member_id not in suspects]
    return trusted or fit


def prefill_candidates(members: Iterable[Member], wanted: Requirements, *, suspects: Collection[str]) -> list[Member]:
    """Return the prefill workers whose KV the decode workers of ``wanted`` can take."""
    return [member for member in members if _fits(member, Role.PREFILL, wanted) and member.member_id not in suspects]


def _fits(member: Member, role: Role, wanted: Requirements) -> bool:
    return (
        member.role is role
        and member.fingerprint == wanted.fingerprint
        and understands(member.protocol_version, wanted.protocol_version)
        and not member.draining
    )
