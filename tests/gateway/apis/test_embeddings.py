"""``POST /v1/embeddings`` with a twin of an embedding worker."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy
import pytest

from services.errors import Draining, Overloaded, PeerGone
from tests.gateway.apis.stored import refusal
from tests.gateway.embedding_twin import (
    CONTEXT,
    DIMENSIONS,
    EMBEDDING_MODEL,
    EmbeddingTwin,
    embedded,
    embedding_card,
    embedding_member,
)
from tests.gateway.twins import MODEL, World, world


@pytest.fixture
def embedder() -> EmbeddingTwin:
    return EmbeddingTwin()


@pytest.fixture
async def w(embedder: EmbeddingTwin) -> AsyncIterator[World]:
    aliases = {"text-embedding-3-small": EMBEDDING_MODEL, "gpt-4o": MODEL}
    async with world(embedder=embedder, model_aliases=aliases, max_embedding_tokens=100) as made:
        await made.join(embedding_member(), embedding_card())
        yield made


async def ask(w: World, value: Any, **fields: Any) -> httpx.Response:
    return await w.post("/v1/embeddings", {"model": EMBEDDING_MODEL, "input": value, **fields})


async def vectors(w: World, value: Any, **fields: Any) -> list[list[float]]:
    response = await ask(w, value, **fields)
    assert response.status_code == 200, response.text
    return [each["embedding"] for each in response.json()["data"]]


async def test_each_input_has_a_vector(w: World) -> None:
    body = (await ask(w, ["hello", "world"])).json()
    vector = body["data"][1].pop("embedding")

    assert {**body, "data": body["data"][1:]} == {
        "object": "list",
        "model": EMBEDDING_MODEL,
        "data": [{"object": "embedding", "index": 1}],
        "usage": {"prompt_tokens": 10, "total_tokens": 10},
    }
    assert numpy.allclose(vector, (await vectors(w, "world"))[0], atol=1e-6)
    assert len(vector) == DIMENSIONS
    assert numpy.isclose(numpy.linalg.norm(vector), 1, atol=1e-6)


async def test_base64_holds_the_same_numbers(w: World) -> None:
    [[plain], [encoded]] = [await vectors(w, "hello", **f) for f in ({}, {"encoding_format": "base64"})]

    assert isinstance(encoded, str)
    assert numpy.array_equal(numpy.frombuffer(base64.b64decode(encoded), dtype="<f4"), numpy.float32(plain))


async def test_fewer_dimensions_are_the_first_ones_at_length_one(w: World) -> None:
    [[whole], [short]] = [await vectors(w, "hello world", **f) for f in ({}, {"dimensions": 100})]

    assert len(short) == 100
    first = numpy.array(whole[:100])
    assert numpy.allclose(short, first / numpy.linalg.norm(first), atol=1e-6)
    status, error = refusal(await ask(w, "hello", dimensions=DIMENSIONS + 1))
    assert (status, error["param"]) == (400, "dimensions")


async def test_token_ids_are_taken_like_the_text(w: World) -> None:
    ids = list(range(5, 11))
    [one], many = await vectors(w, ids), await vectors(w, [ids, ids[:3]])

    assert numpy.allclose(one, embedded([1, *ids, 2]), atol=1e-6)
    assert numpy.array_equal(many[0], one)
    assert "tokenizer" in refusal(await ask(w, [100_277]))[1]["message"]


async def test_a_text_longer_than_the_context_has_the_mean_of_its_parts(w: World, embedder: EmbeddingTwin) -> None:
    [long] = await vectors(w, "abc" * 20)
    sequences = [list(each.token_ids) for each in embedder.requests[-1].sequences]
    mean = sum(len(each) * embedded(each) for each in sequences)

    assert [len(each) for each in sequences] == [CONTEXT, CONTEXT]
    assert numpy.allclose(long, mean / numpy.linalg.norm(mean), atol=1e-6)
    status, error = refusal(await ask(w, ["a", "b" * 101]))
    assert (status, error["code"], "Input 1 has 101" in error["message"]) == (400, "context_length_exceeded", True)


@pytest.mark.parametrize("value", [None, "", [], [""], 5, {"a": 1}, [1.5], ["a", 1], [[]], [["a"]], [-1], [True]])
async def test_other_inputs_are_refused(w: World, value: Any) -> None:
    status, error = refusal(await ask(w, value))

    assert (status, error["param"]) == (400, "input")


async def test_models_are_found_by_name_and_alias(w: World) -> None:
    listed = (await w.client.get("/v1/models")).json()["data"]
    aliased = await ask(w, "hello", model="text-embedding-3-small")

    assert [model["id"] for model in listed] == ["gpt-4o", MODEL, EMBEDDING_MODEL]
    assert aliased.json()["model"] == EMBEDDING_MODEL
    for name in ("unknown", MODEL, "gpt-4o"):
        status, error = refusal(await ask(w, "hello", model=name))
        assert (status, error["code"], EMBEDDING_MODEL in error["message"]) == (404, "model_not_found", True)


async def test_without_a_worker_the_answer_says_what_to_do() -> None:
    async with world() as w:
        status, error = refusal(await ask(w, "hello"))

    assert (status, error["code"], "`tandem embed`" in error["message"]) == (503, "no_embedding_worker", True)


@pytest.mark.parametrize("error", [PeerGone("reset"), Draining("leaving"), Overloaded("full")])
async def test_another_worker_takes_over(w: World, embedder: EmbeddingTwin, error: Any) -> None:
    await w.join(embedding_member("e2"), embedding_card())
    embedder.errors = [error]

    assert len(await vectors(w, "hello")) == 1
    assert sorted(embedder.addresses) == ["e1:1", "e2:1"]
    embedder.errors = [error, error]
    assert refusal(await ask(w, "hello"))[0] in (429, 502, 503)
