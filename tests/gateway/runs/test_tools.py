"""Functions: the run waits for their outputs and goes on with them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.gateway.jobs.storage import ProjectJobs
from services.gateway.runs.turns import TurnEnded
from services.gateway.store.kinds import RUN
from tests.gateway.apis.stored import refusal
from tests.gateway.runs.client import Seen, names, seen, text_of
from tests.gateway.runs.fake_turns import FakeTurns, calls, text, written
from tests.gateway.runs.pair import Pair, pair, until_written

WEATHER = [("weather", '{"city": "Paris"}'), ("time", "{}")]
TOOLS = [{"type": "function", "function": {"name": "weather"}}]
ASKED = [
    *("run.created", "run.queued", "run.in_progress", "run.step.created", "run.step.in_progress"),
    *("run.step.delta", "run.requires_action"),
]
ANSWERED = [
    *("run.step.completed", "run.queued", "run.in_progress", "run.step.created", "run.step.in_progress"),
    *("message.created", "message.in_progress", "message.delta", "message.completed"),
    *("run.step.completed", "run.completed"),
]


def together(events: list[Seen]) -> list[str]:
    told = names(events)
    return [name for place, name in enumerate(told) if not name.endswith("delta") or told[place - 1] != name]


def called(events: list[Seen]) -> list[dict[str, Any]]:
    """The calls that clients put together from the deltas, as the SDKs do: texts are joined, ids too."""
    found: list[dict[str, Any]] = []
    for event in events:
        if event.name == "thread.run.step.delta":
            for part in event.data["delta"]["step_details"]["tool_calls"]:
                if part["index"] == len(found):
                    found.append({"id": "", "name": "", "arguments": ""})
                call, function = found[part["index"]], part["function"]
                call["id"] += part.get("id", "")
                call["name"] += function.get("name", "")
                call["arguments"] += function["arguments"]
    return found


async def asked(both: Pair) -> tuple[str, str, list[Seen], list[str]]:
    """Thread, run, events and call ids of a run that waits for outputs."""
    thread = await both.a.thread()
    events = await both.a.stream(thread, await both.a.assistant(tools=TOOLS))
    run = events[-1].data
    waiting = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    return thread, run["id"], events, [call["id"] for call in waiting]


def outputs(ids: list[str]) -> list[dict[str, str]]:
    return [{"tool_call_id": call_id, "output": f"output {place}"} for place, call_id in enumerate(ids)]


async def test_a_run_with_calls_streams_exactly_these_events(tmp_path: Path) -> None:
    turns = FakeTurns(calls(*WEATHER), text("Sun", "ny."))
    async with pair(tmp_path, turns=lambda services: turns) as both:
        thread, run, first, ids = await asked(both)
        path = f"/v1/threads/{thread}/runs/{run}/submit_tool_outputs"
        second = seen(await both.second.post(path, {"tool_outputs": outputs(ids), "stream": True}))
        whole = await both.a.events(thread, run)
        steps = (await both.a.get(f"/v1/threads/{thread}/runs/{run}/steps", order="asc"))["data"]

    assert together(first) == ASKED
    assert [(call["name"], call["arguments"]) for call in called(first)] == WEATHER
    assert [call["id"] for call in called(first)] == ids
    assert first[-1].data["usage"]["completion_tokens"] == 7
    assert together(second) == ANSWERED
    assert text_of(second) == "Sunny."
    assert whole == [*first, *second]
    assert [step["type"] for step in steps] == ["tool_calls", "message_creation"]
    functions = [call["function"] for call in steps[0]["step_details"]["tool_calls"]]
    assert [function["output"] for function in functions] == ["output 0", "output 1"]
    assert (steps[0]["usage"]["completion_tokens"], steps[1]["usage"]["completion_tokens"]) == (7, 3)
    usage = second[-1].data["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (6, 10, 16)


async def test_the_next_turn_reads_calls_and_outputs(tmp_path: Path) -> None:
    turns = FakeTurns(calls(*WEATHER, before="Wait."), text("Sunny."), text("Bye."))
    async with pair(tmp_path, turns=lambda services: turns) as both:
        thread, run, _, ids = await asked(both)
        path = f"/v1/threads/{thread}/runs/{run}/submit_tool_outputs"
        await both.b.post(path, tool_outputs=outputs(ids)[::-1])
        await both.b.settled(thread, run)
        await both.a.post(f"/v1/threads/{thread}/messages", role="user", content="And now?")
        await both.a.stream(thread, await both.a.assistant())
        listed = await both.a.texts(thread)

    own = turns.requests[1].history[-1].messages
    assert [message["role"] for message in own] == ["assistant", "tool", "tool"]
    assert [message["content"] for message in own] == ["Wait.", "output 0", "output 1"]
    assert [call["function"]["name"] for call in own[0]["tool_calls"]] == ["weather", "time"]
    later = [message for entry in turns.requests[2].history for message in entry.messages]
    assert [message["role"] for message in later] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert later[1:4] == list(own)
    assert [text for _, text in listed] == ["hello", "Wait.", "Sunny.", "And now?", "Bye."]


async def test_outputs_are_taken_for_all_calls_at_once(tmp_path: Path) -> None:
    turns = FakeTurns(calls(*WEATHER), text("Sunny."))
    async with pair(tmp_path, turns=lambda services: turns) as both:
        thread, run, _, ids = await asked(both)
        path = f"/v1/threads/{thread}/runs/{run}/submit_tool_outputs"
        one = refusal(await both.first.post(path, {"tool_outputs": outputs(ids[:1])}))
        missing = refusal(await both.first.post(path, {"tool_outputs": [{"output": "x"}]}))
        active = refusal(await both.first.post(f"/v1/threads/{thread}/messages", {"role": "user", "content": "x"}))
        await both.a.post(path, tool_outputs=outputs(ids))
        await both.a.settled(thread, run)
        again = refusal(await both.first.post(path, {"tool_outputs": outputs(ids)}))

    expected = f"Expected tool outputs for call_ids ['{ids[0]}','{ids[1]}'], got ['{ids[0]}']"
    assert (one[0], one[1]["message"], one[1]["code"]) == (400, expected, None)
    assert (missing[0], missing[1]["param"]) == (400, "tool_outputs[0].tool_call_id")
    assert active[1]["message"] == f"Can't add messages to {thread} while a run {run} is active."
    assert again[1]["message"] == 'Runs in status "completed" do not accept tool outputs.'


async def test_two_submissions_at_once_continue_the_run_once(tmp_path: Path) -> None:
    turns = FakeTurns(calls(*WEATHER), text("Sunny."))
    async with pair(tmp_path, turns=lambda services: turns) as both:
        thread, run, _, ids = await asked(both)
        path, body = f"/v1/threads/{thread}/runs/{run}/submit_tool_outputs", {"tool_outputs": outputs(ids)}
        replies = await asyncio.gather(*(w.post(path, body) for w in (both.first, both.second) * 5))
        ended = await both.a.settled(thread, run, "completed", "failed")
        events = await both.a.events(thread, run)

    assert sorted({reply.status_code for reply in replies}) == [200, 400]
    assert sum(reply.status_code == 200 for reply in replies) == 1
    assert ended["status"] == "completed"
    assert together(events) == [*ASKED, *ANSWERED]


@pytest.mark.parametrize("reading", [ProjectJobs.state, ProjectJobs.read], ids=["state", "log"])
async def test_a_submission_that_is_overtaken_while_its_run_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: Callable[..., Awaitable[Any]]
) -> None:
    turns = FakeTurns(calls(*WEATHER), text("Sunny."))
    async with pair(tmp_path, turns=lambda services: turns) as both:
        thread, run, _, ids = await asked(both)
        path, body = f"/v1/threads/{thread}/runs/{run}/submit_tool_outputs", {"tool_outputs": outputs(ids)}
        faster: list[httpx.Response] = []

        async def overtaken(*arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(ProjectJobs, reading.__name__, reading)
            faster.append(await both.second.post(path, body))
            return await reading(*arguments, **options)

        monkeypatch.setattr(ProjectJobs, reading.__name__, overtaken)
        slower = refusal(await both.first.post(path, body))
        ended = await both.a.settled(thread, run, "completed", "failed")

    assert [reply.status_code for reply in faster] == [200]
    assert (slower[0], slower[1]["message"]) == (400, 'Runs in status "queued" do not accept tool outputs.')
    assert ended["status"] == "completed"


async def test_a_waiting_run_belongs_to_nobody_and_expires_anywhere(tmp_path: Path) -> None:
    turns = FakeTurns(calls(*WEATHER))
    async with pair(tmp_path, turns=lambda services: turns) as both:
        thread, run, _, _ = await asked(both)
        assert both.first.gateway.jobs.held() == {}
        both.clock.advance(598)
        await both.second.gateway.sweeper.sweep()
        waiting = await both.a.get(f"/v1/threads/{thread}/runs/{run}")
        both.clock.advance(3)
        await both.second.gateway.sweeper.sweep()
        expired = await both.a.settled(thread, run, "expired")
        events = await both.a.events(thread, run)
        [step] = (await both.a.get(f"/v1/threads/{thread}/runs/{run}/steps"))["data"]
        await both.a.post(f"/v1/threads/{thread}/messages", role="user", content="free again")

    assert waiting["status"] == "requires_action"
    assert (expired["required_action"], expired["expires_at"]) == (None, None)
    assert names(events)[-2:] == ["run.step.expired", "run.expired"]
    assert step["status"] == "expired"
    assert [call["function"]["output"] for call in step["step_details"]["tool_calls"]] == [None, None]


@pytest.mark.parametrize("after", [0, 1, 2, 4, 6])
async def test_calls_go_on_where_another_gateway_left_them(tmp_path: Path, after: int) -> None:
    first, second = FakeTurns(calls(*WEATHER)), FakeTurns(calls(*WEATHER))
    first.hangs_after = after
    handed = iter((first, second))
    async with pair(tmp_path, turns=lambda services: next(handed)) as both:
        thread = await both.a.thread()
        run = (await both.a.run(thread, await both.a.assistant(tools=TOOLS)))["id"]
        await until_written(first, both.first, after)
        await both.first.gateway.jobs.close()
        await both.lapse()
        ended = await both.b.settled(thread, run)
        events = await both.b.events(thread, run)

    assert (ended["status"], together(events)) == ("requires_action", ASKED)
    assert second.known == [[20, 21, 22, 20, 21, 22][:after]]
    assert [(call["name"], call["arguments"]) for call in called(events)] == WEATHER
    waiting = ended["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert [call["id"] for call in called(events)] == [call["id"] for call in waiting]


async def test_tokens_that_show_nothing_are_in_the_log_too(tmp_path: Path) -> None:
    turns = FakeTurns([written("a", 1), written("", 2), written("b", 3), TurnEnded("stop", (4,))])
    turns.fails_after = 2
    async with pair(tmp_path, turns=lambda services: turns) as both:
        thread = await both.a.thread()
        events = await both.a.stream(thread, await both.a.assistant())
        jobs = both.first.gateway.jobs._storage.of("default")
        log = await jobs.read(RUN.ref(events[-1].data["id"]), 0)

    assert turns.known == [[], [1, 2]]
    assert text_of(events) == "ab"
    assert [token_id for entry in log for token_id in entry.token_ids] == [1, 2, 3]
