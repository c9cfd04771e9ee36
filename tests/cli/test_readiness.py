"""When a starting cluster counts as ready."""

from collections.abc import Iterator

import pytest

from services.cli.readiness import ReadinessProbe
from tests.cli.fake_api import FakeApi, serving


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving(FakeApi()) as api:
        yield api


async def served(api: FakeApi) -> str | None:
    async with ReadinessProbe(api.base_url) as probe:
        return await probe.served_model(2)


async def test_ready_when_the_gateway_knows_all_workers_and_serves_their_model(api: FakeApi) -> None:
    assert await served(api) == "smollm2"


async def test_not_ready_before_that(api: FakeApi) -> None:
    assert await served(FakeApi(base_url="http://127.0.0.1:1")) is None
    api.is_ready = False
    assert await served(api) is None
    api.is_ready, api.models = True, []
    assert await served(api) is None


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_not_ready_while_the_gateway_does_not_know_a_worker_yet(api: FakeApi, role: str) -> None:
    api.members[role] = 0
    assert await served(api) is None
