"""The events of a run as server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson

from services.errors import TandemError
from services.gateway.apis.openai.service import OpenAIServices
from services.gateway.errors import body_of
from services.gateway.jobs.feed import JobKey
from services.gateway.runs.events import DONE, sse
from services.gateway.stream import EventStream

KEEP_ALIVE = b": keep-alive\n"
"""Without an empty line: where events have ids, openai-python reads a comment with one as an event without data."""


def run_stream(services: OpenAIServices, key: JobKey, after: int, *, stops_at_pause: bool) -> EventStream:
    """Return the events after number ``after``; the client's leaving does not end the run."""
    return EventStream(
        _chunks(services, key, after, stops_at_pause=stops_at_pause),
        silent_start_s=services.limits.keep_alive_s,
        keep_alive_s=services.limits.keep_alive_s,
        send_timeout_s=services.limits.send_timeout_s,
        last_words=last_words,
        keep_alive=KEEP_ALIVE,
    )


async def _chunks(
    services: OpenAIServices, key: JobKey, after: int, *, stops_at_pause: bool
) -> AsyncGenerator[bytes, None]:
    events = services.reader.events(key, after, stops_at_pause=stops_at_pause)
    async with aclosing(events) as entries:
        async for entry in entries:
            yield sse(entry)
    yield DONE


def last_words(error: TandemError) -> bytes:
    """Return the end of a stream that failed on the way; the run itself goes on."""
    return b"event: error\ndata: " + orjson.dumps(body_of(error)) + b"\n\n" + DONE
