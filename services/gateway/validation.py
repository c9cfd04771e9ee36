"""Request bodies: JSON to typed values, mistakes as one sentence about one field."""

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from services.errors import InvalidRequest

# Alternatives of a union carry a tag with this mark, which is no part of a field's path.
TAG_MARK = "~"


class Body(BaseModel):
    """Base of all request bodies: exact types, unknown fields ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


BodyT = TypeVar("BodyT", bound=Body)


def parse_body(kind: type[BodyT], body: bytes) -> BodyT:
    """Return the typed body.

    Raises:
        InvalidRequest: not JSON, or not of this kind; ``param`` is the path of the first wrong field.
    """
    try:
        values: Any = orjson.loads(body)
    except ValueError as error:
        raise InvalidRequest(f"The body of the request is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise InvalidRequest("The body of the request must be a JSON object.")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _as_invalid_request(error.errors(include_url=False)[0]) from error


def _as_invalid_request(details: ErrorDetails) -> InvalidRequest:
    path = _path(details["loc"])
    if details["type"] == "missing":
        return InvalidRequest(f"Missing required parameter: '{path}'.", param=path)
    problem = details["msg"][:1].lower() + details["msg"][1:]
    return InvalidRequest(f"Invalid value for '{path}': {problem}.", param=path)


def _path(location: tuple[int | str, ...]) -> str:
    """Return ``messages[0].content`` for ("messages", 0, "content")."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(TAG_MARK):
            path += f".{part}" if path else part
    return path
