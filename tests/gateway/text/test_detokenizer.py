from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.text.detokenizer import Detokenizer
from tests.gateway.twins import raw_tokenizer

TOKENIZER = raw_tokenizer()
# A byte that continues a character, as a token: alone it never becomes text.
CONTINUATION = TOKENIZER.encode("é", add_special_tokens=False).ids[-1]


def decoded(token_ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(TOKENIZER)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


@settings(deadline=None)
@given(st.text(max_size=40))
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(decoded(list(TOKENIZER.encode(text, add_special_tokens=False).ids))) == text


@settings(deadline=None)
@given(st.text(max_size=20))
def test_no_piece_shows_half_a_character(text: str) -> None:
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in decoded(list(TOKENIZER.encode(text).ids)))


def test_special_tokens_give_no_text() -> None:
    assert "".join(decoded([1, *TOKENIZER.encode("hello").ids, 2])) == "hello"


def test_a_cut_character_at_the_end_is_flushed() -> None:
    ids = list(TOKENIZER.encode("a\U0001f642", add_special_tokens=False).ids)[:-1]

    assert "".join(decoded(ids)).startswith("a\ufffd")


def test_endless_invalid_bytes_are_given_out() -> None:
    detokenizer = Detokenizer(TOKENIZER)

    pieces = [detokenizer.push(CONTINUATION) for _ in range(300)]

    assert sum(map(len, pieces)) >= 280
    assert "".join(pieces).strip("\ufffd") == ""


def test_text_after_invalid_bytes_is_whole() -> None:
    after = list(TOKENIZER.encode(" Paris \U0001f642", add_special_tokens=False).ids)

    text = "".join(decoded([*TOKENIZER.encode("hello").ids, *[CONTINUATION] * 40, *after]))

    assert text.startswith("hello\ufffd")
    assert text.endswith("\ufffd Paris \U0001f642")


def test_a_character_that_begins_among_invalid_bytes_is_whole() -> None:
    smile = list(TOKENIZER.encode("\U0001f642", add_special_tokens=False).ids)
    for num_before in range(10, 20):
        assert "".join(decoded([*[CONTINUATION] * num_before, *smile])).endswith("\U0001f642")


def test_special_tokens_may_be_endless() -> None:
    assert "".join(decoded([*[1] * 50, *TOKENIZER.encode("hello").ids])) == "hello"
