"""``response_format``: what an answer has to look like, as the grammar that workers hold it to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.errors import InvalidRequest
from services.gateway.apis.openai.schemas import ResponseFormat
from services.gateway.structured.bounds import SchemaBudget

_SCHEMA_PARAM = "response_format.json_schema.schema"


@dataclass(frozen=True)
class AnswerSchema:
    """The JSON schema of an answer."""

    schema: Mapping[str, Any]
    strict: bool
    """Whether keywords that cannot be enforced are refused; else they are ignored."""


def answer_schema(wanted: ResponseFormat | None) -> AnswerSchema | None:
    """Return the schema that the answer satisfies, or None for free text.

    Raises:
        InvalidRequest: no such format, or its schema is missing or out of bounds.
    """
    match None if wanted is None else wanted.type:
        case None | "text":
            return None
        case "json_object":
            return AnswerSchema({"type": "object"}, strict=True)
        case "json_schema":
            return _named_schema(wanted)
    raise InvalidRequest(
        "Invalid value for 'response_format.type': expected 'text', 'json_object' or 'json_schema'.",
        param="response_format.type",
    )


def _named_schema(wanted: ResponseFormat | None) -> AnswerSchema:
    named = None if wanted is None else wanted.json_schema
    if named is None:
        raise InvalidRequest(
            "Missing required parameter: 'response_format.json_schema'.", param="response_format.json_schema"
        )
    schema = named.body or {}
    SchemaBudget().add(schema, _SCHEMA_PARAM)
    return AnswerSchema(schema, strict=bool(named.strict))
