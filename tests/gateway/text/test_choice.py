from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.answering.sequence import GeneratedToken
from services.gateway.text.choice import ChoiceText, Piece, TokenText
from services.gateway.text.tokenizer import ModelTokenizer
from services.kv.sampling import SamplingParams
from tests.gateway.twins import END_ID, card, tokens

MODEL = ModelTokenizer(card())


def choice(*stops: str, min_tokens: int = 0, logprobs: int | None = None) -> ChoiceText:
    sampling = SamplingParams(
        seed=1, max_tokens=500, min_tokens=min_tokens, logprobs=logprobs, stop_token_ids=frozenset({END_ID})
    )
    return ChoiceText(MODEL, sampling, stops)


def generated(token_ids: Sequence[int]) -> list[GeneratedToken]:
    return [GeneratedToken(token_id, -0.5, ((token_id, -0.5),)) for token_id in token_ids]


def pushed(text: ChoiceText, token_ids: Sequence[int]) -> list[Piece]:
    pieces = []
    for token in generated(token_ids):
        pieces.append(text.push([token]))
        if text.has_stopped:
            return pieces
    return [*pieces, text.finish()]


def joined(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_the_end_token_counts_but_gives_no_text() -> None:
    text = choice()

    pieces = pushed(text, [*tokens("Paris"), END_ID])

    assert joined(pieces) == "Paris"
    assert text.num_tokens == len(tokens("Paris")) + 1
    assert [token.text for piece in pieces for token in piece.tokens] == ["Pa", "ris"]


def test_tokens_after_a_stop_string_neither_count_nor_show() -> None:
    text = choice("France")

    piece = text.push(generated(tokens("capital of France? Paris")))

    assert (piece.text, text.has_stopped) == ("capital of ", True)
    assert text.num_tokens <= len(tokens("capital of France?"))
    assert text.finish().is_empty


def test_stop_strings_wait_for_the_least_number_of_tokens() -> None:
    text = choice("world", min_tokens=len(tokens("hello world")) + 1)

    pieces = pushed(text, tokens("hello world and world"))

    assert joined(pieces) == "hello world and "


def test_a_held_back_end_is_shown_when_the_sequence_ends() -> None:
    assert joined(pushed(choice("Paris!"), tokens("to Paris"))) == "to Paris"


@settings(deadline=None)
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_tokens_are_shown_with_the_text_that_they_complete(content: str, stops: list[str]) -> None:
    shown: list[TokenText] = []
    num_chars = 0
    for piece in pushed(choice(*stops), tokens(content)):
        num_chars += len(piece.text)
        shown += piece.tokens
        assert all(token.offset <= num_chars for token in piece.tokens)
    data = b"".join(token.data for token in shown)

    assert content.encode().startswith(data)
    assert data.decode(errors="ignore").startswith(content[:num_chars]) or not shown


def test_each_token_is_shown_once_and_in_order() -> None:
    ids = tokens("what is the capital of France?")

    pieces = pushed(choice("nothing"), ids)

    assert [token.token_id for piece in pieces for token in piece.tokens] == ids
