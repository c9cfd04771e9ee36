"""``POST /v1/embeddings``."""

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from services.errors import ContextLengthExceeded, InvalidRequest
from services.gateway.apis.openai.schemas import MAX_NAME_LENGTH
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.embeddings.models import EmbeddingModel, Vectors
from services.gateway.web.connection import while_connected
from services.gateway.web.problems import above_maximum, wrong_type
from services.gateway.web.replies import JsonReply
from services.gateway.web.validation import Body, Json, parse_body

MAX_INPUTS = 2048

Input = str | list[int]


class EmbeddingBody(Body):
    """Body of ``POST /v1/embeddings``."""

    model: str = Field(max_length=MAX_NAME_LENGTH)
    input: Json
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None


class Embeddings:
    """Makes vectors of texts."""

    def __init__(self, services: OpenAIServices) -> None:
        self._services = services

    async def create(self, request: Request) -> Response:
        """Return a vector for each input; an input longer than the model's context has the mean of its parts."""
        exchange = await self._services.entrance.exchange(request)
        body = parse_body(EmbeddingBody, await self._services.entrance.body(request))
        inputs = _inputs(body.input)
        model = await self._services.files.embeddings.resolve(body.model)
        token_ids = await self._services.threads.run(lambda: self._token_ids(model, inputs))
        vectors = await while_connected(request.receive, self._vectors(model, token_ids, exchange.request_id))
        vectors = _shortened(vectors, body.dimensions)
        num_tokens = sum(map(len, token_ids))
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return JsonReply({"object": "list", "data": data, "model": model.card.model_name, "usage": usage})

    def _token_ids(self, model: EmbeddingModel, inputs: Sequence[Input]) -> list[list[int]]:
        """Return the ids of all inputs; CPU work."""
        most = self._services.limits.max_embedding_tokens
        found = []
        for index, each in enumerate(inputs):
            ids = model.tokenizer.token_ids(each) if isinstance(each, str) else each
            if isinstance(each, list) and max(each) >= model.card.vocab_size:
                raise InvalidRequest(
                    f"Token id {max(each)} is not in the vocabulary of '{model.card.model_name}', which has "
                    f"{model.card.vocab_size}; send text if the ids are those of another tokenizer.",
                    param="input",
                )
            if len(ids) > most:
                raise ContextLengthExceeded(
                    f"Input {index} has {len(ids)} tokens; at most {most} are taken. Please reduce its length.",
                    param="input",
                )
            found.append(ids)
        return found

    async def _vectors(self, model: EmbeddingModel, token_ids: Sequence[Sequence[int]], request_id: str) -> Vectors:
        parts = [model.tokenizer.sequences(ids) for ids in token_ids]
        sequences = [sequence for each in parts for sequence in each]
        vectors = await self._services.files.embeddings.vectors(model, sequences, request_id)
        means, first = [], 0
        for each in parts:
            lengths = numpy.array([len(sequence) for sequence in each], dtype=numpy.float32)
            means.append(lengths @ vectors[first : first + len(each)])
            first += len(each)
        return _of_length_one(numpy.stack(means))


def _inputs(value: Any) -> list[Input]:
    """Return the inputs of a request: a text, some texts, the token ids of one, or of some.

    Raises:
        InvalidRequest: it is something else, empty, or too much.
    """
    if isinstance(value, str) or (isinstance(value, list) and value and all(_is_token_id(each) for each in value)):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(each, str | list) for each in value):
        problem = wrong_type("input", "a string, or an array of strings or of token ids", value)
        raise InvalidRequest(problem.message, param="input", code=problem.code)
    if len(value) > MAX_INPUTS:
        problem = above_maximum("input", len(value), MAX_INPUTS)
        raise InvalidRequest(problem.message, param="input", code="array_above_max_length")
    if not value or not all(value):
        raise InvalidRequest("'input' cannot be empty.", param="input")
    if not all(_is_token_id(token_id) for each in value if isinstance(each, list) for token_id in each):
        raise InvalidRequest("Token ids are integers from 0 on.", param="input", code="invalid_type")
    return value


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shortened(vectors: Vectors, dimensions: int | None) -> Vectors:
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if dimensions > vectors.shape[1]:
        problem = above_maximum("dimensions", dimensions, vectors.shape[1])
        raise InvalidRequest(problem.message, param="dimensions", code=problem.code)
    return _of_length_one(vectors[:, :dimensions])


def _of_length_one(vectors: Vectors) -> Vectors:
    lengths = numpy.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = (vectors / numpy.maximum(lengths, 1e-12)).astype(numpy.float32)
    return scaled


def _encoded(vector: Vectors, encoding: str) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]
