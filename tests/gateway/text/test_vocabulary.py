import json

from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.text.vocabulary import Vocabulary
from tests.gateway.twins import raw_tokenizer, tokenizer_json

BYTE_LEVEL = Vocabulary(tokenizer_json())


@settings(deadline=None)
@given(st.text())
def test_bytes_of_tokens_join_to_the_bytes_of_the_text(text: str) -> None:
    ids = raw_tokenizer().encode(text, add_special_tokens=False).ids

    assert b"".join(BYTE_LEVEL.bytes_of(token_id) for token_id in ids) == text.encode()


def test_added_tokens_are_their_text() -> None:
    assert BYTE_LEVEL.bytes_of(2) == b"<|im_end|>"


def test_unknown_ids_are_empty() -> None:
    assert BYTE_LEVEL.bytes_of(10**6) == b""


def test_sentencepiece_vocabularies_have_spaces_and_single_bytes() -> None:
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    listed = {"decoder": decoder, "model": {"vocab": [["<unk>", 0], ["\u2581the", -1], ["<0xE4>", -2]]}}

    vocabulary = Vocabulary(json.dumps(listed))

    assert [vocabulary.bytes_of(token_id) for token_id in (1, 2)] == [b" the", b"\xe4"]
