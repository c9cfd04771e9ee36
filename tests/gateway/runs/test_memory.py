"""A thread keeps its token ids: the next prompt begins with the last one and its answer, token by token."""

from typing import Any

import pytest

from services.rpc import tandem_pb2 as pb
from tests.gateway.runs.client import Caller
from tests.gateway.twins import END_ID, Script, World, proof, tokens

SPELLED = [token_id for character in "Paris is the capital" for token_id in tokens(character)]


async def second_turn(w: World, monkeypatch: pytest.MonkeyPatch, **told: Any) -> tuple[list[pb.GenerateRequest], Any]:
    """What the workers were asked in two turns, and the usage of the second, of which they told so much."""
    monkeypatch.setattr("tests.gateway.twins.proof", lambda *args, **rest: proof(*args, **{**rest, **told}))
    w.decode.default = Script([*SPELLED, END_ID])
    caller = Caller(w)
    thread, assistant = await caller.thread("What is the capital of France?"), await caller.assistant()
    await caller.stream(thread, assistant)
    await caller.post(f"/v1/threads/{thread}/messages", role="user", content="hello again")
    run = (await caller.stream(thread, assistant))[-1].data
    return w.decode.requests, run["usage"]


async def test_the_next_prompt_begins_with_the_ids_of_the_last_answer(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, second), usage = await second_turn(w, monkeypatch, cached_tokens=32)
    known = [*first.prompt_token_ids, *SPELLED]

    assert list(second.prompt_token_ids)[: len(known)] == known
    assert list(second.prompt_token_ids) != known
    assert usage["prompt_tokens"] == len(second.prompt_token_ids)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 32}


@pytest.mark.parametrize(("cached", "found"), [(0, "expired"), (16, "partial"), (32, "hit")])
async def test_usage_tells_what_was_found_of_the_thread(
    w: World, monkeypatch: pytest.MonkeyPatch, cached: int, found: str
) -> None:
    (first, _), usage = await second_turn(w, monkeypatch, cached_tokens=cached)

    assert (len(first.prompt_token_ids) + len(SPELLED)) // 16 * 16 == 32
    assert usage["thread_kv"] == found
