"""Makes the searches of files that models ask for in runs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from services.errors import ObjectNotFound, ObjectRefused
from services.gateway.models import ModelCatalog, ServedModel
from services.gateway.runs.citations import mark
from services.gateway.runs.lifecycle import Body
from services.gateway.runs.search_calls import NAME, Found, Search
from services.gateway.search.searches import Searches, SearchRequest, SearchResult
from services.gateway.store.kinds import ASSISTANT, THREAD
from services.gateway.store.object_store import ObjectStore
from services.gateway.text.threads import TextThreads

DEFAULT_RANKER = "default_2024_08_21"
DEFAULT_RESULTS = 20
_CONTEXT_SHARE = 4
"""A fourth of the context is for what the searches of one run find."""
_LEAST_TOKENS = 32
"""No passage is cut shorter."""


class FileSearch:
    """Searches the vector stores of assistants and threads."""

    def __init__(self, searches: Searches, objects: ObjectStore, catalog: ModelCatalog, threads: TextThreads) -> None:
        self._searches = searches
        self._objects = objects
        self._catalog = catalog
        self._threads = threads

    async def find(
        self, project: str, run: Body, card_digest: str, searches: Sequence[Search], earlier: Sequence[Found]
    ) -> list[Found]:
        """Return what each search finds, as much of it as the context of the model has room for.

        Args:
            project: whose files they are.
            run: its tools say how to search.
            card_digest: the model that reads the results.
            searches: of one turn.
            earlier: what the run found before.

        Raises:
            ObjectRefused: a vector store is gone, expired, or was indexed with another model.
            NoEmbeddingWorker: nobody can embed the queries.
        """
        model = await self._catalog.version(card_digest)
        stores = await self._stores(project, run)
        known = [each.output for each in earlier]
        used = await self._threads.run(lambda: sum(_num_tokens(model, text) for text in known))
        room, found = model.card.context_length // _CONTEXT_SHARE - used, []
        for left, search in zip(range(len(searches), 0, -1), searches, strict=True):
            results = await self._results(project, run, stores, search)
            kept, used = await self._threads.run(
                lambda results=results, share=room // left: _within(model, results, share)  # type: ignore[misc]
            )
            room -= used
            nothing = "There is no room for more passages." if results else "Nothing was found."
            found.append(_found(run, search, kept, nothing))
        return found

    async def _stores(self, project: str, run: Body) -> list[str]:
        """Return the vector stores of assistant and thread; an assistant that was deleted has none."""
        objects, ids = self._objects.of(project), list[str]()
        for ref in (ASSISTANT.ref(run["assistant_id"]), THREAD.ref(run["thread_id"])):
            try:
                body = (await objects.get(ref)).body
            except ObjectNotFound:
                continue
            ids += ((body["tool_resources"] or {}).get(NAME) or {}).get("vector_store_ids") or []
        return list(dict.fromkeys(ids))

    async def _results(self, project: str, run: Body, stores: list[str], search: Search) -> list[SearchResult]:
        query = _query(search.arguments)
        if not (stores and query):
            return []
        options = _options(run)
        request = SearchRequest(
            [query],
            max_num_results=options.get("max_num_results") or DEFAULT_RESULTS,
            score_threshold=_ranking(options)["score_threshold"],
        )
        try:
            return await self._searches.search(project, stores, request, run["id"])
        except ObjectNotFound as error:
            raise ObjectRefused(f"The files cannot be searched: {error.message}") from error


def _query(arguments: str) -> str:
    """Return what a call looks for; empty if the model did not say so in the form that it was told."""
    try:
        values: Any = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return ""
    query = values.get("query") if isinstance(values, dict) else None
    return query.strip() if isinstance(query, str) else ""


def _options(run: Body) -> Body:
    tool = next(tool for tool in run["tools"] if tool["type"] == NAME)
    options: Body = tool.get(NAME) or {}
    return options


def _ranking(options: Body) -> Body:
    given = options.get("ranking_options") or {}
    return {"ranker": given.get("ranker") or DEFAULT_RANKER, "score_threshold": given.get("score_threshold") or 0.0}


def _found(run: Body, search: Search, results: Sequence[SearchResult], nothing: str) -> Found:
    marks = [mark(search.number, place) for place in range(len(results))]
    passages = (f"{each} {result.filename}\n{result.text}" for each, result in zip(marks, results, strict=True))
    shown = [{"file_id": each.file_id, "file_name": each.filename, "score": each.score} for each in results]
    return Found(
        search.arguments,
        {"ranking_options": _ranking(_options(run)), "results": shown},
        tuple(result.text for result in results),
        "\n\n".join(passages) or nothing,
        {each: result.file_id for each, result in zip(marks, results, strict=True)},
    )


def _within(model: ServedModel, results: Sequence[SearchResult], num_tokens: int) -> tuple[list[SearchResult], int]:
    """Return the best results as far as they have ``num_tokens`` together, and how many they have; CPU work."""
    kept, used = [], 0
    for result in results:
        ends = [end for _, end in model.tokenizer.raw.encode(result.text, add_special_tokens=False).offsets]
        room = min(len(ends), num_tokens - used)
        if room < min(len(ends), _LEAST_TOKENS):
            break
        kept.append(replace(result, text=result.text[: ends[room - 1]] if room < len(ends) else result.text))
        used += room
    return kept, used


def _num_tokens(model: ServedModel, text: str) -> int:
    return len(model.tokenizer.raw.encode(text, add_special_tokens=False).ids)
