from hypothesis import given
from hypothesis import strategies as st

from services.engine.prompt_lookup import PromptLookup


def test_what_followed_the_last_tokens_before_is_guessed() -> None:
    assert list(PromptLookup().guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], 8)) == [4, 5, 6, 7]


def test_three_tokens_go_before_two_and_later_places_before_earlier_ones() -> None:
    assert list(PromptLookup().guess([1, 2, 3, 9, 8, 2, 3, 7, 7, 1, 2, 3], 1)) == [9]
    assert list(PromptLookup().guess([2, 3, 9, 2, 3, 7, 6, 5, 2, 3], 1)) == [7]


def test_nothing_is_guessed_after_what_was_never_said() -> None:
    lookup = PromptLookup()
    assert list(lookup.guess([1, 2, 3, 4], 8)) == []
    assert list(lookup.guess([1], 8)) == []


def test_more_is_guessed_after_what_was_right_and_less_after_what_was_wrong() -> None:
    lookup, text = PromptLookup(), list(range(100))
    tokens = [*text, 0, 1, 2]
    assert len(lookup.guess(tokens, 99)) == 4
    lookup.judged(4, 4)
    assert len(lookup.guess(tokens, 99)) == 8
    lookup.judged(8, 2)
    assert len(lookup.guess(tokens, 99)) == 3
    lookup.judged(3, 0)
    assert len(lookup.guess(tokens, 99)) == 1


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9))
def test_growing_with_the_sequence_finds_what_looking_at_all_of_it_finds(token_ids: list[int], step: int) -> None:
    growing = PromptLookup()
    for end in range(0, len(token_ids) + 1, step):
        known = token_ids[:end]
        assert list(growing.guess(known, 4)) == list(PromptLookup().guess(known, 4))
