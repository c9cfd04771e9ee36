"""Makes the searches of files that models ask for in runs and responses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from services.errors import ObjectNotFound, ObjectRefused
from services.gateway.models import ModelCatalog, ServedModel
from services.gateway.runs.citations import mark
from services.gateway.runs.lifecycle import Body
from services.gateway.runs.search_calls import NAME, Found, Search
from services.gateway.search.filters import Filter
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


@dataclass(frozen=True)
class SearchScope:
    """Where and how a run or a response searches."""

    requester: str
    """Its id."""
    stores: Sequence[str]
    """Ids of vector stores."""
    options: Body
    """``max_num_results`` and ``ranking_options``, as far as they are given."""
    filter: Filter | None = None
    """Which files are searched."""
    wait_until_s: float = 0.0
    """How long to wait for files that are still being indexed: seconds since the Unix epoch."""


class FileSearch:
    """Searches vector stores."""

    def __init__(
        self,
        searches: Searches,
        objects: ObjectStore,
        catalog: ModelCatalog,
        threads: TextThreads,
        *,
        indexing_wait_s: float,
    ) -> None:
        """``indexing_wait_s`` is how long after its beginning a run waits for files that are being indexed."""
        self._searches = searches
        self._objects = objects
        self._catalog = catalog
        self._threads = threads
        self._indexing_wait_s = indexing_wait_s

    async def find(
        self, project: str, scope: SearchScope, card_digest: str, searches: Sequence[Search], earlier: Sequence[Found]
    ) -> list[Found]:
        """Return what each search finds, as much of it as the context of the model has room for.

        Args:
            project: whose files they are.
            scope: where and how to search.
            card_digest: the model that reads the results.
            searches: of one turn.
            earlier: what the run or response found before.

        Raises:
            ObjectRefused: a vector store is gone, expired, or was indexed with another model.
            NoEmbeddingWorker: nobody can embed the queries.
        """
        model = await self._catalog.version(card_digest)
        await self._searches.wait_for_indexing(project, scope.stores, scope.wait_until_s)
        known = [each.output for each in earlier]
        used = await self._threads.run(lambda: sum(_num_tokens(model, text) for text in known))
        room, found = model.card.context_length // _CONTEXT_SHARE - used, []
        for left, search in zip(range(len(searches), 0, -1), searches, strict=True):
            results = await self._results(project, scope, search)
            kept, used = await self._threads.run(
                lambda results=results, share=room // left: _within(model, results, share)  # type: ignore[misc]
            )
            room -= used
            nothing = "There is no room for more passages." if results else "Nothing was found."
            found.append(_found(scope, search, kept, nothing))
        return found

    async def scope_of(self, project: str, run: Body) -> SearchScope:
        """Return where a run searches: the stores of assistant and thread; an assistant that was deleted has none."""
        objects, ids = self._objects.of(project), list[str]()
        for ref in (ASSISTANT.ref(run["assistant_id"]), THREAD.ref(run["thread_id"])):
            try:
                body = (await objects.get(ref)).body
            except ObjectNotFound:
                continue
            ids += ((body["tool_resources"] or {}).get(NAME) or {}).get("vector_store_ids") or []
        tool = next(tool for tool in run["tools"] if tool["type"] == NAME)
        wait_until_s = min(run["started_at"] + self._indexing_wait_s, run["expires_at"])
        return SearchScope(run["id"], list(dict.fromkeys(ids)), tool.get(NAME) or {}, wait_until_s=wait_until_s)

    async def _results(self, project: str, scope: SearchScope, search: Search) -> list[SearchResult]:
        query = query_of(search.arguments)
        if not (scope.stores and query):
            return []
        request = SearchRequest(
            [query],
            max_num_results=scope.options.get("max_num_results") or DEFAULT_RESULTS,
            score_threshold=_ranking(scope.options)["score_threshold"],
            filter=scope.filter,
        )
        try:
            return await self._searches.search(project, list(scope.stores), request, scope.requester)
        except ObjectNotFound as error:
            raise ObjectRefused(f"The files cannot be searched: {error.message}") from error


def query_of(arguments: str) -> str:
    """Return what a call looks for; empty if the model did not say so in the form that it was told."""
    try:
        values: Any = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return ""
    query = values.get("query") if isinstance(values, dict) else None
    return query.strip() if isinstance(query, str) else ""


def _ranking(options: Body) -> Body:
    given = options.get("ranking_options") or {}
    return {"ranker": given.get("ranker") or DEFAULT_RANKER, "score_threshold": given.get("score_threshold") or 0.0}


def _found(scope: SearchScope, search: Search, results: Sequence[SearchResult], nothing: str) -> Found:
    marks = [mark(search.number, place) for place in range(len(results))]
    passages = (f"{each} {result.filename}\n{result.text}" for each, result in zip(marks, results, strict=True))
    shown = [{"file_id": each.file_id, "file_name": each.filename, "score": each.score} for each in results]
    return Found(
        search.arguments,
        {"ranking_options": _ranking(scope.options), "results": shown},
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
