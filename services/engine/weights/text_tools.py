"""Text tools of a model folder: tokenizer, chat template, special tokens; without torch where files allow it."""

import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from services.errors import ConfigurationError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in ``file``, or an empty one if there is no such file.

    Raises:
        ConfigurationError: the file is not a JSON object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}.", param="model") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"{file} does not hold a JSON object.", param="model")
    return values


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the model's tokenizer, converted if there is no ``tokenizer.json``; it neither cuts nor pads.

    Raises:
        ConfigurationError: there is none, or it cannot be converted.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        tokenizer = _converted(folder)
    elif "model" in read_json(file):  # tokenizers itself raises a bare Exception for a damaged file
        tokenizer = Tokenizer.from_file(str(file))
    else:
        raise ConfigurationError(f"{file} does not describe a tokenizer.", param="model")
    tokenizer.no_truncation()  # some files carry the limits of a training script
    tokenizer.no_padding()
    return tokenizer


def _converted(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer.save_pretrained(scratch)
            return Tokenizer.from_file(str(Path(scratch) / "tokenizer.json"))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigurationError(
            f"{folder} has no tokenizer.json, and its tokenizer cannot be converted to one: {error}", param="model"
        ) from error


def chat_template(folder: Path) -> str | None:
    """Return the model's default chat template, or None."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        template = _default_template(read_json(folder / name).get("chat_template"))
        if template is not None:
            return template
    return None


def _default_template(value: object) -> str | None:
    """Read a template, or a list of ``{name, template}`` of which ``default`` is wanted."""
    if isinstance(value, list):
        named = {entry["name"]: entry["template"] for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def special_tokens(folder: Path) -> dict[str, str]:
    """Return the text of each special token that the tokenizer's config names."""
    values = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
    tokens = {name: _token_text(values.get(name)) for name in SPECIAL_TOKENS}
    return {name: text for name, text in tokens.items() if text is not None}


def _token_text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def adds_bos_token(folder: Path, tokenizer: Tokenizer, bos_token: str | None) -> bool:
    """Whether text starts with BOS: the config's word, else what the tokenizer does."""
    if bos_token is None:
        return False
    flag = read_json(folder / "tokenizer_config.json").get("add_bos_token")
    if flag is not None:
        return bool(flag)
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    return bool(ids) and ids[0] == tokenizer.token_to_id(bos_token)
