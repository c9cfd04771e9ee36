"""``response_format``: what an answer has to look like, as the schema that workers hold it to."""

import orjson

from services.errors import InvalidRequest
from services.gateway.apis.openai.schemas import MAX_SCHEMA_BYTES, ResponseFormat

_ANY_OBJECT = '{"type":"object"}'


def json_schema_of(wanted: ResponseFormat | None) -> str | None:
    """Return the JSON schema that the answer satisfies, or None for free text.

    ``strict`` makes no difference: a schema is always enforced. Workers check what it says.

    Raises:
        InvalidRequest: no such format, or a schema is missing or too long.
    """
    match None if wanted is None else wanted.type:
        case None | "text":
            return None
        case "json_object":
            return _ANY_OBJECT
        case "json_schema":
            return _schema_text(wanted)
    raise InvalidRequest(
        "Invalid value for 'response_format.type': it must be 'text', 'json_object' or 'json_schema'.",
        param="response_format.type",
    )


def _schema_text(wanted: ResponseFormat | None) -> str:
    if wanted is None or wanted.json_schema is None:
        raise InvalidRequest(
            "Missing required parameter: 'response_format.json_schema'.", param="response_format.json_schema"
        )
    text = orjson.dumps(wanted.json_schema.body or {})
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(
            f"The schema has {len(text)} bytes, at most {MAX_SCHEMA_BYTES} are allowed.",
            param="response_format.json_schema.schema",
        )
    return text.decode()
