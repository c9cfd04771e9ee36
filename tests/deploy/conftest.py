import pytest

from tests.deploy.chart import VALUES_FILES, Rendered, render, values_of


@pytest.fixture(scope="session", params=VALUES_FILES)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    """The chart with each of the values files."""
    return render(values_of(request.param))
