"""What gateways are told of a prefix cache."""

import asyncio
from contextlib import aclosing

import pytest

from services.errors import IncompatiblePeer, Overloaded
from services.kv.hashes import block_hashes, cache_seed
from services.kv.landmarks import is_landmark
from services.rpc import tandem_pb2 as pb
from services.rpc.errors import translated
from services.telemetry.clock import ManualClock
from services.worker import cache_feed
from services.worker.cache_feed import CacheFeed
from tests.inprocess.client import generate, prompt
from tests.inprocess.cluster import Cluster, Shape, Worker, cluster
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S, layout


def landmarks(num_tokens: int, seed: int = 0) -> set[bytes]:
    names = block_hashes(cache_seed(layout().fingerprint, ""), prompt(num_tokens, seed), BLOCK_SIZE)
    return {name for index, name in enumerate(names) if is_landmark(index)}


class Watch:
    """One call, and what is known through it."""

    def __init__(self, running: Cluster, worker: Worker) -> None:
        request = pb.WatchRequest(member_id=worker.node.member_id)
        self.call = running.channels.kv(worker.address).Watch(request, timeout=DEADLINE_S)
        self.known = set[bytes]()
        self.num_events = 0
        running.stack.callback(self.call.cancel)

    async def until(self, wanted: set[bytes]) -> None:
        """Read until what is known includes ``wanted``."""
        while not wanted <= self.known:
            await self.read()

    async def read(self) -> pb.CacheEvent:
        event = await self.call.read()
        assert isinstance(event, pb.CacheEvent)
        self.known = (self.known | set(event.added)) - set(event.removed)
        self.num_events += 1
        return event


async def test_a_watcher_hears_what_is_there_and_then_what_comes() -> None:
    async with cluster() as running:
        await generate(running, prompt(40))
        first = Watch(running, running.decode)
        event = await first.read()
        assert event.is_complete
        assert landmarks(40) <= set(event.added)
        await generate(running, prompt(40, seed=2))
        await first.until(landmarks(40, seed=2))
        assert landmarks(40) <= first.known


async def test_what_is_evicted_is_told_too() -> None:
    async with cluster(shape=Shape(num_blocks=24)) as running:
        watch = Watch(running, running.decode)
        await generate(running, prompt(40))
        await watch.until(landmarks(40))
        await generate(running, prompt(80, seed=2))
        while landmarks(40) <= watch.known:
            await watch.read()


async def test_a_prefill_worker_tells_as_well() -> None:
    async with cluster() as running:
        await generate(running, prompt(40))
        watch = Watch(running, running.prefill)
        await watch.until(landmarks(40))


async def test_another_incarnation_is_refused() -> None:
    async with cluster() as running:
        call = running.channels.kv(running.decode.address).Watch(pb.WatchRequest(member_id="decode-earlier"))
        with pytest.raises(IncompatiblePeer), translated():
            await call.read()


async def test_many_names_come_in_several_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_feed, "MAX_NAMES", 3)
    feed = CacheFeed(ManualClock())
    feed.changed({bytes([index]): True for index in range(7)})
    async with aclosing(feed.watch()) as watching:
        events = [await anext(watching) for _ in range(3)]
    assert [(len(event.added), event.is_complete) for event in events] == [(3, False), (3, False), (1, True)]


async def test_what_came_and_went_before_it_was_told_is_told_as_it_is() -> None:
    feed = CacheFeed(ManualClock())
    async with aclosing(feed.watch()) as watching:
        assert (await anext(watching)).is_complete
        feed.changed({b"a": True, b"b": True})
        feed.changed({b"a": False})
        event = await anext(watching)
    assert (list(event.added), list(event.removed)) == ([b"b"], [b"a"])


async def test_closing_ends_who_watches() -> None:
    feed = CacheFeed(ManualClock())
    watching = feed.watch()
    await anext(watching)
    reading = asyncio.create_task(anext(watching, None))
    await asyncio.sleep(0)
    feed.close()
    assert await asyncio.wait_for(reading, DEADLINE_S) is None


async def test_too_many_watchers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_feed, "MAX_WATCHERS", 1)
    feed = CacheFeed(ManualClock())
    async with aclosing(feed.watch()) as first:
        await anext(first)
        with pytest.raises(Overloaded):
            await anext(feed.watch())


async def test_the_end_of_a_sequence_is_told_wherever_it_stands() -> None:
    async with cluster() as running:
        watch = Watch(running, running.decode)
        answer = await generate(running, prompt(45))
        sequence = [*prompt(45), *answer.ids]
        names = block_hashes(cache_seed(layout().fingerprint, ""), sequence, BLOCK_SIZE)
        last = (len(sequence) - 1) // BLOCK_SIZE - 1
        assert not is_landmark(last)
        await watch.until({names[last]})
