"""``tandem drain`` over an in-memory registry and workers that are played."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.cli.drain import Draining, Target, chosen
from services.cluster.memory import MemoryRegistry
from services.cluster.registry import Member, MemberLoad, Role
from services.errors import ConfigurationError, IncompatiblePeer, PeerGone, PeerStalled, TandemError
from services.telemetry.clock import ManualClock
from tests.cluster.samples import CARD, member
from tests.cluster.stepping import settle

MEMBERS = [member("decode-a1"), member("decode-a2"), member("prefill-b1", role=Role.PREFILL)]


class PlayedWorker:
    """Has so much left at each question, and then answers the call."""

    def __init__(self, left: Sequence[int] = (), *, remaining: int = 0, error: TandemError | None = None) -> None:
        self.left = list(left)
        self.remaining = remaining
        self.error = error
        self.drained: list[Target] = []

    async def drain(self, target: Target) -> int:
        self.drained.append(target)
        if self.error is not None:
            raise self.error
        while self.left:
            await asyncio.sleep(0)
        return self.remaining

    async def num_live(self, target: Target) -> int:
        return self.left.pop(0) if self.left else 0


class Screen:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def target(member_id: str = "decode-a1") -> Target:
    return Target(member_id, "127.0.0.1:4000")


class TestChoice:
    def test_by_name_or_by_the_beginning_of_one(self) -> None:
        assert [each.member_id for each in chosen(MEMBERS, ["decode-a1", "prefill"], None)] == [
            "decode-a1",
            "prefill-b1",
        ]

    def test_by_role(self) -> None:
        assert [each.member_id for each in chosen(MEMBERS, [], "decode")] == ["decode-a1", "decode-a2"]

    @pytest.mark.parametrize(
        ("names", "role", "message"),
        [
            (["decode"], None, "decode may be any of decode-a1, decode-a2"),
            (["decode-a3"], None, "no member is called decode-a3; did you mean decode-a"),
            ([], "decode", "no decode worker"),
        ],
    )
    def test_a_mistake_is_told(self, names: list[str], role: str | None, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            chosen([] if role else MEMBERS, names, role)


class TestDirectly:
    async def test_progress_is_said_when_it_changes(self) -> None:
        worker, say = PlayedWorker([3, 3, 1, 0]), Screen()
        assert await Draining(worker, None, ManualClock(), say, wait_s=10).all_left([target()])
        assert say.lines == [f"decode-a1: {left} left" for left in (3, 1)] + ["decode-a1: drained"]
        assert worker.drained == [target()]

    async def test_what_is_left_in_the_end_is_a_failure(self) -> None:
        say = Screen()
        assert not await Draining(PlayedWorker(remaining=2), None, ManualClock(), say, wait_s=10).all_left([target()])
        assert say.lines == ["decode-a1: gave up with 2 left"]

    async def test_one_failure_does_not_keep_the_others_from_leaving(self) -> None:
        class OneRefuses(PlayedWorker):
            async def drain(self, target: Target) -> int:
                if target.member_id == "decode-a1":
                    raise IncompatiblePeer("another process answers")
                return await super().drain(target)

        worker, say = OneRefuses(), Screen()
        targets = [target(), target("decode-a2")]
        assert not await Draining(worker, None, ManualClock(), say, wait_s=10).all_left(targets)
        assert sorted(say.lines) == ["decode-a1: another process answers", "decode-a2: drained"]

    async def test_who_cannot_be_reached_by_address_alone_is_told(self) -> None:
        say = Screen()
        worker = PlayedWorker(error=PeerStalled("no answer"))
        assert not await Draining(worker, None, ManualClock(), say, wait_s=10).all_left([Target("", "host:1")])
        assert say.lines == ["host:1: cannot be reached: no answer"]


class TestThroughRedis:
    async def begin(self) -> tuple[MemoryRegistry, Screen, "asyncio.Task[bool]"]:
        clock, say = ManualClock(), Screen()
        registry = MemoryRegistry(clock, lease_s=1e9)
        await registry.join(member("decode-a1", running=2), CARD)
        worker = PlayedWorker(error=PeerGone("refused"))
        drains = Draining(worker, registry, clock, say, wait_s=1e6)
        task = asyncio.create_task(drains.all_left([target()]))
        await settle()
        return registry, say, task

    async def test_the_worker_finds_a_note_and_its_record_tells_how_far_it_is(self) -> None:
        registry, say, task = await self.begin()
        assert await registry.is_asked_to_leave("decode-a1")
        for live in (2, 1, 0):
            await registry.renew(_draining(MemberLoad(live=live, is_closed=True)))
            await settle()
        assert await task
        assert say.lines[1:] == ["decode-a1: 2 left", "decode-a1: 1 left", "decode-a1: drained"]

    async def test_a_worker_that_computes_nothing_may_still_push_or_take_new_work(self) -> None:
        registry, say, task = await self.begin()
        for load in (MemberLoad(), MemberLoad(live=1, is_closed=True), MemberLoad(running=0, live=1, is_closed=True)):
            await registry.renew(_draining(load))
            await settle()
        assert not task.done()
        assert say.lines[1:] == ["decode-a1: 1 left"]
        await registry.renew(_draining(MemberLoad(is_closed=True)))
        await settle()
        assert await task

    async def test_a_worker_that_leaves_the_cluster_is_gone(self) -> None:
        registry, say, task = await self.begin()
        await registry.leave("decode-a1")
        assert await task
        assert say.lines[-1] == "decode-a1: left the cluster"

    async def test_a_worker_that_takes_no_notice_is_a_failure_in_the_end(self) -> None:
        clock, say = ManualClock(), Screen()
        registry = MemoryRegistry(clock, lease_s=1e9)
        await registry.join(member("decode-a1", running=2), CARD)
        worker = PlayedWorker(error=PeerGone("refused"))
        assert not await Draining(worker, registry, clock, say, wait_s=10).all_left([target()])
        assert say.lines[-1] == "decode-a1: does not take notice; gave up waiting"


def _draining(load: MemberLoad) -> Member:
    return replace(member("decode-a1"), draining=True, load=load)
