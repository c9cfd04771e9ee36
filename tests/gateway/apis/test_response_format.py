"""``response_format``: which grammar workers get, and what is said about one that cannot be enforced."""

from typing import Any

import orjson
import pytest

from services.errors import InvalidRequest
from tests.gateway.twins import Script, events, tokens, world

INTEGER = {"type": "integer"}
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def wanted(schema: Any = None, **values: Any) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "n", **({} if schema is None else {"schema": schema}), **values},
    }


@pytest.mark.parametrize(
    ("response_format", "schema", "strict"),
    [
        ({"type": "json_object"}, {"type": "object"}, True),
        (wanted(INTEGER, strict=True), INTEGER, True),
        (wanted(INTEGER, strict=False), INTEGER, False),
        (wanted(INTEGER), INTEGER, False),
        (wanted(), {}, False),
        (wanted({**INTEGER, "x-guidance": {"whitespace_pattern": ".*"}}), INTEGER, False),
    ],
)
async def test_workers_get_the_schema_of_the_answer(response_format: Any, schema: Any, strict: bool) -> None:
    async with world() as w:
        assert (await w.chat(response_format=response_format)).status_code == 200
    (grammar,) = orjson.loads(w.decode.requests[0].sampling.grammar)["grammars"]
    assert grammar == {"json_schema": {**schema, "x-guidance": {**STYLE, "lenient": not strict}}}


@pytest.mark.parametrize("response_format", [None, {"type": "text"}])
async def test_text_is_free(response_format: Any) -> None:
    async with world() as w:
        assert (await w.chat(response_format=response_format)).status_code == 200
    assert not w.decode.requests[0].sampling.HasField("grammar")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_schema_that_workers_refuse_is_the_callers_mistake(stream: bool) -> None:
    async with world() as w:
        w.decode.default = Script(refuse=InvalidRequest('Unimplemented keys: ["not"]', param="grammar"))
        response = await w.chat(response_format=wanted({"not": {}}, strict=True), stream=stream)
        assert len(w.decode.requests) == 1
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["message"], error["param"]) == ('Unimplemented keys: ["not"]', "response_format")


async def test_a_schema_that_cannot_be_followed_ends_the_stream_with_an_error() -> None:
    async with world() as w:
        w.decode.default = Script(
            tokens("Paris"), error=InvalidRequest("too many states", param="grammar"), fail_after=1
        )
        last = events(await w.chat(response_format={"type": "json_object"}, stream=True))[-1]
        assert len(w.decode.requests) == 1
    assert (last["error"]["param"], last["error"]["message"]) == ("response_format", "too many states")
