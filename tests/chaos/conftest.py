from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from services.engine.weights.sources import ModelFolder, resolve_model
from tests.chaos.fleet import Fleet
from tests.chaos.fuzzing import Budget
from tests.chaos.gateways import StoredCluster, real_cluster, scripted_cluster
from tests.e2e.harness import CACHE_DIR, Cluster

Say = Callable[[str], None]

_SHORT = Budget(seed=20_260_826)
_LONG_FACTOR = 12


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> Budget:
    """The same few examples in every run, or with ``--chaos-long`` many, from the seed that the header shows."""
    config = request.config
    return Budget(config.getoption("--chaos-seed"), _LONG_FACTOR) if config.getoption("--chaos-long") else _SHORT


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Say:
    """Writes a line of progress past the capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            request.config.get_terminal_writer().line(f"  {text}")

    return write


@pytest.fixture(scope="package")
def model() -> ModelFolder:
    """The default model in bfloat16, converted once per host."""
    return resolve_model("smollm2", cache_dir=CACHE_DIR, dtype="bfloat16", progress=lambda text, share: None)


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def fleet(
    model: ModelFolder, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Fleet]:
    """As many workers of each role as the module says in ``FLEET``, and what they answer undisturbed."""
    async with Cluster(tmp_path_factory.mktemp("fleet")) as cluster:
        options, decode_options = (getattr(request.module, name, {}) for name in ("OPTIONS", "DECODE_OPTIONS"))
        fleet = Fleet(cluster, options=options, decode_options=decode_options)
        fleet.prompt_tokens = getattr(request.module, "PROMPT_TOKENS", fleet.prompt_tokens)
        fleet.num_tokens = getattr(request.module, "NUM_TOKENS", fleet.num_tokens)
        try:
            await fleet.ready(**request.module.FLEET)
            await fleet.learn()
            yield fleet
        finally:
            await fleet.close()


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def stored(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[StoredCluster]:
    """Redis and a worker that plays scripts, or with ``--chaos-long`` real workers; gateways come with each test."""
    folder = tmp_path_factory.mktemp("stored")
    if not request.config.getoption("--chaos-long"):
        async with scripted_cluster(folder) as cluster:
            yield cluster
        return
    request.getfixturevalue("model")
    async with real_cluster(folder) as cluster:
        yield cluster
