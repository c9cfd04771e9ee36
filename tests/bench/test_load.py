import json

import pytest

from bench.load import Answer


def answer(recorded: str) -> Answer:
    return Answer(stamps=[2.5], total=3.0, usage=json.loads(recorded))


@pytest.mark.parametrize(
    ("recorded", "wait_ms"),
    [
        ('{"tandem": {"path": "pd", "timings_ms": {"prefill": 2418.8, "transfer": 8.348}}}', 8.348),
        ('{"tandem": {"path": "local", "timings_ms": {"decode_queue": 205.7}}}', None),
        ('{"prompt_tokens": 7}', None),
    ],
)
def test_an_answer_says_how_long_it_waited_for_kv(recorded: str, wait_ms: float | None) -> None:
    assert answer(recorded).kv_wait_ms == wait_ms
