"""What is read from the store."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from services.gateway.store.kinds import Kind, Ref

Order = Literal["asc", "desc"]
"""Oldest first, or newest first."""


@dataclass(frozen=True)
class Record:
    """One object as it was read."""

    ref: Ref
    body: Mapping[str, Any]
    """The object as the API shows it."""
    version: int
    """Grows by one with every update, from 1."""
    sequence: int
    """Its place among the children of its parent: later ones have higher numbers."""
    private: bytes | None = None
    """What the API does not show; read only when asked for."""


@dataclass(frozen=True)
class Query:
    """One page of a parent's children of one kind, or of several together."""

    kind: Kind
    parent: Ref | None = None
    """None lists the objects of the project that have no parent."""
    label: tuple[str, str] | None = None
    """Only objects with this label and value."""
    limit: int = 20
    """Most objects of the page; large ones (8 MiB together) make it shorter, but there is one if there is any."""
    order: Order = "desc"
    after: str | None = None
    """Id of the object before the page, in the chosen order."""
    before: str | None = None
    """Id of the object behind the page; without ``after`` the page ends just before it."""
    with_private: bool = False
    also: tuple[Kind, ...] = ()
    """Further kinds whose objects are in the list, all in the order in which they were made."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """All kinds of the list."""
        return (self.kind, *self.also)


@dataclass(frozen=True)
class Page:
    """Objects in the order that was asked for."""

    records: tuple[Record, ...]
    has_more: bool
    """Whether the list goes on in the direction it was read; backwards with only ``before``."""
