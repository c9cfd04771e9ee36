"""Templates that would run or grow without end come to one, and the thread goes on to the next."""

from dataclasses import replace

import pytest

from services.errors import ContextLengthExceeded, DeadlineExceeded, InvalidRequest, ModelRefused
from services.gateway.text.meter import RenderLimits
from services.gateway.text.template import ChatTemplate
from services.telemetry.clock import ManualClock

LIMITS = RenderLimits(max_characters=10_000, max_steps=10_000)
USER = {"role": "user", "content": "hi"}
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDLESS = {
    "loops": NESTED + "{% endfor %}" * 3,
    "loops that filter": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "a macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a recursive loop": "{% for a in [[]] * 9 recursive %}{{ loop([[]] * 9) if loop.depth < 20 }}{% endfor %}",
    "a number": "{% set ns = namespace(x=2) %}{% for a in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a power": "{{ 9 ** (9 ** 9) }}",
}
DOUBLED = "{% set ns = namespace(x='a') %}{% for a in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
"""Short to write, since a list holds the same one twice."""
GROWING = {
    "output": "{% for a in range(9000) %}{{ 'abcdefgh' }}{% endfor %}",
    "times": "{{ 'x' * 10000000000 }}",
    "times, the other way": "{{ 10000000000 * 'x' }}",
    "a list": "{{ [0] * 10000000000 }}",
    "plus": "{% set ns = namespace(x='xx') %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "tilde": "{% set ns = namespace(x='xx') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "the filter format": "{{ '%1000000000d' | format(1) }}",
    "center": "{{ 'x'.center(1000000000) }}",
    "the filter center": "{{ 'x' | center(1000000000) }}",
    "indent": "{{ 'x\n' | indent(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "replace": "{{ ('x' * 9000).replace('x', 'y' * 9000) }}",
    "the filter replace": "{{ ('x' * 9000) | replace('x', 'y' * 9000) }}",
    "join": "{{ ('y' * 9000).join(['x'] * 9000) }}",
    "the filter join": "{{ (['x'] * 9000) | join('y' * 9000) }}",
    "the filter join, of what is made on the way": "{{ range(9000) | map('string') | join('y' * 9000) }}",
    "join, of what is made on the way": "{{ ('y' * 9000).join(range(9000) | map('string')) }}",
    "a list of long texts": "{{ ['x' * 9000] * 9000 }}",
    "tojson indented": "{{ [1] | tojson(indent=1000000000) }}",
    "tojson indented by a text": "{{ [[[1]]] | tojson(indent='x' * 9000) }}",
    "tojson with separators": "{{ ([1] * 9000) | tojson(separators=['y' * 9000, ':']) }}",
    "tojson": DOUBLED + "{{ ns.x | tojson }}",
    "a list printed": DOUBLED + "{{ ns.x }}",
    "a list as text": DOUBLED + "{{ ns.x ~ '' }}",
    "the filter string": DOUBLED + "{{ (ns.x | string) | length }}",
    "format of a list": DOUBLED + "{{ '%s' % [ns.x] }}",
    "the filter join, of lists": DOUBLED + "{{ [ns.x] | join }}",
    "the filter replace, of a list": DOUBLED + "{{ ns.x | replace('a', 'b') }}",
    "an object": DOUBLED.replace("[ns.x, ns.x]", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
}
REFUSED = {
    "a width from a value": "{{ '%*d' % (9, 1) }}",
    "translate": "{{ 'x'.translate({120: 'y'}) }}",
    "maketrans": "{{ ''.maketrans('a', 'b') }}",
    "bytes": "{{ 'x'.encode() }}",
    "bytes of a number": "{{ (1).to_bytes(1000000000, 'big') }}",
    "fromkeys": "{{ {}.fromkeys([1]) }}",
    "a sum of lists": "{{ [[1], [2]] | sum(start=[]) }}",
    "digits": "{{ 1 | round(1000000000, 'ceil') }}",
    "the format of a time": "{{ strftime_now('%Y' * 999) }}",
    "lipsum": "{{ lipsum(100000) }}",
    "cycler": "{{ cycler(1, 2) }}",
}
UNKNOWN_FILTERS = ["batch(9)", "slice(9)", "wordwrap(1)", "urlize", "xmlattr", "pprint", "random", "attr('x')"]
ORDINARY = {
    "{{ {'a': [1, 'ü']} | tojson }}{{ [1] | tojson(indent=2) }}": '{"a": [1, "ü"]}[\n  1\n]',
    "{{ [1, 2.5] | sum }}{{ 2.55 | round(1) }}{{ 'ab' | string }}{{ [1, none] }}": "3.52.5ab[1, None]",
    "{% set ns = namespace(a=1) %}{% set ns.b = ns %}{{ ns.a }}{{ ns }}": "1<namespace>",
    "{{ ['b', 'a'] | sort | map('upper') | join('-') }}{{ '-'.join(['c'] | map('upper')) }}": "A-BC",
    "{{ {'k': 1}.items() | list }}{{ {'k': 1}.get('z', 'no') }}{{ 'a b'.split()[1] }}": "[('k', 1)]nob",
    "{% set j = joiner(',') %}{% for i in [1, 2] %}{{ j() }}{{ i }}{% endfor %}": "1,2",
    "{{ 'a' ~ 1 ~ none }}": "a1None",
    "{{ 'a' + 'b' * 3 }}": "abbb",
    "{{ 2 ** 10 + 3 * 4 % 5 }}": "1026",
    "{{ '%05d|%s 2024' % (7, 'x') }}": "00007|x 2024",
    "{{ '{:>4}{}'.format('a', 'b') }}": "   ab",
    "{{ ['a', 'b'] | join(', ') }}{{ '-'.join(['c', 'd']) }}": "a, bc-d",
    "{{ [{'x': 1}, {'x': 2}] | join('+', attribute='x') }}": "1+2",
    "{{ 'aXb' | replace('X', '--') }}{{ 'aXb'.replace('X', '') }}": "a--bab",
    "{{ 'a\nb' | indent(2) }}": "a\n  b",
    "{% for i in range(4) if i is odd %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{% endfor %}": "1False22True2",
    "{% for i in [1, [2, [3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}": "123",
    "{% for i in [] %}x{% else %}none{% endfor %}": "none",
}


def rendered(source: str, limits: RenderLimits = LIMITS, clock: ManualClock | None = None) -> str:
    return ChatTemplate(source, {}, clock or ManualClock(), limits).render((USER,))


@pytest.mark.parametrize("name", ENDLESS)
def test_what_does_not_end_is_an_invalid_request(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rendered(ENDLESS[name])
    assert caught.value.param == "messages"


@pytest.mark.parametrize("name", GROWING)
def test_what_grows_out_of_proportion_is_too_long(name: str) -> None:
    with pytest.raises(ContextLengthExceeded):
        rendered(GROWING[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_model_uses_is_not_offered(name: str) -> None:
    with pytest.raises(InvalidRequest):
        rendered(REFUSED[name])


@pytest.mark.parametrize("applied", UNKNOWN_FILTERS)
def test_nor_are_filters_that_no_model_uses(applied: str) -> None:
    with pytest.raises(ModelRefused, match=applied.partition("(")[0]):
        rendered(f"{{{{ messages | {applied} }}}}")


def test_a_filter_that_is_mapped_over_many_values_is_a_step_for_each() -> None:
    with pytest.raises(InvalidRequest, match="steps"):
        rendered("{{ range(99999) | map('upper') | list | length }}")


@pytest.mark.parametrize("source", ORDINARY)
def test_ordinary_templates_mean_what_they_mean_elsewhere(source: str) -> None:
    assert rendered(source) == ORDINARY[source]


class HurryingClock(ManualClock):
    """Four seconds pass between two looks."""

    def now(self) -> float:
        self.advance(4.0)
        return super().now()


def test_time_is_looked_at_in_every_step() -> None:
    assert rendered("{% for a in [1, 2] %}{% endfor %}", LIMITS, HurryingClock()) == ""
    with pytest.raises(DeadlineExceeded):
        rendered("{% for a in [1, 2, 3] %}{% endfor %}", LIMITS, HurryingClock())


def test_each_rendering_counts_for_itself() -> None:
    template = ChatTemplate(
        "{% for a in range(6) %}{{ a }}{% endfor %}", {}, ManualClock(), replace(LIMITS, max_steps=10)
    )
    assert [template.render((USER,)) for _ in range(3)] == ["012345"] * 3
