"""Searches: what is found, how it is ranked, filtered and shown, and when the index is read again."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.errors import StateUnavailable
from services.gateway.search.index import IndexCache
from services.gateway.search.searches import SearchRequest
from services.gateway.store.kinds import VECTOR_STORE
from tests.gateway.apis.stored import refusal
from tests.gateway.embedding_twin import embedding_card, embedding_member
from tests.gateway.search.searching import SMALL, Library, library

FRUIT = ("apples and pears grow on trees", "trains and ships move people", "apples are trees of knowledge")


async def test_the_chunk_that_is_most_like_the_query_is_first(lib: Library) -> None:
    store, file_ids = await lib.indexed(*FRUIT)
    page = await lib.post(f"{store}/search", {"query": "trains and ships", "rewrite_query": True})
    first = page["data"][0]

    assert {**page, "data": []} == {
        "object": "vector_store.search_results.page",
        "search_query": ["trains and ships"],
        "data": [],
        "has_more": False,
        "next_page": None,
    }
    assert {**first, "score": 0} == {
        "file_id": file_ids[1],
        "filename": "1.txt",
        "score": 0,
        "attributes": {},
        "content": [{"type": "text", "text": FRUIT[1]}],
    }
    scores = [found["score"] for found in page["data"]]
    assert 0.5 < scores[0] <= 1 and scores == sorted(scores, reverse=True) and min(scores) >= 0


async def test_words_deep_inside_a_long_file_are_found_once(lib: Library) -> None:
    filler = ["lorem ipsum dolor sit amet " * 40] * 2
    store, _ = await lib.indexed("the secret word is xylophone ".join(filler), chunking_strategy=SMALL)
    found = await lib.search(store, "the secret word is xylophone", max_num_results=2)

    assert "xylophone" in found[0]["content"][0]["text"]
    assert found[0]["score"] > found[1]["score"] + 0.2
    assert "xylophone" not in found[1]["content"][0]["text"]


async def test_fewer_results_are_the_first_of_more(lib: Library) -> None:
    words = " ".join(f"word{number} apples" if number % 7 else "pears" for number in range(600))
    store, _ = await lib.indexed(words, "pears", words, chunking_strategy=SMALL)
    every = await lib.search(store, ["apples", "pears"], max_num_results=50)

    assert len(every) == 50
    for num_wanted in (1, 2, 17):
        assert await lib.search(store, ["apples", "pears"], max_num_results=num_wanted) == every[:num_wanted]


async def test_several_queries_find_what_any_of_them_finds(lib: Library) -> None:
    store, file_ids = await lib.indexed(*FRUIT)
    found = await lib.search(store, ["trains and ships", "apples and pears"], max_num_results=2)

    assert {each["file_id"] for each in found} == set(file_ids[:2])


async def test_results_are_bounded_by_number_and_by_score(lib: Library) -> None:
    store, _ = await lib.indexed(*FRUIT)
    options = {"ranker": "auto", "score_threshold": 0.5}

    assert len(await lib.search(store, "apples", max_num_results=1)) == 1
    close = await lib.search(store, FRUIT[0], ranking_options=options)
    assert [found["filename"] for found in close] == ["0.txt"]
    assert await lib.search(store, "zzzz", ranking_options=options) == []


ATTRIBUTES: list[dict[str, Any]] = [{"year": 2020, "kind": "a"}, {"year": 2021, "kind": "b", "new": True}, {}]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"type": "eq", "key": "kind", "value": "a"}, "0"),
        ({"type": "ne", "key": "kind", "value": "a"}, "12"),
        ({"type": "gt", "key": "year", "value": 2020}, "1"),
        ({"type": "gte", "key": "year", "value": 2020}, "01"),
        ({"type": "lt", "key": "year", "value": 2020.5}, "0"),
        ({"type": "lte", "key": "year", "value": "2021"}, ""),
        ({"type": "in", "key": "kind", "value": ["a", "b"]}, "01"),
        ({"type": "nin", "key": "kind", "value": ["a", "b"]}, "2"),
        ({"type": "eq", "key": "new", "value": True}, "1"),
        ({"type": "eq", "key": "new", "value": 1}, ""),
        (
            {
                "type": "and",
                "filters": [
                    {"type": "gte", "key": "year", "value": 2000},
                    {
                        "type": "or",
                        "filters": [
                            {"type": "eq", "key": "kind", "value": "b"},
                            {"type": "eq", "key": "x", "value": 1},
                        ],
                    },
                ],
            },
            "1",
        ),
    ],
)
async def test_filters_choose_files_by_their_attributes(lib: Library, filters: dict[str, Any], names: str) -> None:
    store, file_ids = await lib.indexed("some text", "some text", "some text")
    for file_id, attributes in zip(file_ids, ATTRIBUTES, strict=True):
        await lib.post(f"{store}/files/{file_id}", {"attributes": attributes})
    found = await lib.search(store, "some text", filters=filters)

    assert sorted(each["filename"][0] for each in found) == list(names)
    assert all(each["attributes"] == ATTRIBUTES[int(each["filename"][0])] for each in found)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": None}, "query"),
        ({"query": " "}, "query"),
        ({"query": []}, "query"),
        ({"max_num_results": 51}, "max_num_results"),
        ({"ranking_options": {"score_threshold": 2}}, "ranking_options.score_threshold"),
        ({"filters": 5}, "filters"),
        ({"filters": {"key": "a", "value": 1}}, "filters.type"),
        ({"filters": {"type": "like", "key": "a", "value": 1}}, "filters.type"),
        ({"filters": {"type": "eq", "key": 1, "value": 1}}, "filters.key"),
        ({"filters": {"type": "eq", "key": "a", "value": None}}, "filters.value"),
        ({"filters": {"type": "in", "key": "a", "value": 1}}, "filters.value"),
        ({"filters": {"type": "and", "filters": [{"type": "eq", "key": "a"}]}}, "filters.filters[0].value"),
        ({"filters": {"type": "eq", "key": "a", "value": 1, "x": 1}}, "filters.x"),
    ],
)
async def test_searches_are_checked(lib: Library, fields: dict[str, Any], param: str) -> None:
    store = await lib.store()
    status, error = refusal(await lib.w.post(f"{store}/search", {"query": "x", **fields}))

    assert (status, error["param"]) == (400, param)


async def test_the_index_is_read_again_only_when_the_store_has_changed(lib: Library) -> None:
    store, [first, *_] = await lib.indexed(*FRUIT)
    cache = lib.w.gateway.files.searches.cache
    for _ in range(3):
        await lib.search(store, "apples")
    assert cache.num_reads == 1
    await lib.post(f"{store}/files/{first}", {"attributes": {"a": 1}})
    await lib.search(store, "apples")
    assert cache.num_reads == 2
    added = await lib.file("apples apples apples", "new.txt")
    await lib.post(f"{store}/files", {"file_id": added})
    await lib.search(store, "apples")
    assert cache.num_reads == 2  # it is not indexed yet
    await lib.ingest()
    assert (await lib.search(store, "apples apples apples"))[0]["file_id"] == added
    assert cache.num_reads == 3


async def test_only_the_vectors_of_new_files_are_read(lib: Library) -> None:
    store, [first, *_] = await lib.indexed(*FRUIT)
    cache = lib.w.gateway.files.searches.cache
    await lib.search(store, "apples")
    before = cache.num_files_read
    added = await lib.file("apples apples apples", "new.txt")
    await lib.post(f"{store}/files", {"file_id": added})
    await lib.ingest()
    found = await lib.search(store, "apples apples apples")
    await lib.w.client.delete(f"{store}/files/{first}")
    left = await lib.search(store, "apples apples apples")

    assert (before, cache.num_files_read, cache.num_reads) == (3, 4, 3)
    assert found[0]["file_id"] == added
    assert [each["file_id"] for each in left] == [each["file_id"] for each in found if each["file_id"] != first]


async def test_a_file_that_is_added_again_has_its_new_vectors(lib: Library) -> None:
    text = "apples and pears grow on trees " * 20
    store, [file_id] = await lib.indexed(text, chunking_strategy=SMALL)
    many = await lib.search(store, "apples")
    await lib.post(f"{store}/files", {"file_id": file_id})
    await lib.ingest()
    [one] = await lib.search(store, "apples")

    assert len(many) > 1
    assert one["content"][0]["text"] == text


async def test_searches_that_come_together_share_one_reading(lib: Library) -> None:
    store, _ = await lib.indexed(*FRUIT)
    results = await asyncio.gather(*(lib.search(store, "apples") for _ in range(8)))
    cache = lib.w.gateway.files.searches.cache

    assert all(found == results[0] for found in results)
    assert (cache.num_reads, cache.num_files_read) == (1, len(FRUIT))


async def test_an_index_that_cannot_be_read_in_time_is_unavailable(lib: Library) -> None:
    store, _ = await lib.indexed(*FRUIT)
    files = lib.w.gateway.files.storage.of("default")

    with pytest.raises(StateUnavailable, match=r"could not be read within 0 s; try again\."):
        await IndexCache(2**20, 0.0).get(files, VECTOR_STORE.ref(store.rpartition("/")[2]), "any")


async def test_the_memory_for_indexes_is_bounded(tmp_path: Path) -> None:
    async with library(tmp_path, search_cache_bytes=1) as lib:
        stores = [(await lib.indexed(text))[0] for text in FRUIT[:2]]
        for store in (*stores, *stores):
            assert len(await lib.search(store, "apples")) == 1
        assert lib.w.gateway.files.searches.cache.num_reads == 4


async def test_empty_stores_and_attributes_take_memory_too(tmp_path: Path) -> None:
    async with library(tmp_path, search_cache_bytes=10_000) as lib:
        cache = lib.w.gateway.files.searches.cache
        empty = [await lib.store() for _ in range(6)]
        for store in (*empty, empty[-1], empty[0]):
            await lib.search(store, "apples")
        assert cache.num_reads == 6 + 1  # the first one had to go

        bare, described = [(await lib.indexed(FRUIT[0]))[0] for _ in range(2)]
        [file] = (await lib.get(f"{described}/files"))["data"]
        await lib.post(f"{described}/files/{file['id']}", {"attributes": {str(n): "x" * 500 for n in range(8)}})
        for store in (bare, described, bare):
            await lib.search(store, "apples")
        assert cache.num_reads == 7 + 3


async def test_several_stores_are_searched_as_one(lib: Library) -> None:
    stores = [(await lib.indexed(text))[0].rpartition("/")[2] for text in FRUIT]
    request = SearchRequest(["trains and ships"], max_num_results=2)
    found = await lib.w.gateway.files.searches.search("default", stores, request, "req_1")

    assert (found[0].text, len(found)) == (FRUIT[1], 2)


async def test_vectors_of_two_models_are_not_compared(lib: Library) -> None:
    store, [file_id] = await lib.indexed("some text")
    await lib.w.registry.leave("e1")
    other = embedding_card(fingerprint="f" * 64)
    await lib.w.join(embedding_member("e2", other), other)
    status, error = refusal(await lib.w.post(f"{store}/search", {"query": "some text"}))

    assert (status, "another embedding model" in error["message"], file_id in error["message"]) == (400, True, True)
    await lib.post(f"{store}/files", {"file_id": file_id})
    await lib.ingest()
    assert len(await lib.search(store, "some text")) == 1


async def test_without_an_embedding_worker_the_answer_says_what_to_do(lib: Library) -> None:
    store, _ = await lib.indexed("some text")
    await lib.w.registry.leave("e1")
    await lib.w.view.refresh()
    status, error = refusal(await lib.w.post(f"{store}/search", {"query": "some text"}))

    assert (status, error["code"]) == (503, "no_embedding_worker")
    assert "tandem embed" in error["message"]


async def test_stores_belong_to_the_project_of_their_key(lib: Library) -> None:
    own, other = [{"authorization": f"Bearer {await lib.w.keys.create(name)}"} for name in ("one", "two")]
    store = (await lib.w.post("/v1/vector_stores", {}, headers=own)).json()
    path = f"/v1/vector_stores/{store['id']}"

    assert (await lib.w.post(f"{path}/search", {"query": "x"}, headers=own)).json()["data"] == []
    assert refusal(await lib.w.post(f"{path}/search", {"query": "x"}, headers=other))[0] == 404
    assert (await lib.w.client.get("/v1/vector_stores", headers=other)).json()["data"] == []
