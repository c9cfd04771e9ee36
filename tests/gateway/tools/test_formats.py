"""Every format reads what it writes, wherever the output is cut, and loses no text."""

import json
from typing import Any, SupportsIndex, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.settings import ToolFormatName
from services.gateway.tools.events import CallArguments, CallStarted, Text
from services.gateway.tools.formats import FORMATS, format_named, format_of
from tests.gateway.tools.samples import NAMES, Call, calls_of, read, text_of, written

BY_NAME = {each.name: each for each in FORMATS}
json_values: st.SearchStrategy[Any] = (
    st.integers(-9, 9) | st.text(max_size=6) | st.sampled_from(['"', "\\", "}", "</tool_call>", [{}], None])
)
arguments = st.dictionaries(st.text(max_size=4), json_values, max_size=2)
named_calls = st.builds(Call, st.sampled_from(sorted(NAMES)), arguments)
texts = st.text('ab\n <"\\}é', max_size=8) | st.sampled_from(["1", "null", '"a"', "</tool_call>", "<parameter=x>"])
values = st.integers(-9, 9) | st.none() | st.lists(st.none() | st.sampled_from(['"', "</parameter>", "</arg_value>"]))
typed_calls = (
    st.builds(Call, st.just("get_weather"), st.fixed_dictionaries({"city": texts}, optional={"days": st.none()}))
    | st.builds(Call, st.just("add"), st.dictionaries(st.text("ab .é", min_size=1, max_size=4), values, max_size=3))
    | st.builds(Call, st.just("now"), st.just({}))
)
"""Without quotes, only the schema tells what a value is."""


def calls_in(name: str) -> st.SearchStrategy[list[Call]]:
    return st.lists(named_calls if BY_NAME[name].syntax.parameters is None else typed_calls, max_size=3)


pieces_of_syntax = sorted(
    {each.syntax.opening or each.syntax.prefix for each in FORMATS} | {"<tool_call>", "[ARGS]", "]"}
)
anything = st.lists(st.text(max_size=6) | st.sampled_from(pieces_of_syntax), max_size=8).map("".join)


def cut(data: st.DataObject, text: str) -> list[str]:
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[start:end] for start, end in zip([0, *borders], [*borders, len(text)], strict=True)]


@pytest.mark.parametrize("name", BY_NAME)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), lead=st.text(alphabet="ab <[{\n", max_size=10))
def test_what_is_written_is_read_wherever_it_is_cut(name: str, data: st.DataObject, lead: str) -> None:
    tool_format, wanted = BY_NAME[name], data.draw(calls_in(name))
    wanted = wanted[: tool_format.syntax.max_calls]
    lead = lead if tool_format.syntax.trigger is not None else ""
    output = lead + (written(tool_format.syntax, wanted) if wanted else "")
    events = read(tool_format, *cut(data, output))
    assert events == read(tool_format, output)
    assert calls_of(events) == wanted
    assert text_of(events).rstrip() == lead.rstrip()


@pytest.mark.parametrize("name", BY_NAME)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), output=anything)
def test_anything_is_read_the_same_wherever_it_is_cut(name: str, data: st.DataObject, output: str) -> None:
    events = read(BY_NAME[name], *cut(data, output))
    assert events == read(BY_NAME[name], output)
    assert all(output.startswith(event.text, event.offset) for event in events if isinstance(event, Text))
    if not BY_NAME[name].syntax.framing and not any(isinstance(event, CallStarted) for event in events):
        assert text_of(events) == output


@pytest.mark.parametrize("name", BY_NAME)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_an_output_that_is_cut_short_has_the_beginning_of_its_calls(name: str, data: st.DataObject) -> None:
    tool_format = BY_NAME[name]
    wanted = data.draw(calls_in(name).filter(bool))[: tool_format.syntax.max_calls]
    output = written(tool_format.syntax, wanted)
    end = data.draw(st.integers(0, len(output)))
    started, whole = (
        [event for event in read(tool_format, text) if not isinstance(event, Text)] for text in (output[:end], output)
    )
    if started and isinstance(started[-1], CallArguments):
        last = whole[len(started) - 1]
        assert isinstance(last, CallArguments)
        assert last.text.startswith(started[-1].text)
        started.pop()
    assert started == whole[: len(started)]


SAMPLES: list[tuple[str, str, list[Call], str]] = [
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', [Call("add", {"a": 1})], ""),
    ("hermes", 'So: <tool_call>\n{"name": "now"}\n</tool_call>', [Call("now", {})], "So: "),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}', [Call("add", {"a": 1})], ""),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', [Call("now", {})], ""),
    ("hermes", '<tool_call><tool_call>{"name": "now"}</tool_call>', [Call("now", {})], "<tool_call>"),
    ("hermes", '<tool_call>{"name": "rm"}</tool_call>', [], '<tool_call>{"name": "rm"}</tool_call>'),
    ("hermes", "Use the <tool_call> tag.", [], "Use the <tool_call> tag."),
    ("llama", '<|python_tag|>{"name": "now", "parameters": {}}', [Call("now", {})], ""),
    ("llama", '{"type": "function", "name": "add", "parameters": {"a": 1}}', [Call("add", {"a": 1})], ""),
    ("llama", '{"name": "now"}; {"name": "now", "parameters": {}}', [Call("now", {}), Call("now", {})], ""),
    ("llama", '{"name": "Bob", "age": 7}', [], '{"name": "Bob", "age": 7}'),
    ("llama", 'See {"name": "now", "parameters": {}}', [], 'See {"name": "now", "parameters": {}}'),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "now", "arguments": {}, "id": "abcdefghi"}]',
        [Call("now", {})],
        "",
    ),
    ("mistral", "[TOOL_CALLS] none", [], "[TOOL_CALLS] none"),
    ("mistral_v11", "[TOOL_CALLS]now[ARGS][TOOL_CALLS]now[ARGS]{}", [Call("now", {}), Call("now", {})], ""),
    ("mistral_v11", 'ok [TOOL_CALLS]add[ARGS]{"a": 1}', [Call("add", {"a": 1})], "ok "),
]


@pytest.mark.parametrize(("name", "output", "wanted", "text"), SAMPLES)
def test_variants_that_models_write_are_read(name: str, output: str, wanted: list[Call], text: str) -> None:
    events = read(BY_NAME[name], output)
    assert (calls_of(events), text_of(events)) == (wanted, text)


TEMPLATES: list[tuple[str, str | None]] = [
    ("{{ '<tool_call>' }}", "hermes"),
    ("<tool_call>\n<function=example>\n<parameter=a>", "qwen3_coder"),
    ("<tool_call>\n<function=", None),
    ("<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>", "glm45"),
    ("<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key>", "glm47"),
    ("<|python_tag|>", "llama"),
    ('{"name": function name, "parameters": dictionary of argument name and its value}', "llama"),
    ("[AVAILABLE_TOOLS][TOOL_CALLS][", "mistral"),
    ("[TOOL_CALLS]{{ name }}[ARGS]", "mistral_v11"),
    (BY_NAME["deepseek"].syntax.opening, "deepseek"),
    (BY_NAME["deepseek"].syntax.opening + "```json", "deepseek_v3"),
    ("<|start|>{{ role }}<|channel|>final<|message|>", "harmony"),
    ("{{ messages }}", None),
]


@pytest.mark.parametrize(("template", "name"), TEMPLATES)
def test_the_template_tells_the_format(template: str, name: str | None) -> None:
    found = format_of(template)
    assert (None if found is None else found.name) == name


def test_settings_know_every_format_by_name() -> None:
    assert set(get_args(ToolFormatName)) == set(BY_NAME)
    assert all(format_named(name) is each for name, each in BY_NAME.items())


def test_markers_and_triggers_stand_in_what_is_written() -> None:
    for each in FORMATS:
        output = written(each.syntax, [Call("add", {"a": 1})])
        assert each.syntax.trigger is None or each.syntax.trigger in output
        assert json.loads(output) if each.syntax.trigger is None else all(m in output for m in each.syntax.markers)


class Copied(str):
    """A text that counts the characters that are copied out of it, or out of what is made of it."""

    num_copied = 0

    def __getitem__(self, key: SupportsIndex | slice) -> "Copied":
        return self._counted(super().__getitem__(key))

    def __add__(self, other: str) -> "Copied":
        return self._counted(super().__add__(other))

    def __radd__(self, other: str) -> "Copied":
        return self._counted(other + str(self))

    @classmethod
    def _counted(cls, text: str) -> "Copied":
        cls.num_copied += len(text)
        return cls(text)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_long_call_is_copied_a_few_times_and_not_once_for_each_character(name: str) -> None:
    tool_format = format_named(name)
    call = Call("get_weather", {"city": "x" * 20_000})
    text = Copied(written(tool_format.syntax, [call]))
    Copied.num_copied = 0

    assert calls_of(read(tool_format, text)) == [call]
    assert Copied.num_copied < 10 * len(text)
