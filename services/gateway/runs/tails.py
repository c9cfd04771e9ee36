"""The ends of conversations: as much of them as a prompt can hold, and not more in memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from services.gateway.store.object_store import Objects
from services.gateway.store.records import Query, Record

_MESSAGE_CHARACTERS = 32
"""What a template adds to a message, about: many short messages fill a context, too."""


class TailReader:
    """Reads lists from their ends until what was read has more characters than a prompt can have."""

    def __init__(self, objects: Objects, max_characters: int) -> None:
        self._objects = objects
        self._room = max_characters
        self.is_cut = False
        """Whether something was left unread."""

    @property
    def has_room(self) -> bool:
        """Whether more of the conversation can matter."""
        return self._room >= 0

    def count(self, said: Any) -> None:
        """Take texts that were read, in a JSON value, as a part of the conversation."""
        self._room -= _MESSAGE_CHARACTERS + _num_characters(said)

    async def read(self, query: Query, said: Callable[[Record], Any]) -> Sequence[Record]:
        """Return the end of a list that is asked for with its last record first; the oldest record comes first.

        ``said`` returns what models read of a record.
        """
        records: list[Record] = []
        while not self.is_cut:
            page = await self._objects.list(query)
            for record in page.records:
                if not self.has_room:
                    self.is_cut = True
                    break
                self.count(said(record))
                records.append(record)
            if not page.has_more:
                break
            query = replace(query, after=page.records[-1].ref.id)
        return records[::-1]


def _num_characters(value: Any) -> int:
    """Return the length of all texts of a JSON value together."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_num_characters, value.values()))
    return sum(map(_num_characters, value)) if isinstance(value, list | tuple) else 0
