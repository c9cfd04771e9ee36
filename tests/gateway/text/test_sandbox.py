"""Templates that would run or grow without end come to one, and the thread goes on to the next."""

from dataclasses import replace

import pytest

from services.errors import ContextLengthExceeded, DeadlineExceeded, InvalidRequest
from services.gateway.text.sandbox import RenderLimits
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
}
ORDINARY = {
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
