"""Who joins is greeted; of who leaves the connection is given up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

from services.cluster.memory import MemoryRegistry
from services.cluster.registry import Member, Role
from services.cluster.view import MemberView
from services.decode.warm_pairs import WarmPairs
from services.rpc import tandem_pb2 as pb
from services.rpc.channel import Channels
from services.telemetry.clock import ManualClock
from services.transfer.transport import Endpoint
from services.worker.node import Node
from tests.cluster.samples import CARD, member


@dataclass
class RecordingChannels:
    """Stands for the connections to prefill workers; the one at ``silent`` never answers."""

    silent: str = ""
    greeted: list[str] = field(default_factory=list)
    kept: list[set[str]] = field(default_factory=list)

    def prefill(self, address: str) -> Any:
        async def connect(request: pb.ConnectRequest, timeout: float) -> pb.ConnectReply:
            if address == self.silent:
                await asyncio.Event().wait()
            self.greeted.append(address)
            return pb.ConnectReply()

        return SimpleNamespace(Connect=connect)

    def keep_only(self, addresses: set[str]) -> None:
        self.kept.append(addresses)


@dataclass
class Rig:
    channels: RecordingChannels
    registry: MemoryRegistry
    view: MemberView

    async def join(self, worker: Member) -> None:
        await self.registry.join(worker, CARD)
        await self.refresh()

    async def leave(self, worker: Member) -> None:
        await self.registry.leave(worker.member_id)
        await self.refresh()

    async def refresh(self) -> None:
        await self.view.refresh()
        for _ in range(10):
            await asyncio.sleep(0)


@asynccontextmanager
async def warm_pairs(silent: str = "") -> AsyncIterator[Rig]:
    channels = RecordingChannels(silent)
    registry = MemoryRegistry(ManualClock())
    rig = Rig(channels, registry, MemberView(registry, ManualClock()))
    node = SimpleNamespace(
        clock=ManualClock(),
        layout=SimpleNamespace(fingerprint=CARD.fingerprint),
        transfers=SimpleNamespace(endpoint=Endpoint("inproc", "decode", CARD.fingerprint, b"")),
    )
    pairs = WarmPairs(cast(Node, node), cast(Channels, channels), rig.view)
    async with pairs:
        yield rig


def prefill(name: str, address: str) -> Member:
    return replace(member(name, role=Role.PREFILL), address=address)


async def test_one_that_does_not_answer_does_not_keep_others_cold() -> None:
    async with warm_pairs(silent="here:1") as rig:
        await rig.join(prefill("prefill-1", "here:1"))
        await rig.join(prefill("prefill-2", "here:2"))
        assert rig.channels.greeted == ["here:2"]


async def test_only_prefill_workers_of_the_same_layout_are_greeted() -> None:
    async with warm_pairs() as rig:
        await rig.join(member("decode-1", role=Role.DECODE))
        assert rig.channels.greeted == []


async def test_only_connections_to_members_are_kept_when_one_left() -> None:
    async with warm_pairs() as rig:
        left = prefill("prefill-1", "here:1")
        await rig.join(left)
        await rig.join(prefill("prefill-2", "here:2"))
        assert rig.channels.kept == []
        await rig.leave(left)
        assert rig.channels.kept == [{"here:2"}]
