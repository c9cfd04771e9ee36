from typing import Any

import pytest

from services.errors import InvalidRequest, ModelRefused
from services.gateway.text.meter import RenderLimits
from services.gateway.text.template import ChatTemplate
from services.telemetry.clock import ManualClock
from tests.gateway.twins import CHAT_ML

LIMITS = RenderLimits(max_characters=10_000)
USER = {"role": "user", "content": "hi"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>"}, ManualClock(86_400.0), LIMITS)


def render(source: str, *messages: dict[str, Any]) -> str:
    return template(source).render(messages or (USER,))


def test_a_conversation_is_rendered_with_the_generation_prompt() -> None:
    assert render(CHAT_ML) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_special_tokens_are_variables() -> None:
    assert render("{{ bos_token }}{{ messages[0].content }}") == "<s>hi"


def test_tojson_escapes_nothing_for_html() -> None:
    assert render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'


def test_blocks_leave_no_blank_lines() -> None:
    assert render("{% for m in messages %}\n  {% if true %}\nx\n  {% endif %}\n{% endfor %}") == "x\n"


def test_keys_without_a_value_are_absent() -> None:
    message = {"role": "assistant", "content": "x", "name": None}

    assert render("{{ 'name' in messages[0] }}", message) == "False"


def test_arguments_of_tool_calls_are_objects() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "tool_calls": [call]}

    assert render("{{ messages[0].tool_calls[0].function.arguments.a + 1 }}", message) == "2"


def test_the_date_is_that_of_the_clock() -> None:
    assert render("{{ strftime_now('%Y') }}") == "1970"


def test_loop_controls_and_generation_blocks_are_known() -> None:
    assert render("{% for i in [1, 2] %}{% generation %}{{ i }}{% endgeneration %}{% break %}{% endfor %}") == "1"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ range(10**9) }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[7].content.x }}",
    ],
)
def test_what_a_template_refuses_is_the_callers_to_mend(source: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(source)

    assert caught.value.param == "messages"


def test_a_template_that_is_no_jinja_is_refused_at_start() -> None:
    with pytest.raises(ModelRefused):
        template("{% for %}")
