from typing import Any

import pytest

from tests.gateway.twins import END_ID, MODEL, Script, World, events, tokens, world


async def complete(w: World, **changes: Any) -> Any:
    return await w.post("/v1/completions", {"model": MODEL, "prompt": "hello", **changes})


async def test_a_prompt_is_continued() -> None:
    async with world() as w:
        answer = (await complete(w)).json()

    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "Paris", "logprobs": None, "finish_reason": "stop"}]
    assert list(w.decode.requests[0].prompt_token_ids) == tokens("hello")
    assert w.decode.requests[0].sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hello", [tokens("hello")]),
        (["hello", "world"], [tokens("hello"), tokens("world")]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        ("<|im_start|>user", [[1, *tokens("user")]]),
        ("", [[END_ID]]),
        (None, [[END_ID]]),
    ],
)
async def test_prompts_have_four_forms(prompt: Any, expected: list[list[int]]) -> None:
    async with world() as w:
        response = await complete(w, prompt=prompt)

    assert response.status_code == 200
    assert [list(request.prompt_token_ids) for request in w.decode.requests] == expected
    assert response.json()["usage"]["prompt_tokens"] == sum(map(len, expected))


async def test_choices_are_numbered_prompt_by_prompt() -> None:
    async with world() as w:
        answer = (await complete(w, prompt=["hello", "world"], n=2)).json()

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [tuple(request.prompt_token_ids) == tuple(tokens("world")) for request in w.decode.requests] == [
        False,
        False,
        True,
        True,
    ]
    assert answer["usage"]["prompt_tokens"] == len(tokens("hello")) + len(tokens("world"))


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_puts_the_prompt_first(stream: bool) -> None:
    async with world() as w:
        response = await complete(w, echo=True, prompt=[tokens("hello ")], stream=stream)

    texts = (
        [chunk["choices"][0]["text"] for chunk in events(response)]
        if stream
        else [response.json()["choices"][0]["text"]]
    )
    assert "".join(texts) == "hello Paris"


async def test_a_stream_ends_with_an_empty_text_and_the_reason() -> None:
    async with world() as w:
        chunks = events(await complete(w, stream=True, stream_options={"include_usage": True}))

    assert [chunk["choices"][0]["text"] for chunk in chunks[:-1]] == ["Pa", "ris", ""]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_have_the_old_form(stream: bool) -> None:
    async with world() as w:
        w.decode.default = Script([*tokens("the Paris"), END_ID])
        response = await complete(w, logprobs=2, stream=stream)

    found = (
        [chunk["choices"][0]["logprobs"] for chunk in events(response)]
        if stream
        else [response.json()["choices"][0]["logprobs"]]
    )
    logprobs = [entry for entry in found if entry is not None]
    listed = [token for entry in logprobs for token in entry["tokens"]]
    offsets = [offset for entry in logprobs for offset in entry["text_offset"]]
    assert "".join(listed) == "the Paris"
    assert offsets == [len("".join(listed[:index])) for index in range(len(listed))]
    assert all(len(top) == 2 for entry in logprobs for top in entry["top_logprobs"])


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": 1, "echo": True}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"] * 129}, "n"),
        ({"prompt": "hello " * 600}, "prompt"),
    ],
)
async def test_what_cannot_be_done_is_said(changes: dict[str, Any], param: str) -> None:
    async with world() as w:
        response = await complete(w, **changes)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert w.decode.requests == []
