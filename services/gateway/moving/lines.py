"""The lines that objects move in: JSON, one object a line, parents before what is beneath them.

    {"kind": "tandem.export", "body": {"version": 1, "project": "team", ...}}        the first line
    {"kind": "thread", "body": {...}}
    {"kind": "thread.message", "body": {...}, "kept": {...}}
    {"kind": "tandem.end", "body": {"num_objects": 2}}                                the last line

``body`` is the object as the API shows it; ``kept`` is what is kept with it that the API does not show. An object
that OpenAI's API returned is a line as it is: its kind is its field ``object``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import orjson

from services.errors import ConfigurationError, InvalidRequest
from services.gateway.apis.openai.assistants.tools import MAX_ID_LENGTH
from services.gateway.jobs.events import Body
from services.gateway.web.validation import ClosedBody, Json, typed
from services.rpc.errors import shortened

FORMAT_VERSION = 1
MAX_LINE_BYTES = 64 * 2**20
BEGIN, END = "tandem.export", "tandem.end"


@dataclass(frozen=True)
class Line:
    """One line."""

    kind: str
    """As the field ``object`` of the API names it, such as ``thread.message``."""
    body: Body
    parent: str | None = None
    """The id of the object that it is beneath, where ``body`` does not say it."""
    kept: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the line is called in an error."""
        object_id = self.body.get("id")
        return f"{self.kind} {shortened(object_id, MAX_ID_LENGTH)}" if isinstance(object_id, str) else self.kind

    def encoded(self) -> bytes:
        """Return the line, its end included."""
        values: dict[str, Any] = {"kind": self.kind, "body": self.body}
        if self.parent is not None:
            values["parent"] = self.parent
        if self.kept:
            values["kept"] = self.kept
        return orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE)


class _Envelope(ClosedBody):
    kind: str
    body: dict[str, Json]
    parent: str | None = None
    kept: dict[str, Json] | None = None


class _Begin(ClosedBody):
    version: int
    project: str
    created_at: int
    tandem: str
    schema_version: int


class _End(ClosedBody):
    num_objects: int


def begin_line(*, project: str, created_at: int, tandem: str, schema_version: int) -> Line:
    """Return the first line: what the export is of, and when and by which Tandem it was made."""
    made = {"project": project, "created_at": created_at, "tandem": tandem, "schema_version": schema_version}
    return Line(BEGIN, {"version": FORMAT_VERSION, **made})


def end_line(num_objects: int) -> Line:
    """Return the last line; an export that was cut has none."""
    return Line(END, {"num_objects": num_objects})


def check_begin(line: Line) -> None:
    """Refuse an export that a newer Tandem made.

    Raises:
        ConfigurationError: its format is not known here.
        InvalidRequest: it is not the beginning of an export.
    """
    version = line.body.get("version")
    if version != FORMAT_VERSION:
        raise ConfigurationError(
            f"The format has version {version}, and this Tandem reads version {FORMAT_VERSION}: import it with a "
            "Tandem as new as the one that exported it."
        )
    typed(_Begin, line.body)


def num_objects_of(end: Line) -> int:
    """Return how many objects an export had when it ended.

    Raises:
        InvalidRequest: the last line does not say so.
    """
    return typed(_End, end.body).num_objects


def parsed(text: bytes) -> Line:
    """Read one line.

    Raises:
        InvalidRequest: it is neither one of an export nor an object of the API.
    """
    try:
        values: Any = orjson.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"It is not valid JSON: {error}.") from error
    if isinstance(values, dict) and "kind" in values:
        envelope = typed(_Envelope, values)
        return Line(envelope.kind, envelope.body, envelope.parent, envelope.kept or {})
    if isinstance(values, dict) and isinstance(values.get("object"), str):
        if values["object"] == "list":
            raise InvalidRequest("It is a page of a list: write each object of 'data' on a line, the oldest first.")
        return Line(values["object"], values)
    raise InvalidRequest("It is no object of the API, which has a field 'object', and no line of an export.")


def lines_of(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, each with its number from 1.

    Raises:
        InvalidRequest: a line is too long.
    """
    number = 0
    while text := source.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(text) > MAX_LINE_BYTES:
            raise InvalidRequest(f"Line {number} has more than {MAX_LINE_BYTES} bytes; an object takes one line each.")
        if text.strip():
            yield number, text
