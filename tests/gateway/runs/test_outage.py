"""Redis goes away in the middle of a run and comes back."""

from pathlib import Path

from tests.gateway.apis.stored import refusal
from tests.gateway.runs.client import names, seen, text_of
from tests.gateway.runs.live import live
from tests.gateway.runs.pair import LONG, long_answer, pair, until_hanging


async def test_a_run_goes_on_when_redis_is_back(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        both.first.decode.first = [long_answer(hang_after=10)]
        thread, assistant = await both.a.thread(), await both.a.assistant()
        path = f"/v1/threads/{thread}/runs"
        async with live(both.first, "POST", path, assistant_id=assistant, stream=True) as stream:
            await until_hanging(both.first, 10)
            await both.redis.stop()
            refused = [
                refusal(await both.second.client.get(path)),
                refusal(await both.second.post(path, {"assistant_id": assistant})),
            ]
            both.first.decode.release.set()
            await both.redis.start()
            await stream.until("[DONE]")
        events = seen(stream.text)
        run = events[-1].data["id"]
        log = await both.b.events(thread, run)

    assert [(status, error["code"]) for status, error in refused] == [(503, "state_unavailable")] * 2
    assert events == log
    assert (names(log)[-1], text_of(log)) == ("run.completed", LONG)
    assert [event.number for event in log] == list(range(1, len(log) + 1))
    assert len(both.first.decode.requests) == 1
