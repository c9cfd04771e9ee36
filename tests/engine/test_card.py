import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from services.engine.card import build_card, model_context_length
from services.errors import ConfigurationError
from services.kv.card import ModelCard
from services.kv.layout import KVLayout, Plane

LAYOUT = KVLayout("identity", "class", 16, (Plane(0, "key", 2, 8, "float32"), Plane(0, "value", 2, 8, "float32")))
VOCABULARY = {"<unk>": 0, "<s>": 1, "</s>": 2, "<|turn|>": 3, "a": 4, "b": 5}


def tokenizer(*, with_bos: bool = False) -> Tokenizer:
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<unk>", "<s>", "</s>", "<|turn|>"])
    if with_bos:
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def write(folder: Path, name: str, values: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", {"vocab_size": 8, "eos_token_id": 2, "max_position_embeddings": 512})
    write(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": None})
    return tmp_path


def card(folder: Path) -> ModelCard:
    return build_card(folder, name="some", layout=LAYOUT, context_length=100, created=7)


def test_limits_and_layout_stand_on_the_card(folder: Path) -> None:
    made = card(folder)
    assert (made.model_name, made.context_length, made.vocab_size, made.created) == ("some", 100, 8, 7)
    assert (made.fingerprint, made.numerics_class) == (LAYOUT.fingerprint, "class")
    assert (made.block_size, made.block_bytes) == (16, LAYOUT.block_bytes)


def test_the_card_survives_its_json_with_the_same_digest(folder: Path) -> None:
    made = card(folder)
    assert ModelCard.from_json(made.to_json()) == made
    assert card(folder).digest == made.digest


def test_the_tokenizer_on_the_card_encodes_like_the_folder(folder: Path) -> None:
    assert Tokenizer.from_str(card(folder).tokenizer_json).encode("a b a").ids == [4, 5, 4]


def test_limits_of_a_training_script_are_taken_out_of_the_tokenizer(folder: Path) -> None:
    limited = tokenizer()
    limited.enable_truncation(2)
    limited.enable_padding(length=9)
    limited.save(str(folder / "tokenizer.json"))
    assert Tokenizer.from_str(card(folder).tokenizer_json).encode("a b a b").ids == [4, 5, 4, 5]


def test_special_tokens_are_texts_and_absent_ones_are_left_out(folder: Path) -> None:
    assert card(folder).special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, (2,)), ({"eos_token_id": [3, 2]}, (3, 2)), ({"eos_token_id": 3}, (3, 2)), ({}, (2,))],
)
def test_end_tokens_come_from_generation_config_else_config_and_the_tokenizer(
    folder: Path, generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    if generation is not None:
        write(folder, "generation_config.json", generation)
    assert card(folder).eos_token_ids == expected


def test_generation_defaults_are_what_the_authors_advise_and_no_more(folder: Path) -> None:
    write(folder, "generation_config.json", {"temperature": 0.6, "top_k": 20, "top_p": None, "max_length": 99})
    assert card(folder).generation_defaults == {"temperature": 0.6, "top_k": 20.0}


@pytest.mark.parametrize(
    ("flag", "with_bos", "expected"),
    [(None, False, False), (None, True, True), (False, True, False), (True, False, True)],
)
def test_bos_is_added_as_the_config_says_else_as_the_tokenizer_does(
    folder: Path, flag: bool | None, with_bos: bool, expected: bool
) -> None:
    tokenizer(with_bos=with_bos).save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {"bos_token": "<s>", "add_bos_token": flag})
    assert card(folder).add_bos_token is expected


def test_without_a_bos_token_none_is_added(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"add_bos_token": True})
    assert card(folder).add_bos_token is False


def test_the_template_file_wins_over_the_config(folder: Path) -> None:
    assert card(folder).chat_template is None
    write(folder, "tokenizer_config.json", {"chat_template": "from config"})
    assert card(folder).chat_template == "from config"
    (folder / "chat_template.jinja").write_text("from file")
    assert card(folder).chat_template == "from file"


def test_of_several_templates_the_default_is_taken(folder: Path) -> None:
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write(folder, "tokenizer_config.json", {"chat_template": templates})
    assert card(folder).chat_template == "plain"


def test_a_multimodal_config_is_read_through_its_text_part(folder: Path) -> None:
    write(folder, "config.json", {"text_config": {"vocab_size": 9, "max_position_embeddings": 64}})
    assert card(folder).vocab_size == 9
    assert model_context_length(folder) == 64


def test_the_context_length_of_older_configs_is_found(folder: Path) -> None:
    assert model_context_length(folder) == 512
    write(folder, "config.json", {"n_positions": 33})
    assert model_context_length(folder) == 33
    write(folder, "config.json", {})
    assert model_context_length(folder) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{"), ("tokenizer.json", "{}"), ("config.json", "{}"), ("config.json", "[]")],
)
def test_damaged_files_are_refused_by_name(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ConfigurationError, match=name):
        card(folder)


def test_a_slow_tokenizer_is_converted(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    write(folder, "vocab.json", {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3})
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    write(folder, "config.json", {"model_type": "gpt2", "vocab_size": 4})
    write(folder, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    assert Tokenizer.from_str(card(folder).tokenizer_json).encode("aab").ids == [0, 2]


def test_a_folder_without_any_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigurationError, match="tokenizer"):
        card(folder)


def test_building_a_card_needs_no_torch(folder: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from services.engine.card import build_card;"
        "from services.kv.layout import KVLayout, Plane;"
        "build_card(Path(sys.argv[1]), name='x', layout=KVLayout('i', 'c', 16, ()), context_length=9);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(folder)], timeout=120, check=False).returncode == 0
