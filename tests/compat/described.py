"""OpenAI's own description of the API against a gateway: no 5xx, and each answer is as described.

Run by ``python -m tests.compat description`` in a virtual environment with schemathesis. Before each request the store
holds what ``seeds.py`` returns, and most requests name these objects. ``exceptions.txt`` lists where the gateway and
the description differ, each with a reason; an answer of 5xx has no exception.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from gw_seed import expected_failures, seed
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.core.failures import Failure, FailureGroup, ServerError
from schemathesis.specs.openapi import checks as openapi

HERE = Path(__file__).parent
BASE_URL = os.environ["TEST_API_BASE_URL"]
HEADERS = {"Authorization": "Bearer My API Key"}
TIMEOUT_S = 60.0
MAX_EXAMPLES = 40
"""Requests of each operation that are drawn, the same ones in each run."""
SEEDED: Mapping[str, Any] = {
    "assistant_id": "assistant_id",
    "batch_id": "batch_id",
    "conversation": "conv_123",
    "conversation_id": "conv_123",
    "file_id": "file_id",
    "file_ids": ["file_id"],
    "item_id": "msg_abc",
    "message_id": "message_id",
    "previous_response_id": "response_id",
    "response_id": "response_id",
    "run_id": "run_id",
    "step_id": "step_id",
    "thread_id": "thread_id",
    "upload_id": "upload_abc123",
    "vector_store_id": "vector_store_id",
    "vector_store_ids": ["vector_store_id"],
}
"""Parameters and fields, and the objects of ``seeds.py`` that are put into them."""
TEXTS: Mapping[str, Any] = {"query": "hello", "input": ["hello"]}
"""Fields that may not be empty, though the description says nothing of it."""
CHAT_MODEL = "gpt-4.1"
PLAIN: Mapping[str, Any] = {
    "input": "hello",
    "previous_response_id": None,
    "prompt": None,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
}
"""Fields of a response that most often contradict each other or name what only OpenAI has."""
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "/embeddings": {"model": "text-embedding-3-small"},
    "/responses": PLAIN,
    "/responses/compact": PLAIN,
    "/responses/input_tokens": PLAIN,
}
"""Fields of single operations."""

CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_headers_conformance,
    openapi.response_schema_conformance,
]

description = json.loads((HERE / "openapi.json").read_text(encoding="utf-8"))
schema = schemathesis.openapi.from_dict(description)
answered: defaultdict[str, Counter[int]] = defaultdict(Counter)
"""How often each operation answered with each status."""
exceptions = expected_failures(HERE / "exceptions.txt")
needed: set[str] = set()
"""Patterns of the exceptions that fitted something."""


@schema.parametrize()
@schema.given(known=st.sampled_from(({}, SEEDED, {**SEEDED, **TEXTS})))
@settings(
    max_examples=MAX_EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_answers_as_described(case: Case, known: Mapping[str, Any]) -> None:
    operation = f"{case.method} {case.path}"
    seed(operation)
    if known:
        _name_what_exists(case, known)
    response = case.call(base_url=BASE_URL, headers=HEADERS, timeout=TIMEOUT_S)
    answered[operation][response.status_code] += 1
    try:
        case.validate_response(response, checks=CHECKS)
    except FailureGroup as group:
        unexpected = [failure for failure in _failures(group) if not _is_known(operation, failure)]
        if unexpected:
            raise FailureGroup(unexpected) from None


@pytest.mark.parametrize(
    ("path", "body", "events"),
    [
        (
            "/chat/completions",
            {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "hello"}]},
            "CreateChatCompletionStreamResponse",
        ),
        ("/threads/runs", {"assistant_id": "assistant_id"}, "AssistantStreamEvent"),
        ("/threads/thread_id/runs", {"assistant_id": "assistant_id"}, "AssistantStreamEvent"),
        (
            "/threads/thread_id/runs/run_id/submit_tool_outputs",
            {"tool_outputs": [{"tool_call_id": "call_1", "output": "rain"}]},
            "AssistantStreamEvent",
        ),
        ("/responses", {"model": CHAT_MODEL, "input": "hello"}, "ResponseStreamEvent"),
    ],
)
def test_streams_as_described(path: str, body: dict[str, Any], events: str) -> None:
    validator = jsonschema_rs.validator_for(
        {"$ref": f"#/components/schemas/{events}", "components": description["components"]}
    )
    seed(path)
    with httpx.stream(
        "POST", f"{BASE_URL}{path}", json={**body, "stream": True}, headers=HEADERS, timeout=TIMEOUT_S
    ) as response:
        seen = list(_events(response, is_named=events == "AssistantStreamEvent"))
    assert len(seen) > 3
    problems = [(event, str(problem)) for event in seen for problem in validator.iter_errors(event)]
    assert problems == []


def _events(response: httpx.Response, *, is_named: bool) -> Iterator[Any]:
    """Yield what the description calls an event: the data, or if named {"event": name, "data": data}."""
    assert response.status_code == 200, response.read()
    assert response.headers["content-type"].startswith("text/event-stream")
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data" and value != "[DONE]":
            yield {"event": name, "data": json.loads(value)} if is_named else json.loads(value)


def test_every_exception_is_needed() -> None:
    assert [each.pattern for each in exceptions if each.pattern not in needed] == []


def test_every_operation_succeeded_at_least_once() -> None:
    assert {operation: dict(statuses) for operation, statuses in answered.items() if statuses[200] == 0} == {}


def _is_known(operation: str, failure: Failure) -> bool:
    if isinstance(failure, ServerError):
        return False
    text = f"{operation}: {' '.join(f'{failure.title}: {failure.message}'.split())}"
    fitting = {each.pattern for each in exceptions if each.fits(text)}
    needed.update(fitting)
    return bool(fitting)


def _failures(group: FailureGroup) -> Iterator[Failure]:
    for failure in group.exceptions:
        yield from _failures(failure) if isinstance(failure, FailureGroup) else [failure]


def _name_what_exists(case: Case, known: Mapping[str, Any]) -> None:
    """Put known objects wherever the request names one."""
    known = {"model": CHAT_MODEL, **known, **FIELDS.get(case.path, {})}
    case.path_parameters = {name: known.get(name, value) for name, value in (case.path_parameters or {}).items()}
    if isinstance(case.body, dict):
        case.body = {name: known.get(name, value) for name, value in case.body.items()}
