from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.apis.stored import stored_world
from tests.gateway.twins import World


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    """A gateway over a real Redis."""
    async with stored_world(tmp_path) as stored:
        yield stored
