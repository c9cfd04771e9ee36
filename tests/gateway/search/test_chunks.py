"""Texts cut into chunks that overlap: everything is in them, and is embedded once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.embeddings.text import EmbeddingTokenizer
from services.gateway.search.chunks import Chunk, StoredChunk, Strategy, cut
from tests.gateway.embedding_twin import CONTEXT, embedding_card

TOKENIZER = EmbeddingTokenizer(embedding_card())


def pieces(text: str, size: int, overlap: int) -> list[Chunk]:
    return cut(text, Strategy(size, overlap), TOKENIZER)


def embedded_text(chunks: list[Chunk]) -> str:
    ids = [token_id for chunk in chunks for sequence in chunk.sequences for token_id in sequence[1:-1]]
    return "".join(str(TOKENIZER._tokenizer.id_to_token(token_id)) for token_id in ids)


def test_chunks_have_the_size_and_overlap_of_the_strategy() -> None:
    text = "".join(chr(ord("a") + n % 26) for n in range(260))
    chunks = pieces(text, 100, 40)

    assert [chunk.text for chunk in chunks] == [text[0:100], text[60:160], text[120:220], text[180:260]]
    assert [chunk.own_length for chunk in chunks] == [60, 60, 60, 80]
    assert [len(sequence) for sequence in chunks[0].sequences] == [CONTEXT, CONTEXT]


@pytest.mark.parametrize(("num_tokens", "num_chunks"), [(0, 0), (1, 1), (40, 1), (100, 1), (101, 2), (161, 3)])
def test_the_last_chunk_ends_with_the_text(num_tokens: int, num_chunks: int) -> None:
    assert len(pieces("a" * num_tokens, 100, 40)) == num_chunks


@given(
    st.text(alphabet=st.sampled_from("ab é\n \u4e2d-"), max_size=600),
    st.integers(20, 120).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size // 2))),
)
def test_the_own_parts_of_all_chunks_make_up_the_text_and_are_embedded_once(text: str, sizes: tuple[int, int]) -> None:
    size, overlap = sizes
    chunks = pieces(text, size, overlap)
    stored = [StoredChunk.from_bytes(chunk.to_bytes()) for chunk in chunks]

    assert "".join(chunk.own_text for chunk in stored) == (text if chunks else "")
    assert bool(chunks) == bool(text.split())
    assert len(embedded_text(chunks).replace("[UNK]", "?")) == len("".join(text.split()))
    for chunk in chunks:
        assert len("".join(chunk.text.split())) <= size
        assert all(2 <= len(sequence) <= CONTEXT for sequence in chunk.sequences)


def test_long_texts_are_encoded_in_pieces() -> None:
    text = "word " * 30_000
    ids, spans = TOKENIZER.spans(text)

    assert ids == TOKENIZER.token_ids(text)
    assert "".join(text[first:end] for first, end in spans) == "word" * 30_000
