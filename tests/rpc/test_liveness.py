import asyncio

import pytest

from services.rpc.liveness import is_refused

TIMEOUT_S = 30.0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_an_address_that_nobody_listens_at_is_refused(host: str, unused_tcp_port: int) -> None:
    assert await is_refused(f"{host}:{unused_tcp_port}", TIMEOUT_S)


async def test_an_address_that_takes_connections_and_says_nothing_is_not() -> None:
    async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as server:
        assert not await is_refused(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", TIMEOUT_S)


async def test_a_name_that_cannot_be_resolved_says_nothing() -> None:
    assert not await is_refused("nobody.invalid:1", TIMEOUT_S)
