"""The events of a run as server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson

from services.errors import TandemError
from services.gateway.apis.openai.assistants.found_content import entry_with_content
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.jobs.events import LogEntry
from services.gateway.jobs.feed import JobKey
from services.gateway.runs.events import DONE, sse
from services.gateway.store.kinds import Ref
from services.gateway.store.object_store import Objects
from services.gateway.web.errors import body_of
from services.gateway.web.stream import EventStream

KEEP_ALIVE = b": keep-alive\n"
"""Without an empty line: where events have ids, openai-python reads a comment with one as an event without data."""


def run_stream(
    services: OpenAIServices, key: JobKey, after: int, *, stops_at_pause: bool, with_content: bool
) -> EventStream:
    """Return the events after number ``after``; the client's leaving does not end the run.

    With ``with_content`` steps show the text that searches of files found.
    """
    entries = services.reader.events(key, after, stops_at_pause=stops_at_pause)
    return EventStream(
        _chunks(_with_content(services.objects.of(key[0]), key[1], entries) if with_content else entries),
        silent_start_s=services.limits.keep_alive_s,
        keep_alive_s=services.limits.keep_alive_s,
        send_timeout_s=services.limits.send_timeout_s,
        last_words=last_words,
        keep_alive=KEEP_ALIVE,
    )


async def _chunks(events: AsyncGenerator[LogEntry, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events) as entries:
        async for entry in entries:
            yield sse(entry)
    yield DONE


async def _with_content(
    objects: Objects, run: Ref, events: AsyncGenerator[LogEntry, None]
) -> AsyncGenerator[LogEntry, None]:
    async with aclosing(events) as entries:
        async for entry in entries:
            yield await entry_with_content(objects, run, entry)


def last_words(error: TandemError) -> bytes:
    """Return the end of a stream that failed on the way; the run itself goes on."""
    return b"event: error\ndata: " + orjson.dumps(body_of(error)) + b"\n\n" + DONE
