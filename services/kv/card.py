"""The model card: all that a gateway needs to know of a model, published by workers under its digest."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelCard:
    """Text tools and limits of one served model.

    The gateway needs no model files: ``tokenizer_json`` is a whole ``tokenizer.json``, ``chat_template``
    a Jinja template or None. ``special_tokens`` maps template variables (``bos_token``, ...) to text.
    """

    model_name: str
    fingerprint: str
    numerics_class: str
    context_length: int
    vocab_size: int
    block_size: int
    block_bytes: int
    eos_token_ids: tuple[int, ...]
    tokenizer_json: str
    chat_template: str | None
    special_tokens: dict[str, str] = field(default_factory=dict)
    add_bos_token: bool = False
    generation_defaults: dict[str, float] = field(default_factory=dict)
    """``temperature``, ``top_p``, ``top_k``, ``min_p``, ``repetition_penalty`` as the model's authors advise."""
    created: int = 0

    @property
    def digest(self) -> str:
        """Hex sha256 of the card; its name in the store."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the canonical JSON text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Read what ``to_json`` wrote."""
        values: dict[str, Any] = json.loads(text)
        values["eos_token_ids"] = tuple(values["eos_token_ids"])
        return cls(**values)
