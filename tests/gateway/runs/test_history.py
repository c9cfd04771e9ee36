"""What of a thread is read for a run."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.cluster.embedded_redis import EmbeddedRedis
from services.gateway.redis_state import RedisState
from services.gateway.runs.history import read_history, said_in
from services.gateway.runs.tails import TailReader
from services.gateway.store.changes import Create
from services.gateway.store.kinds import MESSAGE, RUN, THREAD
from services.gateway.store.object_store import Objects, ObjectStore
from services.gateway.store.records import Query
from tests.gateway.apis.stored import stored_world
from tests.gateway.runs.client import Caller
from tests.gateway.runs.fake_turns import FakeTurns, text
from tests.gateway.twins import card

THREAD_REF, RUN_REF = THREAD.ref("thread_1"), RUN.ref("run_1")


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[Objects]:
    async with EmbeddedRedis(tmp_path) as server:
        state = RedisState(server.url, 30.0)
        yield ObjectStore(state).of("team")
        await state.close()


def message(number: int, words: str) -> Create:
    content = [{"type": "text", "text": {"value": words, "annotations": []}}]
    return Create(MESSAGE.ref(f"msg_{number}"), {"role": "user", "run_id": None, "content": content}, THREAD_REF)


async def test_many_short_messages_are_not_read_to_their_beginning(objects: Objects) -> None:
    messages = [message(number, "ok") for number in range(300)]
    await objects.apply([Create(THREAD_REF, {}), Create(RUN_REF, {}, THREAD_REF), *messages])

    entries = await read_history(objects, RUN_REF, THREAD_REF, lambda item: None, max_characters=4000)
    assert [entry.message_id for entry in entries] == [f"msg_{number}" for number in range(182, 300)]


@pytest.mark.parametrize(("num_messages", "num_read", "is_cut"), [(3, 3, False), (4, 4, False), (5, 4, True)])
async def test_no_more_is_held_than_has_room(objects: Objects, num_messages: int, num_read: int, is_cut: bool) -> None:
    messages = [message(number, "x" * 968) for number in range(num_messages)]
    await objects.apply([Create(THREAD_REF, {}), *messages])
    reader = TailReader(objects, max_characters=3999)
    records = await reader.read(Query(MESSAGE, THREAD_REF, limit=100, with_private=True), said_in)

    assert [record.ref.id for record in records] == [each.ref.id for each in messages[-num_read:]]
    assert reader.is_cut == is_cut


async def test_a_run_reads_what_its_model_has_room_for(tmp_path: Path) -> None:
    turns = FakeTurns(text("Paris."))
    async with stored_world(tmp_path, model=card(context_length=64), turns=lambda services: turns) as w:
        caller = Caller(w)
        thread = await caller.thread(*(f"{number}" * 100 for number in range(10)))
        await caller.stream(thread, await caller.assistant())
        [model] = w.gateway.catalog._loaded.values()

    num_read = model.tokenizer.max_characters // 132 + 1
    said = [entry.messages[0]["content"] for entry in turns.requests[0].history]
    assert num_read < 10 and said == [f"{number}" * 100 for number in range(10 - num_read, 10)]
