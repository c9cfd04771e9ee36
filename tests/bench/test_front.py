from bench.front.measure import measure
from bench.front.model import NUM_STEPS, first_token_id, tokenizer, word


def test_each_step_has_a_token_of_its_own_text() -> None:
    made, first = tokenizer(), first_token_id()

    assert made.decode([first, first + 1, first + NUM_STEPS - 1]) == word(0) + word(1) + word(NUM_STEPS - 1)


def test_every_client_gets_all_tokens() -> None:
    figures = measure(num_streams=3, max_tokens=20)

    assert (figures.num_ended, figures.num_tokens) == (3, 60)
    assert figures.num_bytes > 60
