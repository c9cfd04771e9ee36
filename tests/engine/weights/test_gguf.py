import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from services.engine.card import build_card, model_context_length
from services.engine.weights import conversion
from services.engine.weights.gguf import converted_folder
from services.engine.weights.identity import model_identity
from services.errors import ConfigurationError
from services.kv.layout import KVLayout, Plane
from tests.engine.weights import tiny_gguf

RESOLVE = """
import sys
from pathlib import Path
from services.engine.weights.sources import resolve_model
def progress(text, share): print(text, flush=True)
print(resolve_model(sys.argv[1], cache_dir=Path(sys.argv[2]), dtype="float32", progress=progress).path)
print("torch" in sys.modules)
"""


def ignore(text: str, share: float | None) -> None:
    pass


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return tiny_gguf.write(path, general__sampling__temp=0.6, general__sampling__top_p=0.9)


@pytest.fixture(scope="module")
def folder(file: Path, cache_dir: Path) -> Path:
    return converted_folder(file, cache_dir=cache_dir, dtype="float32", progress=ignore)


def test_the_weights_are_those_of_the_file(folder: Path) -> None:
    from safetensors.torch import load_file

    loaded = load_file(folder / "model.safetensors")
    written = tiny_gguf.tensors()
    # Query and key rows are reordered for another rotary convention, so their order is not compared.
    assert (loaded["model.layers.1.mlp.down_proj.weight"].numpy() == written["blk.1.ffn_down.weight"]).all()
    assert (loaded["lm_head.weight"].numpy() == written["output.weight"]).all()
    assert loaded["model.layers.0.self_attn.k_proj.weight"].shape == (16, 32)
    assert str(loaded["model.embed_tokens.weight"].dtype) == "torch.float32"


def test_transformers_loads_the_folder_and_generates(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_the_card_carries_end_tokens_defaults_template_and_bos(folder: Path) -> None:
    layout = KVLayout("identity", "class", 16, (Plane(0, "key", 2, 8, "float32"),))
    card = build_card(folder, name="tiny", layout=layout, context_length=64)
    assert card.eos_token_ids == (2, 3)
    assert card.generation_defaults == pytest.approx({"temperature": 0.6, "top_p": 0.9})
    assert card.chat_template == "{{ messages[0]['content'] }}"
    assert card.special_tokens["bos_token"] == "<|start|>"
    assert card.add_bos_token
    assert card.vocab_size == len(tiny_gguf.vocabulary())
    assert model_context_length(folder) == 128


def test_the_pre_tokenizer_that_transformers_does_not_know_is_mended(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("  12abc", add_special_tokens=False).tokens == ["Ġ", "Ġ", "1", "2", "abc"]


def test_a_pre_tokenizer_that_nobody_knows_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tiny_gguf.write(tmp_path / "odd.gguf", pre="never-heard-of")
    with caplog.at_level(logging.WARNING, logger=conversion.__name__):
        converted_folder(file, cache_dir=tmp_path, dtype="float32", progress=ignore)
    [record] = [record for record in caplog.records if record.name == conversion.__name__]
    assert record.getMessage() == "unknown_pre_tokenizer"
    assert record.__dict__["fields"]["pre"] == "never-heard-of"


def test_a_second_call_converts_nothing(
    file: Path, folder: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "convert", None)
    assert converted_folder(file, cache_dir=cache_dir, dtype="float32", progress=ignore) == folder


def test_the_published_checksum_is_right_and_part_of_the_identity(folder: Path) -> None:
    checksums = json.loads((folder / "checksums.json").read_text())
    assert list(checksums) == ["model.safetensors"]
    assert model_identity(folder, verify=True) == model_identity(folder)


def test_nothing_is_left_of_a_conversion_that_died_or_failed(tmp_path: Path) -> None:
    whole = tiny_gguf.write(tmp_path / "whole.gguf").read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigurationError, match="cannot be converted"):
        converted_folder(broken, cache_dir=tmp_path, dtype="float32", progress=ignore)
    assert [path.suffix for path in (tmp_path / "converted").iterdir()] == [".lock"]


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.gguf"
    file.write_text("hello")
    with pytest.raises(ConfigurationError, match="not a GGUF file"):
        converted_folder(file, cache_dir=tmp_path, dtype="float32", progress=ignore)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        converted_folder(tmp_path / "none.gguf", cache_dir=tmp_path, dtype="float32", progress=ignore)


def resolve_in_process(file: Path, cache_dir: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", RESOLVE, str(file), str(cache_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_start_at_once_convert_once_and_the_cached_model_needs_no_torch(tmp_path: Path) -> None:
    file = tiny_gguf.write(tmp_path / "tiny.gguf")
    racing = [resolve_in_process(file, tmp_path) for _ in range(3)]
    outputs = [process.communicate(timeout=250)[0].splitlines() for process in racing]
    later = resolve_in_process(file, tmp_path).communicate(timeout=250)[0].splitlines()
    assert len({lines[-2] for lines in [*outputs, later]}) == 1
    assert sum("converted tiny.gguf to float32" in lines for lines in outputs) == 1
    assert later == [outputs[0][-2], "False"]
