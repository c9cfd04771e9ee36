"""A sentence embedding model: a transformers encoder, its pooling, vectors of length 1.

Pooling is read from the sentence-transformers files of the folder: Reimers and Gurevych, Sentence-BERT (2019).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray

from services.engine.weights.text_tools import read_json

Vectors = NDArray[numpy.float32]
"""``[num_sequences, dimensions]``."""


class Encoder(Protocol):
    """Makes vectors of sequences, in a thread of its own."""

    def encode(self, sequences: Sequence[Sequence[int]]) -> Vectors:
        """Return one vector of length 1 for each sequence of token ids."""


class SentenceEncoder:
    """The model in a folder in Hugging Face format; importing torch and loading takes seconds."""

    def __init__(self, folder: Path, *, device: str, threads: int) -> None:
        import torch
        from transformers import AutoModel

        torch.set_num_threads(threads)
        self._torch = torch
        self._device = device
        self._uses_first_token = bool(read_json(folder / "1_Pooling/config.json").get("pooling_mode_cls_token"))
        self._model: Any = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
        self._model.to(device).eval()

    def encode(self, sequences: Sequence[Sequence[int]]) -> Vectors:
        """Return one vector of length 1 for each sequence of token ids."""
        torch = self._torch
        longest = max(map(len, sequences))
        ids = torch.zeros((len(sequences), longest), dtype=torch.long)
        mask = torch.zeros((len(sequences), longest), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
            mask[row, : len(sequence)] = 1
        with torch.inference_mode():
            hidden = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device))
            pooled = self._pooled(hidden.last_hidden_state, mask.to(self._device))
            vectors = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
        return numpy.ascontiguousarray(vectors, dtype=numpy.float32)

    def _pooled(self, states: Any, mask: Any) -> Any:
        """Return one vector for each sequence, of states ``[num_sequences, num_tokens, dimensions]``."""
        if self._uses_first_token:
            return states[:, 0]
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)
