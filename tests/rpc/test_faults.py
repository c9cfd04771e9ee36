"""Every message of a call, at either side, can be late, lost, doubled or another one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.errors import InternalError, PeerStalled
from services.faults.armed import ArmedFaults
from services.faults.plan import Action, FaultPlan
from services.rpc import tandem_pb2 as pb
from services.rpc import tandem_pb2_grpc
from services.rpc.channel import Channels
from services.rpc.errors import translated
from services.rpc.faults import client_interceptors, server_interceptors
from services.rpc.server import new_server
from services.telemetry.clock import SystemClock

SECRET = b"secret"
RUN = ("accepted", "progress", "progress", "first_token", "pushed")


@dataclass
class Servicer(tandem_pb2_grpc.PrefillServicer):
    """Answers every call alike and keeps its requests."""

    requests: list[Any] = field(default_factory=list)

    async def Run(self, request: pb.RunRequest, context: Any) -> AsyncIterator[pb.RunEvent]:
        self.requests.append(request)
        for index, kind in enumerate(RUN):
            event = pb.RunEvent()
            getattr(event, kind).SetInParent()
            if kind == "progress":
                event.progress.computed_tokens = index
            yield event

    async def Connect(self, request: pb.ConnectRequest, context: Any) -> pb.ConnectReply:
        self.requests.append(request)
        return pb.ConnectReply()

    async def Settle(self, request: pb.SettleRequest, context: Any) -> pb.SettleReply:
        self.requests.append(request)
        return pb.SettleReply(anything_posted=True)


@dataclass
class Line:
    """A caller and a servicer, of whom one side misbehaves."""

    stub: "tandem_pb2_grpc.PrefillAsyncStub"
    servicer: Servicer
    faults: ArmedFaults

    async def run(self) -> list[str]:
        with translated():
            call = self.stub.Run(pb.RunRequest(request_id="a"), timeout=30.0)
            return [str(event.WhichOneof("event")) async for event in call]

    async def settle(self, timeout_s: float = 30.0) -> pb.SettleReply:
        with translated():
            return await self.stub.Settle(pb.SettleRequest(request_id="a"), timeout=timeout_s)


@pytest.fixture(params=["server", "client"])
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def line(side: str, *faults: dict[str, object]) -> AsyncIterator[Line]:
    armed, clock = ArmedFaults(FaultPlan.model_validate({"faults": faults, "delay_s": 0.001})), SystemClock()
    server = new_server(SECRET, interceptors=server_interceptors(armed if side == "server" else None, clock))
    servicer = Servicer()
    tandem_pb2_grpc.add_PrefillServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channels = Channels(SECRET, interceptors=client_interceptors(armed if side == "client" else None, clock))
    try:
        yield Line(channels.prefill(f"127.0.0.1:{port}"), servicer, armed)
    finally:
        await channels.close()
        await server.stop(None)


def fault(step: str, action: str, **more: object) -> dict[str, object]:
    return {"step": f"prefill.{step}", "action": action, **more}


async def test_without_a_fault_everything_passes(side: str) -> None:
    async with line(side) as between:
        assert await between.run() == list(RUN)
        assert (await between.settle()).anything_posted
        assert not between.faults.injected


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("drop", ["accepted", "progress", "first_token", "pushed"]),
        ("duplicate", ["accepted", "progress", "progress", "progress", "first_token", "pushed"]),
        ("delay", list(RUN)),
    ],
)
async def test_a_message_of_a_stream(side: str, action: str, expected: Sequence[str]) -> None:
    async with line(side, fault("Run.sends.progress", action, nth=2)) as between:
        assert await between.run() == expected
        assert between.faults.injected == {Action(action): 1}
        assert await between.run() == list(RUN)


async def test_a_request_of_a_stream_that_is_lost_is_never_answered(side: str) -> None:
    async with line(side, fault("Run.received", "drop")) as between:
        running = asyncio.create_task(between.run())
        while not between.faults.injected:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert between.servicer.requests == []
        assert await between.run() == list(RUN)


@pytest.mark.parametrize("step", ["Settle.received", "Settle.sends.reply"])
async def test_a_lost_request_or_reply_is_a_stall_for_the_caller(side: str, step: str) -> None:
    async with line(side, fault(step, "drop")) as between:
        with pytest.raises(PeerStalled):
            await between.settle(timeout_s=0.2)
        assert (await between.settle()).anything_posted


async def test_a_request_that_comes_twice_is_answered_twice_and_heard_once() -> None:
    async with line("server", fault("Run.received", "duplicate"), fault("Settle.received", "duplicate")) as between:
        assert await between.run() == list(RUN)
        assert (await between.settle()).anything_posted
        assert [type(request) for request in between.servicer.requests] == [pb.RunRequest] * 2 + [pb.SettleRequest] * 2


async def test_a_corrupted_message_may_be_another_one_or_unreadable(side: str) -> None:
    async with line(side, fault("Settle.sends.reply", "corrupt", times=40)) as between:
        outcomes = set[str]()
        for _ in range(40):
            try:
                outcomes.add(str(await between.settle()))
            except InternalError:
                outcomes.add("unreadable")
        assert between.faults.injected == {Action.CORRUPT: 40}
        assert {"unreadable", str(pb.SettleReply())} <= outcomes


async def test_other_calls_are_left_alone(side: str) -> None:
    async with line(side, fault("Run.received", "drop", times=99)) as between:
        assert (await between.settle()).anything_posted
        assert not between.faults.injected
