"""``file_search`` as a call: what the model is told of it, what it asks, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import orjson

from services.gateway.runs.citations import mark
from services.gateway.runs.lifecycle import Body
from services.gateway.store.private import known_fields
from services.gateway.tools.use import Definition

NAME = "file_search"
_MAX_QUERY_LENGTH = 200

DEFINITION: Definition = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Search the uploaded files for passages about a question. After a statement that is taken "
        f"from a passage, write the mark of the passage, such as {mark(0, 0)}.",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "What to look for.", "maxLength": _MAX_QUERY_LENGTH}
            },
            "required": ["query"],
        },
        "strict": True,
    },
}


@dataclass(frozen=True)
class Search:
    """A search that a model asks for."""

    arguments: str
    """As the model wrote them."""
    number: int
    """Among the searches of the thread."""


@dataclass(frozen=True)
class Found:
    """What came of it; the public step shows only ``shown``."""

    arguments: str
    shown: Body
    """``ranking_options`` and ``results`` without their content."""
    texts: tuple[str, ...] = ()
    """Content of each result."""
    output: str = ""
    """What the model reads."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Files by the marks of their passages."""

    @classmethod
    def of(cls, values: Body) -> "Found":
        """Read what was kept of one, as plain values; what only a newer version knows is left out."""
        return cls(**{**known_fields(cls, values), "texts": tuple(values["texts"])})


def is_tool_of(run: Body) -> bool:
    """Return whether the run's model may search."""
    return any(tool["type"] == NAME for tool in run["tools"])


@dataclass(frozen=True)
class StepNotes:
    """What is kept with a step that the API does not show: its searches, by the id of the call."""

    searches: Mapping[str, Found] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the private bytes of the step."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes | None) -> "StepNotes":
        """Read what ``to_bytes`` wrote."""
        kept = orjson.loads(data)["searches"] if data else {}
        return cls({call_id: Found.of(each) for call_id, each in kept.items()})

    def with_contents(self, step: Body, call_ids: Sequence[str] | None = None) -> Body:
        """Return a step, or the delta of one, with the content of what its searches found.

        ``call_ids`` are those of all calls of the step; the parts of a delta have only their index among them.
        """
        details = step["step_details"]
        calls = [
            self._with_contents(call, call["id"] if call_ids is None else call_ids[call["index"]])
            for call in details.get("tool_calls", ())
        ]
        return {**step, "step_details": {**details, "tool_calls": calls}} if calls else step

    def _with_contents(self, call: Body, call_id: str) -> Body:
        found = self.searches.get(call_id)
        if found is None or "results" not in call[NAME]:
            return call
        results = [
            {**result, "content": [{"type": "text", "text": text}]}
            for result, text in zip(found.shown["results"], found.texts, strict=True)
        ]
        return {**call, NAME: {**call[NAME], "results": results}}
