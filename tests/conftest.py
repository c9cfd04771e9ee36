import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where the attention conformance suite runs (docs/gpu.md)",
    )


@pytest.fixture(scope="session")
def device_name(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))
