"""A member as signed text: what stands in the store, and the check before anybody believes it.

``<hex HMAC-SHA256> <canonical JSON>``: nothing is parsed before its signature was verified.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from services.cluster.registry import Member, MemberLoad, Role
from services.cluster.secret import sign, verify
from services.errors import IntegrityError

_PURPOSE = "tandem member"


@dataclass(frozen=True)
class MemberRecord:
    """A member and the moment, by the store's clock, after which its record is a replay."""

    member: Member
    valid_until_ms: int

    def seal(self, secret: bytes) -> bytes:
        """Return the signed text."""
        body = _canonical({"member": _to_values(self.member), "valid_until_ms": self.valid_until_ms})
        return f"{sign(secret, _PURPOSE, body)} ".encode() + body

    @classmethod
    def unseal(cls, text: bytes, secret: bytes) -> "MemberRecord":
        """Return the record in ``text``. Fields that this version does not know are left out.

        Raises:
            IntegrityError: not signed with ``secret``, or not a member that this version can read.
        """
        signature, _, body = text.partition(b" ")
        if not verify(secret, _PURPOSE, body, signature.decode("ascii", "replace")):
            raise IntegrityError("no valid signature")
        try:
            values = json.loads(body)
            return cls(_from_values(values["member"]), int(values["valid_until_ms"]))
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"unreadable: {type(error).__name__} {error}") from error


def _canonical(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _to_values(member: Member) -> dict[str, Any]:
    return {**asdict(member), "role": member.role.value}


def _from_values(values: dict[str, Any]) -> Member:
    known = {field.name: values[field.name] for field in fields(Member) if field.name in values}
    load = values.get("load", {})
    known["role"] = Role(values["role"])
    known["load"] = MemberLoad(**{field.name: load[field.name] for field in fields(MemberLoad) if field.name in load})
    return Member(**known)
