from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.search.searching import Library, library


@pytest.fixture
async def lib(tmp_path: Path) -> AsyncIterator[Library]:
    """A gateway over a real Redis with a twin of an embedding worker."""
    async with library(tmp_path) as made:
        yield made
