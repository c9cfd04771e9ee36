import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.errors import IncompatiblePeer, InternalError, InvalidRequest, PeerGone, PeerStalled
from services.transfer.inproc import InProcessFabric, InProcessTransport
from services.transfer.loop import TransferThread
from services.transfer.memory import allocate
from services.transfer.pace import PaceSettings
from services.transfer.transport import (
    BlockPair,
    Endpoint,
    NoticeArrived,
    PeerConnected,
    PushDone,
    PushFailed,
    PushId,
    TransferEvent,
)
from tests.transfer.harness import harness

ONE_BLOCK = [BlockPair(0, 0)]
DEADLINE_S = 30.0
SOON_S = 0.05
"""A deadline that a test wants to pass."""
SLEEPY = PaceSettings(first_s=3600, busy_limit_s=0.001, idle_limit_s=3600)
"""Idle, it polls once and then sleeps until woken."""


class FakeTransport:
    """Says what a test tells it to, and counts."""

    def __init__(self) -> None:
        self.events = deque[TransferEvent]()
        self.errors: dict[str, Exception] = {}
        self.num_polls = 0
        self.num_pushes = 0
        self.threads: set[int] = set()
        self.is_closed = threading.Event()

    def endpoint(self) -> Endpoint:
        return Endpoint("fake", "here", "f", b"")

    def connect(self, peer: Endpoint) -> None:
        self._called("connect")
        self.events.append(PeerConnected(peer.agent))

    def push(self, agent: str, blocks: Sequence[BlockPair], notice: bytes) -> PushId:
        self._called("push")
        self.num_pushes += 1
        return PushId(self.num_pushes)

    def poll(self) -> Sequence[TransferEvent]:
        self.num_polls += 1
        self._called("poll")
        return [self.events.popleft() for _ in range(len(self.events))]

    def close(self) -> None:
        self._called("close")
        self.is_closed.set()

    def _called(self, method: str) -> None:
        self.threads.add(threading.get_ident())
        if method in self.errors:
            raise self.errors[method]


@asynccontextmanager
async def running(
    fake: FakeTransport,
    on_notice: Callable[[str, bytes], None] = lambda agent, notice: None,
    pace: PaceSettings = SLEEPY,
) -> AsyncIterator[TransferThread]:
    thread = TransferThread(fake, on_notice=on_notice, pace=pace)
    thread.start()
    try:
        yield thread
    finally:
        await thread.close(DEADLINE_S)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0)


class TestPush:
    async def test_returns_when_done(self) -> None:
        fake = FakeTransport()
        async with running(fake) as thread:
            pushing = asyncio.create_task(thread.push("b", ONE_BLOCK, b"", key="r", timeout_s=DEADLINE_S))
            await until(lambda: fake.num_pushes == 1)
            assert thread.is_outstanding("r")
            fake.events.append(PushDone(PushId(1)))
            await pushing
            assert not thread.is_outstanding("r")

    async def test_raises_what_the_event_says(self) -> None:
        fake = FakeTransport()
        async with running(fake) as thread:
            pushing = asyncio.create_task(thread.push("b", ONE_BLOCK, b"", key="r", timeout_s=DEADLINE_S))
            await until(lambda: fake.num_pushes == 1)
            fake.events.append(PushFailed(PushId(1), PeerGone("reset")))
            with pytest.raises(PeerGone, match="reset"):
                await pushing
            assert not thread.is_outstanding("r")

    async def test_a_refused_push_is_not_outstanding(self) -> None:
        fake = FakeTransport()
        fake.errors["push"] = InvalidRequest("no such block")
        async with running(fake) as thread:
            with pytest.raises(InvalidRequest):
                await thread.push("b", ONE_BLOCK, b"", key="r", timeout_s=DEADLINE_S)
            assert not thread.is_outstanding("r")

    async def test_past_its_deadline_it_stays_outstanding_until_its_event_comes(self) -> None:
        fake = FakeTransport()
        async with running(fake) as thread:
            with pytest.raises(PeerStalled):
                await thread.push("b", ONE_BLOCK, b"", key="r", timeout_s=SOON_S)
            assert thread.is_outstanding("r")
            with pytest.raises(PeerStalled):
                await thread.wait_settled("r", SOON_S)
            settling = asyncio.create_task(thread.wait_settled("r", DEADLINE_S))
            await until(lambda: fake.num_pushes == 1)
            fake.events.append(PushFailed(PushId(1), PeerGone("reset")))
            await settling
            assert not thread.is_outstanding("r")

    async def test_a_cancelled_caller_leaves_it_outstanding(self) -> None:
        fake = FakeTransport()
        async with running(fake) as thread:
            pushing = asyncio.create_task(thread.push("b", ONE_BLOCK, b"", key="r", timeout_s=DEADLINE_S))
            await until(lambda: fake.num_pushes == 1)
            pushing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pushing
            assert thread.is_outstanding("r")
            fake.events.append(PushDone(PushId(1)))
            await thread.wait_settled("r", DEADLINE_S)

    async def test_a_key_is_settled_after_its_last_push(self) -> None:
        fake = FakeTransport()
        async with running(fake) as thread:
            pushing = [
                asyncio.create_task(thread.push("b", ONE_BLOCK, b"", key=key, timeout_s=DEADLINE_S))
                for key in ("r", "r", "s")
            ]
            await until(lambda: fake.num_pushes == 3)
            fake.events.append(PushDone(PushId(1)))
            await pushing[0]
            assert (thread.is_outstanding("r"), thread.is_outstanding("s")) == (True, True)
            fake.events += [PushDone(PushId(2)), PushDone(PushId(3))]
            await asyncio.gather(*pushing)
            await thread.wait_settled("r", DEADLINE_S)
            await thread.wait_settled("never seen", DEADLINE_S)


class TestNotices:
    async def test_are_handled_on_the_transfer_thread_in_order(self) -> None:
        fake, seen = FakeTransport(), list[tuple[str, bytes, int]]()
        async with running(fake, lambda agent, notice: seen.append((agent, notice, threading.get_ident()))) as thread:
            fake.events += [NoticeArrived("b", b"1"), NoticeArrived("c", b"2")]
            thread.expect(1)
            await until(lambda: len(seen) == 2)
            thread.expect(-1)
        assert [(agent, notice) for agent, notice, _ in seen] == [("b", b"1"), ("c", b"2")]
        assert {identity for *_, identity in seen} == fake.threads
        assert threading.get_ident() not in fake.threads

    async def test_a_handler_with_a_defect_stops_nothing(self) -> None:
        fake, seen = FakeTransport(), list[bytes]()

        def handle(agent: str, notice: bytes) -> None:
            seen.append(notice)
            raise ZeroDivisionError

        async with running(fake, handle) as thread:
            fake.events += [NoticeArrived("b", b"1"), NoticeArrived("b", b"2")]
            await thread.connect(Endpoint("fake", "b", "f", b""), DEADLINE_S)
            assert seen == [b"1", b"2"]


class TestPolling:
    async def test_an_idle_thread_sleeps_and_an_expecting_one_polls(self) -> None:
        fake = FakeTransport()
        async with running(fake) as thread:
            await until(lambda: fake.num_polls)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert fake.num_polls <= 2
            thread.expect(1)
            await until(lambda: fake.num_polls > 20)
            thread.expect(-1)
            await until(lambda: _is_quiet(fake))

    async def test_a_pending_push_or_connection_keeps_it_polling(self) -> None:
        fake = FakeTransport()
        async with running(fake) as thread:
            pushing = asyncio.create_task(thread.push("b", ONE_BLOCK, b"", key="r", timeout_s=DEADLINE_S))
            await until(lambda: fake.num_polls > 20)
            fake.events.append(PushDone(PushId(1)))
            await pushing
            await until(lambda: _is_quiet(fake))

    async def test_more_cannot_be_taken_back_than_was_expected(self) -> None:
        async with running(FakeTransport()) as thread:
            with pytest.raises(InternalError):
                thread.expect(-1)


def _is_quiet(fake: FakeTransport) -> bool:
    before = fake.num_polls
    threading.Event().wait(0.02)
    return fake.num_polls == before


class TestDefects:
    async def test_a_poll_that_fails_fails_waiters_and_the_thread_lives_on(self) -> None:
        fake = FakeTransport()
        async with running(fake) as thread:
            pushing = asyncio.create_task(thread.push("b", ONE_BLOCK, b"", key="r", timeout_s=DEADLINE_S))
            await until(lambda: fake.num_pushes == 1)
            fake.errors["poll"] = RuntimeError("broken")
            with pytest.raises(InternalError, match="broken"):
                await pushing
            assert thread.is_outstanding("r")
            del fake.errors["poll"]
            fake.events.append(PushDone(PushId(1)))
            await thread.wait_settled("r", DEADLINE_S)

    async def test_a_connect_that_fails_is_raised_where_it_was_asked_for(self) -> None:
        fake = FakeTransport()
        async with running(fake) as thread:
            fake.errors["connect"] = RuntimeError("broken")
            with pytest.raises(InternalError, match="broken"):
                await thread.connect(Endpoint("fake", "b", "f", b""), DEADLINE_S)
            del fake.errors["connect"]
            await thread.connect(Endpoint("fake", "b", "f", b""), DEADLINE_S)


class TestClose:
    async def test_ends_waiters_and_refuses_what_comes_later(self) -> None:
        fake = FakeTransport()
        async with running(fake) as thread:
            pushing = asyncio.create_task(thread.push("b", ONE_BLOCK, b"", key="r", timeout_s=DEADLINE_S))
            await until(lambda: fake.num_pushes == 1)
            await thread.close(DEADLINE_S)
            assert fake.is_closed.is_set()
            with pytest.raises(PeerGone):
                await pushing
            with pytest.raises(PeerGone):
                await thread.push("b", ONE_BLOCK, b"", key="r2", timeout_s=DEADLINE_S)
            assert not thread.is_outstanding("r2")
            await thread.close(DEADLINE_S)

    async def test_has_a_deadline(self) -> None:
        fake = FakeTransport()
        release = threading.Event()
        fake.close = lambda: bool(release.wait(DEADLINE_S))  # type: ignore[method-assign,assignment]
        thread = TransferThread(fake, on_notice=lambda agent, notice: None)
        thread.start()
        with pytest.raises(PeerStalled):
            await thread.close(SOON_S)
        release.set()
        await thread.close(DEADLINE_S)

    async def test_of_a_thread_that_never_ran_returns(self) -> None:
        fake = FakeTransport()
        await TransferThread(fake, on_notice=lambda agent, notice: None).close(DEADLINE_S)
        assert fake.is_closed.is_set()


class TestOverRealTransports:
    async def test_two_threads_over_one_fabric(self) -> None:
        fabric, seen = InProcessFabric(), asyncio.Queue[bytes]()
        loop = asyncio.get_running_loop()

        def hand_over(agent: str, notice: bytes) -> None:
            loop.call_soon_threadsafe(seen.put_nowait, notice)

        memories = [allocate(4, 4096) for _ in range(2)]
        memories[0].block(1)[:] = b"\7" * 4096
        threads = [
            TransferThread(
                InProcessTransport(agent=name, fingerprint="f", memory=memory, fabric=fabric),
                on_notice=hand_over,
            )
            for name, memory in zip("ab", memories, strict=True)
        ]
        for thread in threads:
            thread.start()
        async with asyncio.timeout(DEADLINE_S):
            await threads[0].connect(threads[1].endpoint, DEADLINE_S)
            threads[1].expect(1)
            await threads[0].push("b", [BlockPair(1, 2)], b"n", key=1, timeout_s=DEADLINE_S)
            assert await seen.get() == b"n"
        assert bytes(memories[1].block(2)) == b"\7" * 4096
        for thread in threads:
            await thread.close(DEADLINE_S)

    async def test_a_refused_connection_is_raised_where_it_was_asked_for(self) -> None:
        with harness("tcp") as opened:
            thread = TransferThread(opened.open().transport, on_notice=lambda agent, notice: None)
            thread.start()
            with pytest.raises(IncompatiblePeer, match="secret"):
                await thread.connect(opened.peer(secret="a guess").endpoint, DEADLINE_S)
            await thread.close(DEADLINE_S)

    @pytest.mark.parametrize("name", ["tcp", "nixl"])
    async def test_a_push_of_48_mib_does_not_stop_the_event_loop(self, name: str) -> None:
        shape: dict[str, Any] = {"num_blocks": 48, "block_bytes": 1 << 20}
        with harness(name) as opened:
            here, peer = opened.open(**shape), opened.peer(**shape)
            thread = TransferThread(here.transport, on_notice=lambda agent, notice: None)
            thread.start()
            await thread.connect(peer.endpoint, DEADLINE_S)
            pushing = asyncio.create_task(
                thread.push(
                    peer.endpoint.agent,
                    [BlockPair(index, index) for index in range(48)],
                    b"",
                    key=1,
                    timeout_s=DEADLINE_S,
                )
            )
            ticks = 0
            while not pushing.done():
                await asyncio.sleep(0)
                ticks += 1
            await pushing
            await thread.close(DEADLINE_S)
        assert ticks > 20
