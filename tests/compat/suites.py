"""The suites that ``make compat`` runs."""

from pathlib import Path

from tests.compat.cluster import compat_cluster, real_cluster
from tests.compat.suite import Suite

HERE = Path(__file__).parent
_OPENAI = "openai==3.54.0"
_PYTEST = ("pytest==9.1.1", "pytest-timeout==2.4.0")

SDK = Suite(
    "sdk",
    requirements=(
        _OPENAI,
        *_PYTEST,
        "pytest-asyncio==1.5.0",
        "pytest-xdist==3.8.0",
        "rich>=13.7.1",
        "inline-snapshot>=0.28",
        "aiohttp>=3.13,<4",
        "httpx>=0.28,<1",
    ),
    files=(
        "tests/api_resources/beta/test_assistants.py",
        "tests/api_resources/beta/test_threads.py",
        "tests/api_resources/beta/threads/test_messages.py",
        "tests/api_resources/beta/threads/test_runs.py",
        "tests/api_resources/beta/threads/runs/test_steps.py",
        "tests/api_resources/test_models.py",
        "tests/api_resources/test_files.py",
        "tests/api_resources/test_uploads.py",
        "tests/api_resources/uploads/test_parts.py",
        "tests/api_resources/test_vector_stores.py",
        "tests/api_resources/vector_stores/test_files.py",
        "tests/api_resources/vector_stores/test_file_batches.py",
        "tests/api_resources/test_embeddings.py",
        "tests/api_resources/test_responses.py",
        "tests/api_resources/responses/test_input_items.py",
        "tests/api_resources/responses/test_input_tokens.py",
        "tests/api_resources/test_conversations.py",
        "tests/api_resources/conversations/test_items.py",
    ),
    expected=HERE / "expected_sdk.txt",
    cluster=compat_cluster,
    options=("-n", "0", "--timeout", "60"),
    source=_OPENAI,
)
"""The official SDK's own tests, unmodified; an API that is served adds its files."""

DESCRIPTION = Suite(
    "description",
    requirements=(*_PYTEST, "schemathesis==4.32.5", "httpx>=0.28,<1"),
    files=("described.py",),
    expected=HERE / "expected_description.txt",
    cluster=compat_cluster,
    options=("--timeout", "120"),
)
"""OpenAI's description of the API, by schemathesis."""

LANGCHAIN = Suite(
    "langchain",
    requirements=("langchain-tests==1.1.9", "langchain-openai==1.7.4", "pytest-timeout==2.4.0"),
    files=("langchain_chat.py",),
    expected=HERE / "expected_langchain.txt",
    cluster=real_cluster,
    options=(
        *("-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session"),
        *("-o", "asyncio_default_fixture_loop_scope=session", "--timeout", "120"),
    ),
)
"""LangChain's standard tests of chat models, with a real model; its clients share connections over all tests."""

SUITES = (SDK, DESCRIPTION, LANGCHAIN)
