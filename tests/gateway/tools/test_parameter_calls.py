"""Formats that write arguments one by one: what a value is, how it is streamed, and what models write besides."""

import json
from typing import Any

import pytest

from services.gateway.tools.bare_values import types_of
from services.gateway.tools.events import CallArguments, CallStarted, Text
from services.gateway.tools.feed import Feed
from services.gateway.tools.format import CallRules, Schema
from services.gateway.tools.formats import format_named
from tests.gateway.tools.samples import Call, calls_of, merged, read, text_of

QWEN = "<tool_call>\n<function=get_weather>\n<parameter=city>\n{city}\n</parameter>\n</function>\n</tool_call>"
GLM = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>{city}</arg_value>\n</tool_call>"
ROOT = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "unit": {"$ref": "#/$defs/Unit"},
        "count": {"type": "integer"},
        "share": {"type": "number"},
        "flag": {"type": "boolean"},
        "perhaps": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"type": ["string", "integer"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {"allOf": [{"$ref": "#/$defs/Place"}]},
        "anything": {},
    },
    "$defs": {
        "Unit": {"enum": ["celsius", "5"]},
        "Place": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
}


def argument(name: str, written: str, root: Schema = ROOT) -> Any:
    """Return the value that a bare text stands for."""
    feed = Feed()
    reading = format_named("glm45").read(feed, {"f": root})
    feed.add(f"<tool_call>f\n<arg_key>{name}</arg_key>\n<arg_value>{written}</arg_value>\n</tool_call>")
    next(reading, None)
    (call,) = calls_of(merged(feed.events()))
    return call.arguments[name]


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("text", "5", "5"),
        ("text", '"quoted"\\n', '"quoted"\\n'),
        ("text", " \ntwo\tlines\n", " \ntwo\tlines\n"),
        ("unit", "5", "5"),
        ("count", "5", 5),
        ("count", " 5\n", 5),
        ("count", "five", "five"),
        ("count", "NaN", "NaN"),
        ("share", "5", 5),
        ("share", "0.5", 0.5),
        ("flag", "true", True),
        ("flag", "False", False),
        ("perhaps", "null", None),
        ("perhaps", "None", None),
        ("perhaps", "5", "5"),
        ("either", "5", 5),
        ("either", "5.5", "5.5"),
        ("either", "five", "five"),
        ("tags", '["a", "</arg_value>"]', ["a", "</arg_value>"]),
        ("place", '{"name": "Paris"}', {"name": "Paris"}),
        ("anything", "[1]", [1]),
        ("anything", "plain", "plain"),
        ("anything", '"a"', '"a"'),
        ("unknown", "1", 1),
    ],
)
def test_the_schema_tells_what_a_value_is(name: str, written: str, value: Any) -> None:
    found = argument(name, written)
    assert (type(found), found) == (type(value), value)


def test_a_schema_of_all_arguments_may_be_a_reference() -> None:
    root = {"$ref": "#/$defs/F", "$defs": {"F": ROOT | {"additionalProperties": {"type": "string"}}}}
    assert argument("text", "5", root) == "5"
    assert argument("more", "5", root) == "5"


def test_types_follow_from_alternatives_and_values() -> None:
    assert types_of({"enum": [1, "a", None]}, {}) == {"integer", "string", "null"}
    assert types_of({"const": 1.5}, {}) == {"number"}
    assert types_of({"type": "number"}, {}) == {"number", "integer"}
    assert types_of({"oneOf": [{"type": "string"}, {"type": "array"}]}, {}) == {"string", "array"}
    assert types_of({"anyOf": [{"required": ["a"]}, True], "type": "object"}, {}) == {"object"}
    refers = {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}
    assert types_of(refers, {"$defs": {"A": {"title": "A"}, "B": {"type": "null"}}}) == {"null"}
    assert "string" in types_of(True, {})
    assert "string" in types_of({"$ref": "#/$defs/absent"}, {})


def test_a_schema_that_refers_to_itself_is_followed_so_far_and_no_further() -> None:
    root = {"$defs": {"L": {"anyOf": [{"$ref": "#/$defs/L"}] * 9}, "M": {"allOf": [{"$ref": "#/$defs/M"}] * 9}}}
    assert "string" in types_of({"$ref": "#/$defs/L"}, root)
    assert "string" in types_of({"$ref": "#/$defs/M"}, root)


@pytest.mark.parametrize(("name", "sample"), [("qwen3_coder", QWEN), ("glm45", GLM)])
def test_a_text_is_streamed_as_json_whatever_it_holds(name: str, sample: str) -> None:
    city = 'say "hi"\\\n\n<b>é\t</para </arg_valu>'
    output = f"So:\n{sample.replace('{city}', city)}\n"
    feed, shown = Feed(), list[Any]()
    reading = format_named(name).read(feed, {"get_weather": {"properties": {"city": {"type": "string"}}}})
    for char in output:
        feed.add(char)
        next(reading, None)
        shown += feed.events()
    assert shown[: len("So:\n")] == [Text(char, place) for place, char in enumerate("So:\n")]
    assert sum(isinstance(event, CallArguments) for event in shown) > len(city) // 2
    assert calls_of(merged(shown)) == [Call("get_weather", {"city": city})]
    assert merged(shown) == [*read(format_named(name), output)][: len(merged(shown))]


@pytest.mark.parametrize(
    ("name", "output", "calls", "text"),
    [
        ("qwen3_coder", "<tool_call><function=now></function></tool_call>", [Call("now", {})], ""),
        (
            "qwen3_coder",
            "<tool_call> <function=get_weather> <parameter=city>Paris</parameter> <parameter=days>\n3\n</parameter>"
            "\n</function>\n</tool_call>",
            [Call("get_weather", {"city": "Paris", "days": 3})],
            "",
        ),
        (
            "qwen3_coder",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\n</parameter>\n</function>\n</tool_call>",
            [Call("get_weather", {"city": ""})],
            "",
        ),
        ("qwen3_coder", "<tool_call>\n<function=now>\nor not", [], "<tool_call>\n<function=now>\nor not"),
        ("qwen3_coder", "<tool_call>\n<function=rm>\n", [], "<tool_call>\n<function=rm>\n"),
        ("qwen3_coder", "<tool_call>\n<function=now", [], "<tool_call>\n<function=now"),
        ("qwen3_coder", '<tool_call>{"name": "now"}</tool_call>', [], '<tool_call>{"name": "now"}</tool_call>'),
        ("glm45", "<tool_call>now</tool_call>", [Call("now", {})], ""),
        ("glm47", "<tool_call>now\n</tool_call><tool_call>now</tool_call>", [Call("now", {})] * 2, ""),
        ("glm47", "Use <tool_call> now", [], "Use <tool_call> now"),
        (
            "glm47",
            "<tool_call>add<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call> ok",
            [Call("add", {"a": 1})],
            " ok",
        ),
    ],
)
def test_variants_that_models_write_are_read(name: str, output: str, calls: list[Call], text: str) -> None:
    events = read(format_named(name), output)
    assert events == read(format_named(name), *output)
    assert (calls_of(events) if calls else [], text_of(events)) == (calls, text)
    assert sum(isinstance(event, CallStarted) for event in events) == len(calls)


def test_what_is_cut_short_ends_within_its_arguments() -> None:
    output = QWEN.replace("{city}", "Paris")
    cut = output[: output.index("</parameter>") + 3]
    assert read(format_named("qwen3_coder"), cut) == [CallStarted("get_weather"), CallArguments('{"city": "Paris')]
    cut = output[: output.index("</parameter>") + 14]
    assert read(format_named("qwen3_coder"), cut) == [CallStarted("get_weather"), CallArguments('{"city": "Paris"')]


def test_rules_are_read_as_they_were_kept() -> None:
    rules = CallRules({"f": ROOT}, is_required=True, max_calls=3)
    assert CallRules.of_json(json.loads(json.dumps(rules.as_json))) == rules
    kept_by_an_older_version = {"names": ["f", "g"], "is_required": False, "max_calls": 1}
    assert CallRules.of_json(kept_by_an_older_version) == CallRules({"f": {}, "g": {}}, False, 1)
