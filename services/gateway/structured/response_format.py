"""``response_format``: what an answer has to look like, as the grammar that workers hold it to."""

from collections.abc import Mapping
from typing import Any

from services.errors import InvalidRequest
from services.gateway.structured.bounds import SchemaBudget
from services.gateway.structured.definition import HeldSchema

_SCHEMA_PARAM = "response_format.json_schema.schema"


def answer_schema(wanted: Mapping[str, Any] | None) -> HeldSchema | None:
    """Return the schema that the answer satisfies, or None for free text.

    Raises:
        InvalidRequest: no such format, or its schema is missing or out of bounds.
    """
    match None if wanted is None else wanted["type"]:
        case None | "text":
            return None
        case "json_object":
            return HeldSchema({"type": "object"}, strict=True)
        case "json_schema":
            return _named_schema((wanted or {}).get("json_schema"))
    raise InvalidRequest(
        "Invalid value for 'response_format.type': expected 'text', 'json_object' or 'json_schema'.",
        param="response_format.type",
    )


def _named_schema(named: Mapping[str, Any] | None) -> HeldSchema:
    if named is None:
        raise InvalidRequest(
            "Missing required parameter: 'response_format.json_schema'.", param="response_format.json_schema"
        )
    schema = named.get("schema") or {}
    SchemaBudget().add(schema, _SCHEMA_PARAM)
    return HeldSchema(schema, strict=bool(named.get("strict")))
