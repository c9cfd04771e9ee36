"""Model cards in a store: checked when they are published and when they are read."""

import hashlib

from services.cluster.registry import Member
from services.errors import IntegrityError, InternalError
from services.kv.card import ModelCard


def check_card_of(member: Member, card: ModelCard) -> None:
    """Refuse a card that is not the one that ``member`` names.

    Raises:
        InternalError: the digests differ.
    """
    if card.digest != member.card_digest:
        raise InternalError(f"Member {member.member_id} names card {member.card_digest}, not {card.digest}.")


def read_card(text: bytes, digest: str) -> ModelCard:
    """Return the card in ``text``.

    Raises:
        IntegrityError: the text does not have ``digest``, or is a card that this version cannot read.
    """
    if hashlib.sha256(text).hexdigest() != digest:
        raise IntegrityError(f"The stored model card {digest} has another digest.")
    try:
        return ModelCard.from_json(text.decode())
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"The stored model card {digest} cannot be read: {error}.") from error
