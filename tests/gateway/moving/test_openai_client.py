"""What the official client downloads, written as docs/moving.md says, is what comes back."""

import warnings
from collections.abc import Iterator

import openai
import pytest

from tests.gateway.apis.test_openai_client import client_of
from tests.gateway.moving.moving import imported
from tests.gateway.runs.client import Caller
from tests.gateway.search.searching import Library


@pytest.fixture(autouse=True)
def _deprecated() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


async def downloaded(client: openai.AsyncOpenAI, thread: str) -> list[str]:
    """A line for each assistant, a thread, and each of its messages and runs."""
    threads = client.beta.threads
    lines = [each.to_json(indent=None) async for each in client.beta.assistants.list(order="asc")]
    lines.append((await threads.retrieve(thread)).to_json(indent=None))
    lines += [each.to_json(indent=None) async for each in threads.messages.list(thread, order="asc")]
    return lines + [each.to_json(indent=None) async for each in threads.runs.list(thread, order="asc")]


async def test_what_the_client_downloads_is_imported(lib: Library) -> None:
    caller = Caller(lib.w)
    tutor = await caller.assistant(name="Tutor", tools=[{"type": "code_interpreter"}], metadata={"a": "1"})
    thread = await caller.thread("hello", "world")
    await caller.stream(thread, await caller.assistant())
    async with client_of(lib.w) as client:
        lines = await downloaded(client, thread)
        for path in (f"/v1/assistants/{tutor}", f"/v1/threads/{thread}"):
            assert (await lib.w.client.delete(path)).status_code == 200
        restored = await imported(lib.w, "\n".join(lines).encode())
        again = await downloaded(client, thread)

    assert restored.made == {"assistant": 1, "thread": 1, "thread.message": 3, "thread.run": 1}
    assert restored.present == {"assistant": 1}
    assert [tutor in line for line in lines[:2]] == [True, False]
    assert [tutor in line for line in again[:2]] == [False, True]  # made last
    assert (sorted(again[:2]), again[2:]) == (sorted(lines[:2]), lines[2:])
