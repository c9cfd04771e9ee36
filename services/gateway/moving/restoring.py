"""Reads lines into a project, one object after the other."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from services.errors import Conflict, InvalidRequest, NotFound
from services.gateway.jobs.events import Body
from services.gateway.moving.assistants import (
    restore_assistant,
    restore_message,
    restore_run,
    restore_step,
    restore_thread,
)
from services.gateway.moving.destination import Destination, DifferentObject
from services.gateway.moving.files import restore_batch, restore_file, restore_store, restore_stored_file
from services.gateway.moving.lines import BEGIN, END, Line, check_begin, num_objects_of, parsed
from services.gateway.moving.responses import restore_conversation, restore_item, restore_response
from services.gateway.web.problems import unsupported_value

Restore = Callable[[Line, Destination], Awaitable[bool]]
"""Makes the object of a line; returns False if it was there already."""

RESTORERS: Mapping[str, Restore] = {
    "file": restore_file,
    "vector_store": restore_store,
    "vector_store.files_batch": restore_batch,
    "vector_store.file": restore_stored_file,
    "assistant": restore_assistant,
    "thread": restore_thread,
    "thread.message": restore_message,
    "thread.run": restore_run,
    "thread.run.step": restore_step,
    "conversation": restore_conversation,
    "conversation.item": restore_item,
    "response": restore_response,
}
"""By the kind of line; a new kind of object that moves is a function here and a part of ``Exporter``."""


@dataclass
class Restored:
    """What became of the lines that were read so far."""

    last_line: int = 0
    """The number of the last line that was dealt with."""
    made: Counter[str] = field(default_factory=Counter)
    """Objects by kind."""
    present: Counter[str] = field(default_factory=Counter)
    """Objects that were there already, by kind."""
    kept: Counter[str] = field(default_factory=Counter)
    """Objects whose id another one has, which was left as it is, by kind."""
    num_older: int = 0
    """New messages, outside of exports, that are older than the one before them in their thread."""
    num_failed: int = 0
    is_cut: bool = False
    """Whether an export was read that has no end."""
    is_over: bool = False
    """Whether all lines were read."""

    @property
    def num_objects(self) -> int:
        """How many lines held an object."""
        return self.made.total() + self.present.total() + self.kept.total() + self.num_failed


class Importer:
    """Brings objects into a project."""

    def __init__(
        self,
        into: Destination,
        *,
        keeps_others: bool = False,
        on_failure: Callable[[str], None] | None = None,
        on_line: Callable[[Restored], None] = lambda restored: None,
    ) -> None:
        """With ``keeps_others`` an object that has the id of one in the lines stays as it is; otherwise the line fails.

        ``on_failure`` is told of each line that cannot be imported; without it the first one ends the import.
        ``on_line`` is told after each line.
        """
        self._into = into
        self._keeps_others = keeps_others
        self._on_failure = on_failure
        self._on_line = on_line
        self._last_message: Body = {}
        self._began_at: int | None = None
        """How many objects there were before the export that is being read."""
        self.restored = Restored()

    async def read(self, lines: Iterable[tuple[int, bytes]]) -> Restored:
        """Make the objects of numbered lines, in their order; return what became of them.

        Raises:
            InvalidRequest: a line is none, or cannot be imported; the lines before it are.
            StateUnavailable: Redis cannot be reached.
            QuotaExceeded: the project has no room for more.
        """
        restored = self.restored
        for number, text in lines:
            line: Line | None = None
            try:
                line = parsed(text)
                await self._take(line)
            except (InvalidRequest, NotFound, Conflict) as error:
                place = f"Line {number}" if line is None else f"Line {number} ({line.name})"
                if self._on_failure is None:
                    raise InvalidRequest(f"{place}: {error.message}") from error
                restored.num_failed += 1
                self._on_failure(f"{place}: {error.message}")
            restored.last_line = number
            self._on_line(restored)
        restored.is_cut, restored.is_over = self._began_at is not None, True
        return restored

    async def _take(self, line: Line) -> None:
        if line.kind == BEGIN:
            check_begin(line)
            if self._began_at is not None:
                raise InvalidRequest(
                    "An export begins before the one before it has ended, which was cut: export again."
                )
            self._began_at = self.restored.num_objects
        elif line.kind == END:
            self._check_end(line)
        else:
            await self._restore(line)

    def _check_end(self, line: Line) -> None:
        """Refuse an export that lacks lines between its beginning and its end."""
        began_at, self._began_at = self._began_at, None
        expected, found = num_objects_of(line), self.restored.num_objects - (began_at or 0)
        if began_at is not None and found != expected:
            raise InvalidRequest(f"The export had {expected} objects, and {found} came before its end.")

    async def _restore(self, line: Line) -> None:
        restore = RESTORERS.get(line.kind)
        if restore is None:
            raise InvalidRequest(unsupported_value(line.kind, list(RESTORERS)).message, param="kind")
        try:
            is_new = await restore(line, self._into)
        except DifferentObject:
            if not self._keeps_others:
                raise
            self.restored.kept[line.kind] += 1
            return
        (self.restored.made if is_new else self.restored.present)[line.kind] += 1
        if line.kind == "thread.message" and self._began_at is None:
            self._note_order(line.body, is_new=is_new)

    def _note_order(self, message: Body, *, is_new: bool) -> None:
        last, self._last_message = self._last_message, message
        is_older = last.get("thread_id") == message["thread_id"] and message["created_at"] < last["created_at"]
        self.restored.num_older += is_new and is_older
