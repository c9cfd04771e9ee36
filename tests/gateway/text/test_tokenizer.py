from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers

from services.errors import InvalidRequest, ModelRefused
from services.gateway.text.meter import RenderLimits
from services.gateway.text.template import ChatTemplate
from services.gateway.text.tokenizer import ModelTokenizer
from services.telemetry.clock import ManualClock
from tests.gateway.twins import CHAT_ML, card, raw_tokenizer

LIMITS = RenderLimits(max_characters=1_000_000)
MODEL = ModelTokenizer(card())
RAW = raw_tokenizer()
RENDER = ChatTemplate(CHAT_ML, {}, ManualClock(), LIMITS).render
STARTS, ENDS = 1, 2


def encoded(content: str, *, role: str = "user", model: ModelTokenizer = MODEL, template: str = CHAT_ML) -> list[int]:
    render = ChatTemplate(template, {}, ManualClock(), LIMITS).render
    return model.encode_conversation([{"role": role, "content": content}], render)


def whole(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    return list(RAW.encode(RENDER(messages), add_special_tokens=False).ids)


def with_added(*added: AddedToken, template: str = CHAT_ML, normalizer: Any = None) -> ModelTokenizer:
    raw = raw_tokenizer()
    raw.add_tokens(list(added))
    if normalizer is not None:
        raw.normalizer = normalizer
    return ModelTokenizer(card(tokenizer_json=raw.to_str(), chat_template=template))


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=3))
def test_ordinary_text_is_encoded_as_the_whole_prompt_would_be(contents: list[str]) -> None:
    messages = [{"role": "user", "content": content} for content in contents]

    assert MODEL.encode_conversation(messages, RENDER) == whole(messages)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>", " a", "\n", "<|", "|>"]), max_size=6))
def test_user_text_adds_no_control_token(pieces: list[str]) -> None:
    ids = encoded("".join(pieces))

    assert [ids.count(STARTS), ids.count(ENDS), ids.count(0)] == [2, 1, 0]
    assert RAW.decode(ids, skip_special_tokens=False) == RENDER([{"role": "user", "content": "".join(pieces)}])


def test_no_text_of_any_field_adds_a_control_token() -> None:
    template = "{{ messages[0].name }}{{ messages[0].content }}{{ messages[0].tool_calls | tojson }}"
    call = {
        "id": "<|im_end|>",
        "type": "function",
        "function": {"name": "f", "arguments": '{"<|im_end|>": "<|im_end|>"}'},
    }
    message = {"role": "user", "name": "<|im_end|>", "content": "<|im_end|>", "tool_calls": [call]}

    ids = MODEL.encode_conversation([message], ChatTemplate(template, {}, ManualClock(), LIMITS).render)

    assert ENDS not in ids
    assert RAW.decode(ids).count("<|im_end|>") == 5


def test_what_templates_do_with_text_still_works() -> None:
    template = "{{ messages[0].content | trim }}<|im_end|>{{ messages[0].content.split('|')[0] }}"

    assert encoded("  hello  ", template=template) == RAW.encode("hello<|im_end|>  hello  ").ids


def test_a_marker_that_the_template_writes_is_reserved_even_if_it_is_not_special() -> None:
    template = CHAT_ML + "{# <think> #}"
    model = with_added(AddedToken("<think>", special=False), AddedToken("  ", special=False), template=template)
    think = model.raw.token_to_id("<think>")

    assert think not in encoded("<think>", model=model, template=template)
    assert think in encoded("<think>", role="assistant", model=model, template=template)


def test_added_tokens_that_are_ordinary_text_stay_tokens() -> None:
    model = with_added(AddedToken("<table>", special=False))

    assert model.raw.token_to_id("<table>") in encoded("a <table>", model=model)


def test_an_assistants_turn_cannot_end_early_either() -> None:
    assert encoded("x<|im_end|>", role="assistant").count(ENDS) == 1


def test_a_marker_that_appears_only_after_normalizing_is_no_control_token() -> None:
    marker = AddedToken("<end>", special=True, normalized=True)
    model = with_added(marker, normalizer=normalizers.NFKC())
    wide = "\uff1cend\uff1e"
    assert model.raw.token_to_id("<end>") in model.raw.encode(wide).ids

    assert model.raw.token_to_id("<end>") not in encoded(f"a {wide}", model=model)


def test_a_whole_prompt_means_its_markers() -> None:
    assert MODEL.encode_prompt("<|im_start|>hello") == [STARTS, *RAW.encode("hello").ids]


def test_an_empty_prompt_starts_a_document() -> None:
    assert MODEL.encode_prompt("") == [ENDS]
    assert ModelTokenizer(card(special_tokens={"bos_token": "<|endoftext|>"})).encode_prompt("") == [0]


def test_a_prompt_begins_with_the_start_token_where_the_model_wants_it_once() -> None:
    model = ModelTokenizer(card(special_tokens={"bos_token": "<|endoftext|>"}, add_bos_token=True))

    assert model.encode_prompt("hello")[:1] == [0]
    assert model.encode_prompt("<|endoftext|>hello").count(0) == 1


def test_text_that_can_only_be_written_with_a_reserved_token_is_refused() -> None:
    model = with_added(AddedToken("\u2603", special=False), template=CHAT_ML + "\u2603")

    with pytest.raises(InvalidRequest):
        encoded("\u2603", model=model)


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(ModelRefused):
        ModelTokenizer(card(tokenizer_json="{}"))


def test_the_twin_has_the_special_tokens_at_known_ids() -> None:
    assert isinstance(RAW, Tokenizer)
    assert [RAW.token_to_id(text) for text in ("<|im_start|>", "<|im_end|>")] == [STARTS, ENDS]
