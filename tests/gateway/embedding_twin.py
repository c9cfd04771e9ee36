"""An embedding worker in this process: texts with the same letters in a row are alike."""

import asyncio
from collections.abc import Sequence
from functools import cache
from zlib import crc32

import numpy
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from services.cluster.registry import Member, Role
from services.errors import TandemError
from services.kv.card import ModelCard
from services.rpc import tandem_pb2 as pb
from services.rpc.versions import PROTOCOL_VERSION

EMBEDDING_MODEL = "tiny-embeddings"
CONTEXT = 32
DIMENSIONS = 256
_BEGIN, _END = 1, 2
_CHARACTERS = [chr(number) for number in range(33, 127)]


@cache
def character_tokenizer() -> str:
    """One token for each character that is no space, and marks around a text."""
    vocabulary = {"[UNK]": 0, "[CLS]": _BEGIN, "[SEP]": _END}
    vocabulary |= {character: number for number, character in enumerate(_CHARACTERS, 3)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    marks = [("[CLS]", _BEGIN), ("[SEP]", _END)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    return str(tokenizer.to_str())


def embedding_card(**changes: object) -> ModelCard:
    values: dict[str, object] = {
        "model_name": EMBEDDING_MODEL,
        "fingerprint": "e" * 64,
        "numerics_class": "embedding",
        "context_length": CONTEXT,
        "vocab_size": 3 + len(_CHARACTERS),
        "block_size": 1,
        "block_bytes": 0,
        "eos_token_ids": (),
        "tokenizer_json": character_tokenizer(),
        "chat_template": None,
    }
    return ModelCard(**{**values, **changes})  # type: ignore[arg-type]


def embedding_member(member_id: str = "e1", model: ModelCard | None = None) -> Member:
    model = model or embedding_card()
    return Member(
        member_id=member_id,
        role=Role.EMBED,
        address=f"{member_id}:1",
        model_name=model.model_name,
        card_digest=model.digest,
        fingerprint=model.fingerprint,
        transport="none",
        protocol_version=PROTOCOL_VERSION,
    )


class EmbeddingTwin:
    """Answers at once, or as ``errors`` and ``gate`` say; remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[pb.EmbedRequest] = []
        self.addresses: list[str] = []
        self.errors: list[TandemError] = []
        """Raised one after the other before anything is answered."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_waiting = asyncio.Event()
        self.closes_after = 0
        """The gate closes once so many requests were answered, if that is not 0."""

    @property
    def num_sequences(self) -> int:
        return sum(len(request.sequences) for request in self.requests)

    async def embed(self, address: str, request: pb.EmbedRequest, timeout_s: float) -> pb.EmbedReply:
        self.addresses.append(address)
        if self.errors:
            raise self.errors.pop(0)
        if not self.gate.is_set():
            self.is_waiting.set()
            await self.gate.wait()
        self.requests.append(request)
        if len(self.requests) == self.closes_after:
            self.gate.clear()
        vectors = [embedded(sequence.token_ids) for sequence in request.sequences]
        return pb.EmbedReply(dimensions=DIMENSIONS, vectors=numpy.stack(vectors).astype("<f4").tobytes())


def embedded(token_ids: Sequence[int]) -> "numpy.ndarray[tuple[int], numpy.dtype[numpy.float64]]":
    vector = numpy.zeros(DIMENSIONS)
    vector[0] = 1e-3
    for place in range(1, len(token_ids) - 3):
        vector[crc32(bytes(token_ids[place : place + 3])) % DIMENSIONS] += 1
    return vector / numpy.linalg.norm(vector)
