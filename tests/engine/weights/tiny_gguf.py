"""Writes a GGUF file of a random Llama with 2 layers and a byte-level vocabulary of 263 tokens."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

HIDDEN, HEADS, KV_HEADS, INNER, LAYERS = 32, 4, 2, 64, 2
SPECIAL = ["<|unk|>", "<|start|>", "<|end|>", "<|turn|>"]
MERGES = ["1 2", "a b", "ab c"]


def byte_alphabet() -> list[str]:
    """Return the printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def vocabulary() -> list[str]:
    return [*SPECIAL, *byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES)]


def tensors() -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.1)

    kv = HIDDEN // HEADS * KV_HEADS
    made = {"token_embd.weight": matrix(len(vocabulary()), HIDDEN), "output_norm.weight": np.ones(HIDDEN, np.float32)}
    made["output.weight"] = matrix(len(vocabulary()), HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        made |= {
            block + "attn_norm.weight": np.ones(HIDDEN, np.float32),
            block + "ffn_norm.weight": np.ones(HIDDEN, np.float32),
            block + "attn_q.weight": matrix(HIDDEN, HIDDEN),
            block + "attn_k.weight": matrix(kv, HIDDEN),
            block + "attn_v.weight": matrix(kv, HIDDEN),
            block + "attn_output.weight": matrix(HIDDEN, HIDDEN),
            block + "ffn_gate.weight": matrix(INNER, HIDDEN),
            block + "ffn_up.weight": matrix(INNER, HIDDEN),
            block + "ffn_down.weight": matrix(HIDDEN, INNER),
        }
    return made


def write(
    path: Path,
    *,
    pre: str = "smollm",
    quantisation: dict[str, gguf.GGMLQuantizationType] | None = None,
    **floats: float,
) -> Path:
    """Write the file; ``floats`` are further metadata, with ``__`` for dots.

    ``quantisation`` says by the end of a tensor's name in which form it is written, float32 otherwise.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(vocabulary()))
    _add_tokenizer(writer, pre)
    for name, value in floats.items():
        writer.add_float32(name.replace("__", "."), value)
    for name, tensor in tensors().items():
        kind = next((kind for end, kind in (quantisation or {}).items() if name.endswith(end)), None)
        values = tensor if kind is None else gguf.quantize(tensor, kind)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, pre: str) -> None:
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages[0]['content'] }}")
