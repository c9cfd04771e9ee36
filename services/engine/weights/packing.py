"""Finds which converted weights are, bit for bit, quantised rows of the GGUF file, and keeps those rows.

Conversion renames weights, and may reorder and join their rows. So rows are found by what they expand to, and no names
or layouts of any architecture have to be known here.
"""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open
from transformers.integrations.gguf.dequant import GGML_Q4_1, GGML_Q8_0
from transformers.integrations.gguf.reader import GgufHeader, load_gguf_state_dict

from services.engine.weights.packed import BLOCK, PackedWeight, four_bits, write_packed
from services.telemetry.logs import get_logger

_log = get_logger(__name__)


def pack(file: Path, folder: Path) -> None:
    """Write the packed form of the weights in ``folder``, to which ``file`` was converted in bfloat16.

    A weight without an exact packed form is left out; without any, nothing is written.
    """
    rows = _Rows(_quantised(file))
    packed = {name: found for name, weight in _matrices(folder) if (found := rows.packed(weight)) is not None}
    if packed:
        write_packed(packed, folder)
    _log.event("weights.packed", file=file.name, num_weights=len(packed))


def _quantised(file: Path) -> Iterator[PackedWeight]:
    """Yield the matrices of ``file`` that are in a form that we know, their rows in the file's order."""
    for tensor in load_gguf_state_dict(GgufHeader.from_file(str(file))).values():
        if len(tensor.shape) == 2 and tensor.ggml_type in _FORMS:
            yield _FORMS[tensor.ggml_type](tensor[...])


def _of_q4_1(rows: torch.Tensor) -> PackedWeight:
    """A block is scale, minimum, and sixteen bytes with quants i and 16 + i."""
    blocks = rows.view(rows.shape[0], -1, 4 + BLOCK // 2)
    pairs = blocks[..., 4:]
    return four_bits(blocks[..., :4].contiguous().view(torch.float16), torch.cat((pairs & 15, pairs >> 4), dim=-1))


def _of_q8_0(rows: torch.Tensor) -> PackedWeight:
    """A block is scale and quants."""
    blocks = rows.view(rows.shape[0], -1, 2 + BLOCK)
    return PackedWeight(blocks[..., :2].contiguous().view(torch.float16), blocks[..., 2:].contiguous().view(torch.int8))


_FORMS = {GGML_Q4_1: _of_q4_1, GGML_Q8_0: _of_q8_0}


def _matrices(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict
                tensor = tensors.get_tensor(name)
                if tensor.ndim == 2 and tensor.dtype is torch.bfloat16:
                    yield name, tensor


class _Rows:
    """Quantised rows by digests of what they expand to."""

    def __init__(self, weights: Iterator[PackedWeight]) -> None:
        self._weights = list(weights)
        self._places: dict[bytes, tuple[int, int]] = {}  # which weight, which row of it
        for index, weight in enumerate(self._weights):
            for row, digest in enumerate(_digests(weight.expanded())):
                self._places.setdefault(digest, (index, row))

    def packed(self, weight: torch.Tensor) -> PackedWeight | None:
        """Return the packed form that expands to ``weight``, if there is one."""
        places = [self._places.get(digest) for digest in _digests(weight)]
        known = [place for place in places if place is not None]
        if len(known) < len(places) or len({self._weights[index].bits for index, _ in known}) != 1:
            return None
        packed = self._gathered(known)
        return packed if packed.is_same(weight) else None

    def _gathered(self, places: list[tuple[int, int]]) -> PackedWeight:
        parts = []
        for index, run in groupby(places, key=itemgetter(0)):
            rows = torch.tensor([row for _, row in run])
            parts.append((self._weights[index].scales[rows], self._weights[index].quants[rows]))
        scales, quants = zip(*parts, strict=True)
        return PackedWeight(torch.cat(scales), torch.cat(quants))


def _digests(weight: torch.Tensor) -> Iterator[bytes]:
    """Return a digest of each row."""
    return map(xxhash.xxh3_128_digest, weight.view(torch.int16).numpy())
