from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from services.engine.weights.sources import DEFAULT_MODEL, ModelFolder, resolve_model
from tests.e2e.harness import CACHE_DIR, Cluster, Pair

MAX_STEP_TOKENS = 256
"""Prompt tokens of one step in the session's clusters: prompts of some hundred tokens have several chunks."""


def _model(dtype: str) -> ModelFolder:
    return resolve_model(DEFAULT_MODEL, cache_dir=CACHE_DIR, dtype=dtype, progress=lambda what, share: None)


@pytest.fixture(scope="package")
def float32_model() -> ModelFolder:
    """The default model, converted once per host."""
    return _model("float32")


@pytest.fixture(scope="package")
def bfloat16_model() -> ModelFolder:
    return _model("bfloat16")


@asynccontextmanager
async def _pair(folder: Path, dtype: str, kv_mib: int) -> AsyncIterator[Pair]:
    async with Cluster(folder, dtype) as cluster:
        prefill, decode = await cluster.start("prefill", "decode", kv_mib=kv_mib, max_step_tokens=MAX_STEP_TOKENS)
        await cluster.wait_warm(decode, prefill)
        yield Pair(cluster, prefill, decode)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def float32_pair(float32_model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with _pair(tmp_path_factory.mktemp("float32"), "float32", kv_mib=400) as pair:
        yield pair


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def bfloat16_pair(bfloat16_model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with _pair(tmp_path_factory.mktemp("bfloat16"), "bfloat16", kv_mib=200) as pair:
        yield pair
