"""Calls and text of one answer: what is shown, when, and which tokens belong to it."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.text.choice import Piece, TokenText
from services.gateway.tools.extraction import CallExtraction, CallOpening, CallPiece, Extracted
from services.gateway.tools.format import CallRules
from services.gateway.tools.formats import DEFAULT, format_named

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
USE = CallRules({"add": {}, "now": {}}, is_required=False, max_calls=16)


@dataclass
class Seen:
    """An answer as a client puts it together."""

    text: str = ""
    tokens: tuple[str, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()
    has_stopped: bool = False


def seen(extraction: CallExtraction, *pieces: Piece) -> Seen:
    result, ids = Seen(), list[str]()
    shown: list[Extracted] = []
    for piece in pieces:
        shown += extraction.push(piece)
        if extraction.has_stopped:
            break
    shown += extraction.finish()
    for each in shown:
        match each:
            case Piece():
                result.text += each.text
                result.tokens += tuple(token.text for token in each.tokens)
            case CallOpening():
                assert each.call_index == len(result.calls)
                ids.append(each.call_id)
                result.calls += ((each.name, ""),)
            case CallPiece():
                assert each.call_index == len(result.calls) - 1
                name, arguments = result.calls[-1]
                result.calls = (*result.calls[:-1], (name, arguments + each.arguments))
    assert len(set(ids)) == len(ids) == extraction.num_calls
    assert all(call_id.startswith("call_") and len(call_id) == 29 for call_id in ids)
    result.has_stopped = extraction.has_stopped
    return result


def tokens_of(text: str, size: int = 3) -> list[Piece]:
    """Cut a text into tokens with log probabilities."""
    cuts = [(start, text[start : start + size]) for start in range(0, len(text), size)]
    return [Piece(part, (TokenText(0, part.encode(), -1.0, (), start),)) for start, part in cuts]


def extracted(text: str, *, stops: tuple[str, ...] = (), size: int = 3, **changes: object) -> Seen:
    return seen(CallExtraction(DEFAULT, replace(USE, **changes), stops), *tokens_of(text, size))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30), st.integers(1, 5))
def test_text_without_calls_is_shown_as_it_is(text: str, size: int) -> None:
    shown = extracted(text, size=size)
    assert (shown.text, shown.calls) == (text, ())
    assert "".join(shown.tokens) == text


@pytest.mark.parametrize("size", range(1, 9))
def test_white_space_around_calls_is_no_text(size: int) -> None:
    shown = extracted(f" \n{CALL}\n{CALL}\n", size=size)
    assert shown == Seen(calls=(("add", '{"a": 1}'),) * 2)


@pytest.mark.parametrize("size", range(1, 9))
def test_text_before_a_call_ends_before_its_white_space(size: int) -> None:
    shown = extracted(f"  Let me add.\n\n{CALL}", size=size)
    assert (shown.text, shown.calls) == ("  Let me add.", (("add", '{"a": 1}'),))
    assert "".join(shown.tokens).startswith("  Let me add.")
    assert "tool_call" not in "".join(shown.tokens)


def test_arguments_come_as_they_are_written() -> None:
    extraction = CallExtraction(DEFAULT, USE, ())
    shown = [each for piece in tokens_of(CALL, 2) for each in extraction.push(piece)]
    assert isinstance(shown[0], CallOpening)
    assert len(shown) > 4
    assert all(isinstance(each, CallPiece) for each in shown[1:])


@pytest.mark.parametrize("size", range(1, 9))
def test_a_stop_string_ends_text_but_not_calls(size: int) -> None:
    stopped = extracted("one STOP two", stops=("STOP",), size=size)
    assert (stopped.text, stopped.has_stopped) == ("one ", True)
    assert "".join(stopped.tokens).startswith("one ")  # and what stands in its last token
    shown = extracted(f"Now.{CALL}", stops=("\n", '"a"'), size=size)
    assert (shown.text, shown.calls, shown.has_stopped) == ("Now.", (("add", '{"a": 1}'),), False)


def test_what_may_begin_a_stop_string_is_shown_before_a_call() -> None:
    shown = extracted(f"a ST{CALL}", stops=("STOP",))
    assert (shown.text, shown.calls) == ("a ST", (("add", '{"a": 1}'),))


def test_more_calls_than_allowed_end_the_answer() -> None:
    shown = extracted(f"{CALL}\n{CALL}\nand so on", max_calls=1)
    assert (shown.calls, shown.has_stopped, shown.text) == ((("add", '{"a": 1}'),), True, "")


def test_an_answer_that_has_to_call_has_no_text() -> None:
    assert extracted('<tool_call>\n{"na', is_required=True) == Seen()
    assert extracted('<tool_call>\n{"na').text == '<tool_call>\n{"na'


def test_an_answer_of_one_call_may_be_one_json_object() -> None:
    extraction = CallExtraction(format_named("llama"), USE, ())
    assert seen(extraction, *tokens_of('{"name": "now", "parameters": {}}')).calls == (("now", "{}"),)


@pytest.mark.parametrize("size", [3, 1000])
def test_tokens_of_what_is_hidden_belong_to_no_text_though_a_stop_string_may_go_on_behind_it(size: int) -> None:
    output = "".join(
        f"<|channel|>{channel}<|message|>{text}<|end|><|start|>assistant"
        for channel, text in (("commentary", "I loST"), ("analysis", "thoughts"), ("final", "..."), ("final", "it"))
    )
    tokens = tuple(token for piece in tokens_of(output, 1) for token in piece.tokens)
    pieces = [
        Piece(output[start : start + size], tokens[start : start + size]) for start in range(0, len(output), size)
    ]
    rules = CallRules.of_none()
    answer = seen(CallExtraction(format_named("harmony"), rules, ["STOP", "..!"]), *pieces)
    assert answer.text == "".join(answer.tokens) == "I loST...it"
