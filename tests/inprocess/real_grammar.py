"""Real grammars over the hash model's vocabulary: each token is one printable ASCII character, the last one the end."""

import json
from typing import Any

from services.engine.grammar import Grammars
from services.engine.llguidance_grammar import LLGuidanceGrammars
from tests.inprocess.hash_model import VOCAB_SIZE

END = VOCAB_SIZE - 1
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-Z][a-z]{2,9}$"}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}


def definition(schema: dict[str, Any]) -> str:
    guidance = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps({"grammars": [{"json_schema": {**schema, "x-guidance": guidance}}]})


def text_of(token_ids: list[int]) -> str:
    return "".join(chr(0x20 + token_id) for token_id in token_ids if token_id != END)


def real_grammars() -> Grammars:
    pieces = ["Ġ", *(chr(0x20 + token_id) for token_id in range(1, END)), "<end>"]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": END,
                "content": "<end>",
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "BPE", "vocab": {piece: token_id for token_id, piece in enumerate(pieces)}, "merges": []},
    }
    return LLGuidanceGrammars(json.dumps(tokenizer), vocab_size=VOCAB_SIZE, end_token_ids=(END,))
