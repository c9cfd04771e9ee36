"""Revisions of one model: groups of workers that can work together, and how requests are shared between them.

During a rolling update two groups are up. No pair is ever made across them, so each can serve no more than its
scarcer role allows: three new decode workers with one new prefill worker are one pair's worth.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from services.cluster.registry import Member, Role
from services.rpc.versions import understands


@dataclass(frozen=True)
class Revision:
    """The workers of a model that share a layout fingerprint."""

    fingerprint: str
    card_digest: str
    """The card that most of its decode workers publish."""
    num_decode: int
    num_prefill: int

    @property
    def num_pairs(self) -> int:
        """Workers of the scarcer role."""
        return min(self.num_decode, self.num_prefill)


def revisions_of(members: Iterable[Member], model_name: str, protocol_version: int) -> list[Revision]:
    """Return the revisions of a model that somebody decodes, in the order of their fingerprints.

    Members that leave do not count, unless no other one decodes the model: they say no themselves.
    """
    known = [
        member
        for member in members
        if member.model_name == model_name and understands(member.protocol_version, protocol_version)
    ]
    staying = [member for member in known if not member.draining]
    decoders = [member for member in staying if member.role is Role.DECODE]
    decoders = decoders or [member for member in known if member.role is Role.DECODE]
    num_prefill = Counter(member.fingerprint for member in staying if member.role is Role.PREFILL)
    return [
        _revision(fingerprint, [member for member in decoders if member.fingerprint == fingerprint], num_prefill)
        for fingerprint in sorted({member.fingerprint for member in decoders})
    ]


def weights(revisions: Sequence[Revision]) -> list[int]:
    """Return the share of requests for each: its pairs; where nobody has any, its decode workers."""
    pairs = [revision.num_pairs for revision in revisions]
    return pairs if any(pairs) else [revision.num_decode for revision in revisions]


def heaviest(revisions: Sequence[Revision]) -> Revision | None:
    """Return the revision with the largest share."""
    if not revisions:
        return None
    return max(zip(weights(revisions), revisions, strict=True), key=lambda pair: pair[0])[1]


def drawn(revisions: Sequence[Revision], random: Random) -> Revision | None:
    """Return one of them, each as often as its share says."""
    if len(revisions) < 2:
        return heaviest(revisions)
    return random.choices(revisions, weights(revisions))[0]


def _revision(fingerprint: str, decoders: Sequence[Member], num_prefill: Counter[str]) -> Revision:
    cards = Counter(member.card_digest for member in decoders)
    card_digest = min(cards, key=lambda digest: (-cards[digest], digest))
    return Revision(fingerprint, card_digest, num_decode=len(decoders), num_prefill=num_prefill[fingerprint])
