"""Request bodies: JSON to typed values, mistakes as one sentence about one field."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from services.errors import InvalidRequest
from services.gateway.web.problems import problem_of
from services.rpc.errors import shortened

# Alternatives of a union carry a tag with this mark, which is no part of a field's path.
TAG_MARK = "~"
_KEY_MARK = "[key]"  # pydantic's, where the key of a mapping is at fault
MAX_DEPTH = 64
_MAX_PATH_LENGTH = 200


class Body(BaseModel):
    """Base of all request bodies: exact types, unknown fields ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class ClosedBody(Body):
    """Base of request bodies that have no further fields."""

    model_config = ConfigDict(extra="forbid")


def type_tag(value: Any) -> str | None:
    """Return the tag of an alternative that is told by its field ``type``."""
    if isinstance(value, BaseModel):  # on its way out
        return f"{TAG_MARK}{getattr(value, 'type', None)}"
    return f"{TAG_MARK}{value['type']}" if isinstance(value, dict) and "type" in value else None


def shallow(value: Any) -> Any:
    """Return a JSON value that nests as deep as a sane one; for values that are handed on as they are.

    Raises:
        ValueError: it nests deeper.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for each in level if isinstance(each, dict | list) for item in _items(each)]
        if not level:
            return value
    raise ValueError(f"it nests more than {MAX_DEPTH} levels deep")


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


Json = Annotated[Any, AfterValidator(shallow)]
"""Any JSON value of bounded depth."""
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
    return typed(kind, values)


def typed(kind: type[BodyT], values: Mapping[str, Any]) -> BodyT:
    """Return JSON values as a typed body.

    Raises:
        InvalidRequest: they are not of this kind; ``param`` is the path of the first wrong field.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _as_invalid_request(error.errors(include_url=False)[0]) from error


def _as_invalid_request(details: ErrorDetails) -> InvalidRequest:
    path = _path(details["loc"])
    if details["type"] in ("union_tag_invalid", "union_tag_not_found") and isinstance(details["input"], dict):
        path += ".type"
    problem = problem_of(details, path)
    return InvalidRequest(problem.message, param=path, code=problem.code)


def _path(location: tuple[int | str, ...]) -> str:
    """Return ``messages[0].content`` for ("messages", 0, "content")."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(TAG_MARK) and part != _KEY_MARK:
            path += f".{part}" if path else part
    return shortened(path, _MAX_PATH_LENGTH)  # keys are the client's words
