"""What operators are told, and how a worker leaves."""

import asyncio

import pytest

from services.errors import DeadlineExceeded, Draining, IncompatiblePeer, InternalError, Unavailable
from services.faults.plan import Action
from services.rpc import tandem_pb2 as pb
from services.rpc.errors import translated
from tests.inprocess.client import GREEDY, begin, expected_ids, generate, prompt
from tests.inprocess.cluster import Cluster, Worker, cluster, until
from tests.inprocess.faults import scripted
from tests.inprocess.hash_model import DEADLINE_S


async def drain(running: Cluster, worker: Worker, timeout_s: float = DEADLINE_S) -> int:
    with translated():
        reply = await running.channels.admin(worker.address).Drain(pb.DrainRequest(timeout_s=timeout_s))
    return int(reply.remaining)


async def status(running: Cluster, worker: Worker) -> pb.StatusReply:
    with translated():
        return await running.channels.admin(worker.address).Status(pb.StatusRequest())


async def test_a_draining_decode_worker_takes_nothing_new_and_leaves_when_its_streams_ended() -> None:
    async with cluster() as running:
        running.decode.model.gate.close()
        call = begin(running, prompt(30))
        await call.read_tokens(1)
        draining = asyncio.create_task(drain(running, running.decode))
        await until(lambda: running.decode.node.is_draining)
        with pytest.raises(Draining):
            await generate(running, prompt(9))
        assert not draining.done()
        running.decode.model.gate.open()
        assert (await call.finish()).ids == expected_ids(prompt(30))
        assert await draining == 0


async def test_a_draining_prefill_worker_stays_until_nothing_of_it_is_outstanding() -> None:
    async with cluster() as running:
        running.prefill.model.gate.close()
        call = begin(running, prompt(30))
        await until(lambda: running.prefill.model.gate.num_waiting)
        draining = asyncio.create_task(drain(running, running.prefill))
        await until(lambda: running.prefill.node.is_draining)
        running.prefill.model.gate.open()
        assert (await call.finish()).proof.path == "pd"
        assert await draining == 0
        assert (await generate(running, prompt(40, seed=2))).proof.reason == Draining.code


async def test_a_drain_that_takes_too_long_says_how_much_is_left() -> None:
    async with cluster() as running:
        running.decode.model.gate.close()
        call = begin(running, prompt(30))
        await call.read_tokens(1)
        assert await drain(running, running.decode, timeout_s=0.01) == 1
        running.decode.model.gate.open()
        await call.finish()


async def test_a_caller_who_hangs_up_does_not_end_the_drain() -> None:
    async with cluster(decode={"handover_after_s": 0.0}) as running:
        await running.add_decode()
        running.decode.model.gate.close()
        call = begin(running, prompt(30))
        await call.read_tokens(1)
        await until(lambda: running.decode.model.gate.num_waiting)
        drain_call = running.channels.admin(running.decode.address).Drain(pb.DrainRequest(timeout_s=DEADLINE_S))
        await until(lambda: running.decode.node.is_draining)
        drain_call.cancel()
        # the step that stands at the gate would be followed by all others, were the hand-over not asked for by then
        await until(lambda: running.decode.node.engine._inbox.qsize())
        running.decode.model.gate.open()
        await call.read_until("handed_over")


async def test_a_drain_that_is_meant_for_an_earlier_process_is_refused() -> None:
    async with cluster() as running:
        with pytest.raises(IncompatiblePeer), translated():
            await running.channels.admin(running.decode.address).Drain(pb.DrainRequest(member_id="decode-earlier"))
        assert not running.decode.node.is_draining


async def test_a_prefill_worker_that_leaves_waits_for_the_writes_that_it_posted() -> None:
    async with cluster() as running:
        running.prefill.faults.plan = scripted(pushes=dict.fromkeys(range(9), Action.STALL))
        call = begin(running, prompt(30))
        await call.read_tokens(1)
        await until(lambda: running.prefill.faults.injected[Action.STALL] == 4)
        draining = asyncio.create_task(drain(running, running.prefill))
        await until(lambda: running.prefill.node.is_draining)
        call.cancel()
        await until(lambda: not running.prefill.node.engine._streams)
        assert not draining.done()
        assert (await status(running, running.prefill)).live == 1
        assert (await status(running, running.prefill)).ledger["leased"] == 8
        running.prefill.faults.resume()
        assert await draining == 0
        await running.settled()


async def test_status_tells_identity_load_and_a_ledger_that_adds_up() -> None:
    async with cluster() as running:
        await generate(running, prompt(30))
        await running.settled()
        for worker in (running.decode, running.prefill):
            reply = await status(running, worker)
            assert (reply.member_id, reply.role) == (worker.node.member_id, worker.node.role.value)
            assert sum(reply.ledger.values()) == reply.load.total_blocks == 64
            assert reply.ledger["cached"] >= 7
            assert not reply.draining
            assert reply.counters["tandem_steps"] > 0


async def test_a_defect_of_the_engine_ends_every_stream_and_every_later_request() -> None:
    def defect() -> None:
        raise RuntimeError("a broken kernel")

    async with cluster() as running:
        running.decode.model.gate.close()
        calls = [begin(running, prompt(30, seed=seed)) for seed in range(3)]
        for call in calls:
            await call.read_tokens(1)
        running.decode.model.defect = defect
        running.decode.model.gate.open()
        for call in calls:
            with pytest.raises(InternalError):
                await call.finish()
        with pytest.raises(InternalError):
            await generate(running, prompt(9))
        assert running.decode.defects == ["engine"]
        await running.settled()


async def test_an_engine_that_closes_ends_streams_as_unavailable() -> None:
    async with cluster() as running:
        running.decode.model.gate.close()
        call = begin(running, prompt(30))
        await call.read_tokens(1)
        closing = asyncio.create_task(running.decode.node.engine.close(DEADLINE_S))
        running.decode.model.gate.open()
        with pytest.raises(Unavailable):
            await call.finish()
        await closing


async def test_a_request_ends_at_its_deadline() -> None:
    async with cluster() as running:
        running.decode.model.gate.close()
        call = begin(running, prompt(30), GREEDY, timeout_s=0.2)
        with pytest.raises(DeadlineExceeded):
            await call.finish()
        running.decode.model.gate.open()
        await running.settled()
