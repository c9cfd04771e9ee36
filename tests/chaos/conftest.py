import pytest

from tests.chaos.fuzzing import Budget

_SHORT = Budget(seed=20_260_826)
_LONG_FACTOR = 12


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> Budget:
    """The same few examples in every run, or with ``--chaos-long`` many, from the seed that the header shows."""
    config = request.config
    return Budget(config.getoption("--chaos-seed"), _LONG_FACTOR) if config.getoption("--chaos-long") else _SHORT
