import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from services.errors import PeerGone
from services.gateway.web.merge import MAX_BUFFERED_ITEMS, Pump, merged


class Source:
    def __init__(self, *items: int, error: Exception | None = None, hang: bool = False) -> None:
        self.num_given = 0
        self.is_closed = False
        self._items = items
        self._error = error
        self._hang = hang

    async def read(self) -> AsyncGenerator[int, None]:
        try:
            for item in self._items:
                self.num_given += 1
                yield item
                await asyncio.sleep(0)
            if self._error is not None:
                raise self._error
            if self._hang:
                await asyncio.Event().wait()
        finally:
            self.is_closed = True


async def test_each_source_keeps_its_order() -> None:
    items = [item async for item in merged([Source(1, 3, 5).read(), Source(2, 4).read()])]

    assert sorted(items) == [1, 2, 3, 4, 5]
    assert [item for item in items if item % 2] == [1, 3, 5]


@pytest.mark.parametrize("num_others", [0, 1])
async def test_a_failure_comes_through_and_closes_the_others(num_others: int) -> None:
    failing, others = Source(1, error=PeerGone("x")), [Source(hang=True) for _ in range(num_others)]
    seen = []

    with pytest.raises(PeerGone):
        async for item in merged([failing.read(), *(other.read() for other in others)]):
            seen.append(item)  # noqa: PERF401 - what came before the failure counts

    assert seen == [1]
    assert all(source.is_closed for source in (failing, *others))


@pytest.mark.parametrize("num_sources", [1, 2])
async def test_closing_closes_all_sources(num_sources: int) -> None:
    sources = [Source(1, hang=True) for _ in range(num_sources)]
    async with aclosing(merged([source.read() for source in sources])) as items:
        await anext(items)

    assert all(source.is_closed for source in sources)


async def test_a_pump_reads_no_further_than_its_buffer() -> None:
    source = Source(*range(3 * MAX_BUFFERED_ITEMS))
    async with Pump([source.read()]) as pump:
        for _ in range(2 * MAX_BUFFERED_ITEMS):
            await asyncio.sleep(0)
        assert source.num_given <= MAX_BUFFERED_ITEMS + 1

        items = []
        while (batch := await pump.next()) is not None:
            items += batch

    assert items == list(range(3 * MAX_BUFFERED_ITEMS))


async def test_an_interrupted_wait_loses_nothing() -> None:
    gate = asyncio.Event()

    async def late() -> AsyncGenerator[int, None]:
        await gate.wait()
        yield 1

    async with Pump([late()]) as pump:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pump.next()
        gate.set()

        assert await pump.next() == [1]
        assert await pump.next() is None
