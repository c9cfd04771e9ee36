"""Operations that make up one change; each is an entry of ``operations`` in the Lua functions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from services.errors import Conflict, InternalError, ObjectNotFound, TandemError
from services.gateway.store.kinds import Ref, is_name


class Payloads:
    """Collects the long arguments of a change; operations name them by their place."""

    def __init__(self, first_place: int) -> None:
        self._first_place = first_place
        self.values: list[bytes] = []

    def add(self, value: bytes) -> int:
        """Take a value; return its place among the script's arguments."""
        self.values.append(value)
        return self._first_place + len(self.values) - 1


class Operation(Protocol):
    """One part of a change."""

    @property
    def ref(self) -> Ref:
        """The object that it is about."""

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it; ``name`` says which one it is."""

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem that the function's ``check`` found."""


@dataclass(frozen=True)
class Create:
    """A new object, the last one of its parent."""

    ref: Ref
    body: Mapping[str, Any]
    parent: Ref | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Names and values of the lists that it is also in."""
    private: bytes | None = None

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        encoded = {
            "name": "create",
            "ref": self.ref.key,
            "parent": _key(self.parent),
            "body": payloads.add(orjson.dumps(self.body)),
            "labels": encoded_labels(self.labels),
        }
        return with_payload(encoded, "private", self.private, payloads)

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        if problem == "no_parent" and self.parent is not None:
            return ObjectNotFound(self.parent.absent_text)
        return refused(self.ref, problem, detail)


@dataclass(frozen=True)
class Update:
    """A new body; what is None stays as it is."""

    ref: Ref
    body: Mapping[str, Any]
    version: int | None = None
    """The version that must be the present one; None overwrites any."""
    parent: Ref | None = None
    """The parent that it must have, if one is named."""
    labels: Mapping[str, str] | None = None
    """Replaces all labels."""
    private: bytes | None = None

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        encoded = {"name": "update", **required(self.ref, self.parent, self.version)}
        encoded["body"] = payloads.add(orjson.dumps(self.body))
        if self.labels is not None:
            encoded["labels"] = encoded_labels(self.labels)
        return with_payload(encoded, "private", self.private, payloads)

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        return refused(self.ref, problem, detail)


@dataclass(frozen=True)
class Delete:
    """An end to an object and to everything beneath it."""

    ref: Ref
    version: int | None = None
    parent: Ref | None = None

    def encoded(self, payloads: Payloads) -> dict[str, Any]:
        """Return the operation as the Lua function reads it."""
        return {"name": "delete", **required(self.ref, self.parent, self.version)}

    def refusal(self, problem: str, detail: str) -> TandemError:
        """Return the error for a problem."""
        return refused(self.ref, problem, detail)


def required(ref: Ref, parent: Ref | None, version: int | None) -> dict[str, Any]:
    """Return what ``check_present`` in the Lua functions reads."""
    encoded: dict[str, Any] = {"ref": ref.key}
    if parent is not None:
        encoded["parent"] = parent.key
    if version is not None:
        encoded["version"] = version
    return encoded


def with_payload(encoded: dict[str, Any], name: str, value: bytes | None, payloads: Payloads) -> dict[str, Any]:
    """Return ``encoded`` with a payload, if there is one."""
    return encoded if value is None else {**encoded, name: payloads.add(value)}


def refused(ref: Ref, problem: str, detail: str) -> TandemError:
    """Return the error for a problem that any operation can have."""
    if problem == "absent":
        return ObjectNotFound(ref.absent_text)
    if problem == "version":
        return Conflict(f"The {ref.kind.noun} '{ref.id}' was changed by another request; read it again and retry.")
    if problem == "exists":
        return Conflict(f"The id '{ref.id}' is taken by another {ref.kind.noun}.")
    return InternalError(f"The store refused to change {ref.key}: {problem} ({detail}).")


def encoded_labels(labels: Mapping[str, str]) -> str:
    """Return labels as the Lua functions read them.

    Raises:
        ValueError: a name or a value has other characters than letters, digits, ``_``, ``.`` and ``-``.
    """
    for name, value in labels.items():
        if not (is_name(name) and is_name(value)):
            raise ValueError(f"{name}={value} cannot be a label")
    return " ".join(f"{name}={value}" for name, value in sorted(labels.items()))


def _key(ref: Ref | None) -> str:
    return ref.key if ref is not None else ""
