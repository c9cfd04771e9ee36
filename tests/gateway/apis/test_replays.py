"""A decode worker lost in the middle of a text: stop strings, deltas and log probabilities do not notice."""

import pytest

from services.errors import PeerGone
from tests.gateway.twins import END_ID, Script, events, member, tokens, world

TEXT = "the capital of France? Paris is the capital"
OUTPUT = [*tokens(TEXT), END_ID]
STOP = "? P"
MEMBERS = [member("d1"), member("d2")]


def straddling() -> range:
    """Return after how many tokens some of the stop string was said, or none, or all."""
    return range(len(tokens(TEXT[: TEXT.index(STOP)])) - 1, len(tokens(TEXT[: TEXT.index(STOP) + len(STOP)])) + 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fail_after", straddling())
async def test_a_stop_string_is_found_across_the_border(fail_after: int, stream: bool) -> None:
    async with world(members=MEMBERS) as w:
        w.decode.default = Script(OUTPUT)
        w.decode.first = [Script(OUTPUT, error=PeerGone("lost"), fail_after=fail_after)]
        response = await w.chat(stop=[STOP, "zzz"], stream=stream)
        num_calls = len(w.decode.requests)
    if stream:
        choices = [chunk["choices"][0] for chunk in events(response) if chunk["choices"]]
        text, reason = "".join(choice["delta"].get("content", "") for choice in choices), choices[-1]["finish_reason"]
    else:
        [choice] = response.json()["choices"]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == ("the capital of France", "stop")
    assert num_calls in (1, 2)


@pytest.mark.parametrize("fail_after", range(1, len(OUTPUT)))
async def test_text_and_log_probabilities_are_those_of_an_undisturbed_answer(fail_after: int) -> None:
    async with world(members=MEMBERS) as w:
        w.decode.default = Script(OUTPUT)
        undisturbed = (await w.chat(logprobs=True, top_logprobs=2)).json()["choices"]
        w.decode.first = [Script(OUTPUT, error=PeerGone("lost"), fail_after=fail_after)]
        disturbed = await w.chat(logprobs=True, top_logprobs=2)
        resumed = [len(request.resumed_output_token_ids) for request in w.decode.requests]
    assert disturbed.json()["choices"] == undisturbed
    assert disturbed.json()["usage"]["tandem"]["replays"] == 1
    assert resumed == [0, 0, fail_after]
