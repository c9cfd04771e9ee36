import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from services.engine.weights.pretokenizers import Cure, mend

KNOWN = {"qwen2": r"\p{N}|\p{L}+", "llama-bpe": r"\p{N}{1,3}|\p{L}+"}


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("name", "cure", "expected"),
    [
        ("gpt-2", Cure.NOTHING, ["ab", "Ġ1234"]),
        ("qwen2", Cure.NOTHING, ["ab", "Ġ1234"]),  # transformers' own work, not undone
        ("smollm", Cure.MENDED, ["ab", "Ġ", "1", "2", "3", "4"]),
        ("stablelm2", Cure.MENDED, ["ab", "Ġ", "1", "2", "3", "4"]),
        ("glm4", Cure.MENDED, ["ab", "Ġ", "123", "4"]),
        ("never-heard-of", Cure.UNKNOWN, ["ab", "Ġ1234"]),
        (None, Cure.UNKNOWN, ["ab", "Ġ1234"]),
    ],
)
def test_numbers_are_cut_as_the_name_says(name: str | None, cure: Cure, expected: list[str]) -> None:
    tokenizer = byte_level()
    assert mend(tokenizer, name, KNOWN) is cure
    assert pieces(tokenizer, "ab 1234") == expected


def test_single_digits_keep_the_runs_of_spaces_before_them_together() -> None:
    tokenizer = byte_level()
    mend(tokenizer, "smollm", KNOWN)
    assert pieces(tokenizer, "  42") == ["ĠĠ", "4", "2"]
