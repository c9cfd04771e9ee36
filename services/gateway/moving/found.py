"""What searches of files found: kept with steps, items and responses, and read back only if it is whole."""

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ConfigDict, Field

from services.errors import InvalidRequest
from services.gateway.runs.search_calls import Found, StepNotes
from services.gateway.web.validation import Body, ClosedBody, typed


class _Result(Body):
    model_config = ConfigDict(extra="allow")

    file_id: str
    file_name: str
    score: float


class _Results(Body):
    model_config = ConfigDict(extra="allow")

    results: list[_Result]


class KeptFound(ClosedBody):
    """What one search found."""

    arguments: str
    shown: _Results
    texts: list[str]
    output: str
    sources: dict[str, str]

    def found(self) -> Found:
        """Return it as it is kept.

        Raises:
            InvalidRequest: there is not one text for each result.
        """
        if len(self.texts) != len(self.shown.results):
            raise InvalidRequest(f"A search has {len(self.shown.results)} results and {len(self.texts)} texts of them.")
        return Found(self.arguments, self.shown.model_dump(), tuple(self.texts), self.output, self.sources)


class _KeptOfStep(ClosedBody):
    searches: dict[str, KeptFound] = Field(default_factory=dict)


class _KeptOfItem(ClosedBody):
    found: KeptFound | None = None


def found_json(found: Found) -> dict[str, Any]:
    """Return what a search found as a line has it."""
    kept = {"arguments": found.arguments, "shown": found.shown, "texts": list(found.texts), "output": found.output}
    return {**kept, "sources": dict(found.sources)}


def step_notes(kept: Mapping[str, Any], call_ids: Collection[str]) -> bytes | None:
    """Return the private bytes of a step; ``call_ids`` are those of its searches.

    Raises:
        InvalidRequest: a search is not whole, or the step has none of its id.
    """
    searches = typed(_KeptOfStep, kept).searches
    for call_id in searches.keys() - set(call_ids):
        raise InvalidRequest(f"The step has no search '{call_id}', of which 'kept' says what it found.")
    notes = StepNotes({call_id: each.found() for call_id, each in searches.items()})
    return notes.to_bytes() if notes.searches else None


def item_found(kept: Mapping[str, Any]) -> Found | None:
    """Return what the search found that an item of a conversation is.

    Raises:
        InvalidRequest: it is not whole.
    """
    found = typed(_KeptOfItem, kept).found
    return None if found is None else found.found()
