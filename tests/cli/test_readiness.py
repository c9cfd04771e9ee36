"""When a starting cluster counts as ready."""

from collections.abc import Iterator

import pytest

from services.cli.readiness import ReadinessProbe
from services.cluster.registry import Member, Role
from services.errors import StateUnavailable
from tests.cli.fake_api import FakeApi, serving
from tests.cli.test_status import FixedRegistry, member

BOTH = (member("p", Role.PREFILL), member("d", Role.DECODE))


class AwayRegistry(FixedRegistry):
    async def members(self) -> tuple[Member, ...]:
        raise StateUnavailable("away")


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving(FakeApi()) as api:
        yield api


async def served(api: FakeApi, registry: FixedRegistry) -> str | None:
    async with ReadinessProbe(api.base_url, registry) as probe:
        return await probe.served_model(2)


async def test_ready_when_all_workers_joined_and_the_gateway_serves_their_model(api: FakeApi) -> None:
    assert await served(api, FixedRegistry(*BOTH)) == "smollm2"


async def test_not_ready_before_that(api: FakeApi) -> None:
    assert await served(api, FixedRegistry(BOTH[0])) is None
    assert await served(api, AwayRegistry()) is None
    assert await served(FakeApi(base_url="http://127.0.0.1:1"), FixedRegistry(*BOTH)) is None
    api.is_ready = False
    assert await served(api, FixedRegistry(*BOTH)) is None
    api.is_ready, api.models = True, []
    assert await served(api, FixedRegistry(*BOTH)) is None
