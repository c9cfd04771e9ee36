"""Grammars of arguments that are written one by one: what of a schema holds, and what is refused."""

import json
from typing import Any

import pytest

from services.errors import InvalidRequest
from services.gateway.tools.feed import Feed
from services.gateway.tools.format import Tool, ToolUse
from services.gateway.tools.formats import format_named
from tests.gateway.structured.test_tool_grammar import Judge, judge
from tests.gateway.tools.samples import Call, calls_of, merged, written

FORMATS = ["qwen3_coder", "glm45", "glm47"]


@pytest.fixture(params=[True, False], ids=["special", "plain"])
def judged(request: pytest.FixtureRequest) -> Judge:
    return judge(has_special=bool(request.param))


def grammar(judged: Judge, name: str, parameters: dict[str, Any], *, strict: bool = False) -> str:
    tool = Tool("f", {"type": "object", **parameters}, strict=strict)
    definition = judged.definition(format_named(name), ToolUse((), (tool,), is_required=True, max_calls=1))
    assert definition is not None
    return definition


def allows(judged: Judge, name: str, parameters: dict[str, Any], arguments: dict[str, Any]) -> bool:
    call = written(format_named(name).syntax, [Call("f", arguments)])
    return judged.takes(grammar(judged, name, parameters), call)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string"}, ["", "a\n\n<b> 5", "é"], []),
        ({"type": "string", "minLength": 1, "maxLength": 3}, ["a", "abc", "a\nb"], ["", "abcd"]),
        ({"type": "string", "enum": ["on", "", "a/b"]}, ["on", "", "a/b"], ["off", "onn"]),
        ({"const": "on"}, ["on"], ["o", "onn"]),
        ({"type": ["string", "null"], "maxLength": 2}, ["ab", None], ["abc"]),
        ({"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}]}, ["ab", None], ["abc"]),
        ({"$ref": "#/$defs/Unit"}, ["celsius", None], ["kelvin"]),
        ({"type": "integer", "maximum": 12}, [3, 12], [13, "x", 1.5]),
        ({"type": "boolean"}, [True, False], [None, "yes"]),
        ({"type": "array", "items": {"$ref": "#/$defs/Unit"}}, [[], ["celsius", None]], [["x"], "celsius"]),
        ({"type": ["string", "integer"]}, ["x", 5], []),
        ({}, ["x", 5, [1], None], []),
    ],
)
def test_a_value_is_held_to_its_schema(judged: Judge, name: str, schema: Any, good: list[Any], bad: list[Any]) -> None:
    parameters = {"properties": {"a": schema}, "required": ["a"], "$defs": {"Unit": {"enum": ["celsius", None]}}}
    assert [value for value in good if not allows(judged, name, parameters, {"a": value})] == []
    assert [value for value in bad if allows(judged, name, parameters, {"a": value})] == []


@pytest.mark.parametrize("name", FORMATS)
def test_parameters_come_in_the_order_of_the_schema(judged: Judge, name: str) -> None:
    number = {"type": "integer"}
    parameters = {"properties": {"a": number, "b": number, "ab": number}, "required": ["b"]}
    for good in ({"b": 1}, {"a": 1, "b": 2}, {"b": 1, "ab": 2}, {"a": 1, "b": 2, "ab": 3}):
        assert allows(judged, name, parameters, good)
    for bad in ({}, {"a": 1}, {"b": 1, "a": 2}, {"b": 1, "c": 2}):
        assert not allows(judged, name, parameters, bad)


@pytest.mark.parametrize("name", FORMATS)
def test_parameters_that_are_not_named_come_last_where_they_may(judged: Judge, name: str) -> None:
    for further, good in ((True, "x"), ({"type": "integer"}, 1)):
        parameters = {"properties": {"unit": {"type": "integer"}}, "additionalProperties": further}
        assert allows(judged, name, parameters, {"unit": 1, "unix": good, "é x": good})
        assert allows(judged, name, parameters, {"unix": good})
        assert not allows(judged, name, parameters, {"unix": good, "unit": 1})
    assert not allows(judged, name, {"additionalProperties": {"type": "integer"}}, {"a": "x"})
    assert allows(judged, name, {}, {"a": "x"})
    assert allows(judged, name, {"properties": {}}, {})
    assert not allows(judged, name, {"properties": {}}, {"a": "x"})


@pytest.mark.parametrize("name", FORMATS)
def test_a_text_ends_where_it_is_read_to_end(judged: Judge, name: str) -> None:
    marker = format_named(name).syntax.parameters
    assert marker is not None
    end = marker.suffix.strip()
    text = {"properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert not allows(judged, name, text, {"a": f"x{end}y"})
    if not judged.special.by_id.keys() - {0, 1, 2}:
        listed = {"properties": {"a": {"type": "array", "items": {"type": "string"}}}}
        assert allows(judged, name, listed, {"a": [f"x{end}y"]})


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 8},
        "unit": {"$ref": "#/$defs/Unit"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "when": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        "at": {
            "type": "object",
            "properties": {"x": {"type": "boolean"}},
            "required": ["x"],
            "additionalProperties": False,
        },
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"Unit": {"enum": ["celsius", "kelvin"]}},
}


def is_described(found: dict[str, Any]) -> bool:
    """Whether arguments are what ``SCHEMA`` says."""
    return (
        list(found) == [name for name in SCHEMA["properties"] if name in found]
        and set(found) >= {"city", "days"}
        and 1 <= len(found["city"]) <= 8
        and found.get("unit", "kelvin") in ("celsius", "kelvin")
        and found["days"] in range(1, 10)
        and (found.get("when") is None or len(found["when"]) <= 4)
        and all(isinstance(tag, str) and len(tag) <= 3 for tag in found.get("tags", ()))
        and len(found.get("tags", ())) <= 2
        and found.get("at", {"x": True}) in ({"x": True}, {"x": False})
    )


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_a_model_draws_is_read_as_what_the_schema_describes(judged: Judge, name: str) -> None:
    definition = grammar(judged, name, SCHEMA)
    for seed in range(6):
        feed = Feed()
        reading = format_named(name).read(feed, {"f": SCHEMA})
        feed.add(judged.drawn(definition, seed))
        next(reading, None)
        (call,) = calls_of(merged(feed.events()))
        assert is_described(call.arguments)


TREE: dict[str, Any] = {
    "properties": {
        "value": {"type": "integer"},
        "below": {"type": "array", "items": {"$ref": "#"}},
        "same": {"$ref": "#/properties/value"},
        "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "first": {"type": "array", "items": {"$ref": "#/properties/either/anyOf/0"}},
        "at": {"$ref": "#/$defs/a~1%20b"},
    },
    "$defs": {"a/ b": {"type": "object", "properties": {"$ref": {"$ref": "#/$defs/N"}}}, "N": {"type": "integer"}},
}


@pytest.mark.parametrize("name", ["hermes", *FORMATS])
def test_a_parameter_may_refer_to_any_part_of_the_schema(judged: Judge, name: str) -> None:
    good = ({"below": [{"value": 1, "below": [{"same": 2}]}]}, {"same": 1}, {"first": [1]}, {"at": {"$ref": 1}})
    bad = (
        {"below": [{"value": "x"}]},
        {"below": [{"other": 1}]},
        {"same": "x"},
        {"first": ["x"]},
        {"at": {"$ref": ""}},
    )
    assert [each for each in good if not allows(judged, name, TREE, each)] == []
    assert [each for each in bad if allows(judged, name, TREE, each)] == []


def listing(target: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"#/$defs/{target}"}}


@pytest.mark.parametrize("name", FORMATS)
def test_each_parameter_has_what_it_refers_to_and_nothing_else(name: str) -> None:
    places = range(300)
    definitions = {f"d{place}": {"type": "object", "properties": {"x" * 100: {}}} for place in places}
    tool = {"properties": {f"p{place}": listing(f"d{place}") for place in places}, "$defs": definitions}
    assert len(grammar(judge(has_special=False), name, tool)) < 3 * len(json.dumps(tool))


def test_parameters_that_refer_to_too_much_together_are_refused() -> None:
    places = range(300)
    chain = {f"d{place}": {"type": "object", "properties": {"x" * 50: listing(f"d{place + 1}")}} for place in places}
    tool = {"properties": {f"p{place}": listing(f"d{place}") for place in places}, "$defs": chain | {"d300": {}}}
    with pytest.raises(InvalidRequest, match="fewer parameters refer to large definitions"):
        grammar(judge(has_special=False), "glm45", tool)


@pytest.mark.parametrize("keyword", ["pattern", "format"])
def test_a_strict_tool_with_what_a_bare_text_cannot_be_held_to_is_refused(keyword: str) -> None:
    parameters = {"properties": {"a": {"type": "string", keyword: "date"}}, "additionalProperties": False}
    with pytest.raises(InvalidRequest, match=f"function 'f': unimplemented keys \\['{keyword}'\\]"):
        grammar(judge(has_special=False), "qwen3_coder", parameters, strict=True)
    assert allows(judge(has_special=False), "qwen3_coder", parameters, {"a": "x"})
    assert "unimplemented" not in grammar(judge(has_special=False), "hermes", parameters, strict=True)


def test_a_strict_tool_of_alternatives_is_refused() -> None:
    parameters = {"properties": {}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
    with pytest.raises(InvalidRequest, match="anyOf"):
        grammar(judge(has_special=False), "glm45", parameters, strict=True)


def test_values_that_are_json_are_as_strict_as_their_tool() -> None:
    parameters = {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
    for strict in (True, False):
        _, *schemas = json.loads(grammar(judge(has_special=False), "qwen3_coder", parameters, strict=strict))[
            "grammars"
        ]
        assert [each["json_schema"]["x-guidance"]["lenient"] for each in schemas] == [not strict]


@pytest.mark.parametrize("parameter", ["a>b", "<a", "a\nb", "a" * 257])
def test_a_parameter_that_no_call_could_name_is_refused(parameter: str) -> None:
    parameters = {"properties": {parameter: {"type": "string"}}}
    with pytest.raises(InvalidRequest, match="cannot write the name of the parameter"):
        grammar(judge(has_special=False), "glm47", parameters)


@pytest.mark.parametrize(
    "odd",
    [
        {"type": 5},
        {"type": [5]},
        {"enum": "x"},
        {"anyOf": {}},
        {"allOf": [1]},
        {"oneOf": None},
        {"$ref": 5},
        {"minLength": -1},
        {"maxLength": "x"},
        {"properties": []},
        {"required": True},
        {"additionalProperties": 1},
    ],
)
def test_a_keyword_with_a_value_that_it_cannot_have_says_nothing(odd: dict[str, Any]) -> None:
    assert allows(judge(has_special=False), "glm45", {"properties": {"a": odd}, "required": ["a"]}, {"a": "x"})
    assert allows(judge(has_special=False), "glm45", {**odd, "type": "object", "additionalProperties": {}}, {"a": "x"})
