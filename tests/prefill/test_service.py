"""A prefill worker as decode workers see it."""

import asyncio
from dataclasses import replace

import pytest

from services.engine.blocks import Claim, Reason
from services.errors import (
    Draining,
    IncompatiblePeer,
    InternalError,
    InvalidRequest,
    Overloaded,
    PeerGone,
    PeerStalled,
    StaleEpoch,
)
from services.faults.plan import Action
from services.kv.digests import payload_digest
from services.rpc import tandem_pb2 as pb
from services.rpc.errors import translated
from services.worker.convert import endpoint_to_message
from tests.inprocess.client import GREEDY, begin, expected_ids, prompt
from tests.inprocess.cluster import Shape, cluster, until
from tests.inprocess.faults import scripted
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S, layout
from tests.prefill.decode_twin import decode_twin, digests

ALL_STALLED = scripted(pushes=dict.fromkeys(range(99), Action.STALL))
NOBODY = Claim(Reason.USED, "nobody")


class TestRun:
    async def test_events_and_pushes_follow_the_chunks(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            call = twin.run(prompt(30))
            await call.finish()
            assert call.kinds == ["accepted", *["progress"] * 4, "first_token", "pushed"]
            assert [event.progress.computed_tokens for event in call.events[1:5]] == [8, 16, 24, 30]
            assert call.events[5].first_token.token.id == expected_ids(prompt(30))[0]
            assert call.events[6].pushed.blocks == 8
            await until(lambda: twin.ranges == [(0, 2), (2, 4), (4, 6), (6, 8)])
            await running.settled()

    async def test_notices_name_the_tokens_and_the_bytes_of_their_blocks(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            await twin.run(prompt(30)).finish()
            await until(lambda: len(twin.notices) == 4)
            named = [digest for notice in twin.notices for digest in notice.token_digests]
            assert named == digests(prompt(30))
            sent = [digest for notice in twin.notices for digest in notice.payload_digests]
            assert sent == [payload_digest(twin.memory.block(index)) for index in range(8)]

    async def test_the_tail_of_a_partial_block_is_zero(self) -> None:
        async with cluster(prefills=0) as running, decode_twin(running) as twin:
            await running.add_prefill(Shape(num_blocks=8))
            await twin.run(prompt(32, seed=4)).finish()
            await twin.run(prompt(30, seed=5)).finish()
            await until(lambda: len(twin.notices) == 8)
            tail = bytes(twin.memory.block(7))[2 * layout().block_bytes // BLOCK_SIZE :]
            assert not any(tail)

    async def test_only_wanted_blocks_are_pushed(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            call = twin.run(prompt(30), first_block=3)
            await call.finish()
            assert call.events[-1].pushed.blocks == 5
            await until(lambda: twin.ranges == [(3, 4), (4, 6), (6, 8)])
            assert not any(twin.memory.block(2))
            await running.settled()

    async def test_resumed_tokens_are_part_of_the_prompt(self) -> None:
        whole = expected_ids(prompt(10))
        async with cluster() as running, decode_twin(running) as twin:
            call = twin.run(prompt(10), resumed_output_token_ids=whole[:5])
            token = (await call.read_until("first_token")).first_token.token
            assert token.id == whole[5]
            await call.finish()

    async def test_a_first_token_that_ends_the_sequence_says_why(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            call = twin.run(prompt(30), replace(GREEDY, max_tokens=1))
            assert (await call.read_until("first_token")).first_token.finish_reason == pb.FINISH_REASON_LENGTH

    async def test_a_waiting_prompt_tells_that_its_worker_is_at_work(self) -> None:
        settings = {"progress_interval_s": 0.01}
        async with cluster(prefill=settings, shape=Shape(max_running=1)) as running, decode_twin(running) as twin:
            gate = running.prefill.model.gate
            gate.close()
            first = twin.run(prompt(200, seed=1), request_id="first")
            await until(lambda: gate.holds_a_step)
            second = twin.run(prompt(30, seed=2), request_id="second")
            await until(lambda: running.prefill.node.engine._inbox.qsize())
            gate.allow(1)
            assert await second.read() == "accepted"
            reading = asyncio.create_task(second.read())
            await until(lambda: gate.holds_a_step)
            assert not reading.done()
            while not reading.done():
                gate.allow(1)
                await until(lambda: gate.holds_a_step)
                await asyncio.sleep(0.011)
            assert (await reading, second.events[-1].progress.computed_tokens) == ("progress", 0)
            gate.open()
            await asyncio.gather(first.finish(), second.finish())
            await running.settled()

    async def test_a_cancel_stops_chunks_and_pushes(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            running.prefill.model.gate.close()
            call = twin.run(prompt(30))
            running.prefill.model.gate.allow(1)
            await call.read_until("progress")
            await until(lambda: twin.ranges == [(0, 2)])
            call.cancel()
            await until(lambda: not running.prefill.node.engine._streams)
            running.prefill.model.gate.open()
            await running.settled()
            assert running.prefill.model.num_computed_tokens <= 16
            assert twin.ranges == [(0, 2)]

    async def test_a_failed_push_ends_the_call_before_the_prompt_is_computed(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            running.prefill.faults.plan = scripted(pushes={0: Action.DROP})
            running.prefill.model.gate.close()
            call = twin.run(prompt(30))
            running.prefill.model.gate.allow(1)
            await until(lambda: running.prefill.counted("push_failures", code="peer_gone") == 1)
            running.prefill.model.gate.allow(1)
            with pytest.raises(PeerGone):
                await call.finish()
            running.prefill.model.gate.open()
            await running.settled()
            assert running.prefill.model.num_computed_tokens < 30

    async def test_a_stalled_push_ends_the_call_and_keeps_its_blocks(self) -> None:
        settings, shape = {"push_timeout_s": 0.05}, Shape(max_step_tokens=32)
        async with cluster(prefill=settings, shape=shape) as running, decode_twin(running) as twin:
            running.prefill.faults.plan = ALL_STALLED
            with pytest.raises(PeerStalled):
                await twin.run(prompt(30)).finish()
            assert (await running.prefill.ledger()).leased == 8
            running.prefill.faults.resume()
            await running.settled()


class TestRefusals:
    async def test_another_member(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            with pytest.raises(IncompatiblePeer):
                await twin.run(prompt(30), member_id="prefill-earlier").finish()
            await running.settled()

    async def test_another_layout(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            call = twin.run(prompt(30))
            call.cancel()
            target = call.request.target
            target.endpoint.fingerprint = "another"
            with pytest.raises(IncompatiblePeer):
                await twin.run(prompt(30), target=target).finish()
            await running.settled()

    async def test_a_target_of_another_size(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            call = twin.run(prompt(30))
            call.cancel()
            with pytest.raises(InvalidRequest):
                await twin.run(prompt(33), target=call.request.target).finish()
            await running.settled()

    async def test_new_work_while_draining(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            running.prefill.node.is_draining = True
            with pytest.raises(Draining):
                await twin.run(prompt(30)).finish()
            await running.settled()

    async def test_a_prompt_behind_too_many_tokens(self) -> None:
        async with cluster(prefill={"max_queued_tokens": 40}) as running, decode_twin(running) as twin:
            engine = running.prefill.node.engine
            await engine.call(lambda scheduler: scheduler._pool.take(Shape().num_blocks, NOBODY))
            first = twin.run(prompt(30), request_id="first")
            await first.read_until("accepted")
            with pytest.raises(Overloaded):
                await twin.run(prompt(30), request_id="second").finish()
            await engine.call(lambda scheduler: scheduler._pool.release(NOBODY))
            await first.finish()
            await running.settled()

    async def test_calls_beyond_those_that_run_and_wait(self) -> None:
        shape, settings = Shape(max_running=1), {"max_waiting": 1}
        async with cluster(shape=shape, prefill=settings) as running, decode_twin(running) as twin:
            running.prefill.model.gate.close()
            calls = [twin.run(prompt(30), request_id="runs")]
            await until(lambda: running.prefill.model.gate.num_waiting)  # before that it waits, too
            calls.append(twin.run(prompt(30, seed=1), request_id="waits"))
            await until(lambda: running.prefill.servicer.num_live == 2)
            with pytest.raises(Overloaded) as refused:
                await twin.run(prompt(30), request_id="third").finish()
            assert refused.value.retry_after_s == 1.0
            running.prefill.model.gate.open()
            for call in calls:
                await call.finish()
            await running.settled()

    async def test_an_attempt_that_runs_already(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            running.prefill.model.gate.close()
            call = twin.run(prompt(30))
            await until(lambda: running.prefill.model.gate.num_waiting)
            with pytest.raises(InvalidRequest):
                await twin.run(prompt(30), target=call.request.target).finish()
            running.prefill.model.gate.open()
            await call.finish()
            await running.settled()

    async def test_a_broken_engine(self) -> None:
        def defect() -> None:
            raise RuntimeError("a broken kernel")

        async with cluster() as running, decode_twin(running) as twin:
            running.prefill.model.defect = defect
            for _ in range(2):
                with pytest.raises(InternalError):
                    await twin.run(prompt(30)).finish()
            assert running.prefill.defects == ["engine"]
            await running.settled()


class TestSettle:
    async def test_an_unknown_attempt_is_settled_and_may_not_begin_later(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            call = twin.run(prompt(30))
            call.cancel()
            await running.settled()
            target = call.request.target
            target.epoch = 99
            assert not (await twin.settle(call, epoch=99)).anything_posted
            with pytest.raises(StaleEpoch):
                await twin.run(prompt(30), target=target).finish()
            assert not twin.notices

    async def test_another_member_is_refused(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            call = twin.run(prompt(30))
            with pytest.raises(IncompatiblePeer):
                await twin.settle(call, member_id="prefill-earlier")
            await call.finish()

    async def test_it_waits_for_what_is_outstanding(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            running.prefill.faults.plan = ALL_STALLED
            call = twin.run(prompt(30))
            await call.read_until("first_token")
            await until(lambda: running.prefill.faults.injected[Action.STALL] == 4)
            call.cancel()
            await until(lambda: not running.prefill.node.engine._streams)
            settling = asyncio.create_task(twin.settle_directly(call))
            await asyncio.sleep(0.01)
            assert not settling.done() and not twin.notices
            running.prefill.faults.resume()
            assert (await settling).anything_posted
            await until(lambda: len(twin.notices) == 4)
            await running.settled()

    async def test_nothing_is_posted_after_it_even_if_the_call_still_runs(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            running.prefill.model.gate.close()
            call = twin.run(prompt(30))
            running.prefill.model.gate.allow(1)
            await call.read_until("progress")
            assert (await twin.settle(call)).anything_posted
            running.prefill.model.gate.open()
            with pytest.raises(StaleEpoch):
                await call.finish()
            await until(lambda: twin.notices)
            assert twin.ranges == [(0, 2)]
            await running.settled()

    async def test_once_the_transport_was_closed_under_a_push_nobody_is_told_that_it_ended(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            running.prefill.faults.plan = ALL_STALLED
            call = twin.run(prompt(30))
            await call.read_until("first_token")
            call.cancel()
            await running.prefill.node.transfers.close(DEADLINE_S)
            for _ in range(2):
                with pytest.raises(PeerStalled):
                    await twin.settle(call)


async def test_a_drain_waits_for_pushes_that_are_outstanding_and_the_published_load_tells_them() -> None:
    async with cluster() as running, decode_twin(running) as twin:
        worker = running.prefill
        worker.faults.plan = ALL_STALLED
        call = twin.run(prompt(30))
        await call.read_until("first_token")
        await until(lambda: worker.faults.injected[Action.STALL] == 4)
        call.cancel()
        await until(lambda: not worker.node.engine._streams)
        draining = asyncio.create_task(worker.admin.drain(DEADLINE_S))
        await until(lambda: worker.node.is_draining)
        load = worker.node.load_with(worker.servicer.num_live)
        assert (load.running, load.waiting, load.live, load.is_closed) == (0, 0, 1, True)
        assert not draining.done()
        worker.faults.resume()
        assert await draining == 0
        assert worker.node.load_with(worker.servicer.num_live).live == 0


async def test_closing_waits_so_long_for_pushes_and_then_gives_them_up() -> None:
    async with cluster() as running, decode_twin(running) as twin:
        exporter = running.prefill.moving.exporter
        running.prefill.faults.plan = ALL_STALLED
        call = twin.run(prompt(30))
        await call.read_until("first_token")
        await until(lambda: running.prefill.faults.injected[Action.STALL] == 4)
        call.cancel()
        await until(lambda: exporter._settling)
        closing = asyncio.create_task(exporter.close(DEADLINE_S))
        await asyncio.sleep(0.01)
        assert not closing.done()
        running.prefill.faults.resume()
        await closing
        assert not exporter.num_live

        running.prefill.faults.plan = ALL_STALLED
        call = twin.run(prompt(30, seed=1), request_id="again")
        await call.read_until("first_token")
        call.cancel()
        await until(lambda: exporter._settling)
        before = asyncio.all_tasks()
        await exporter.close(0.0)
        gone = [task.get_name() for task in before - asyncio.all_tasks()]
        assert {name.partition(" ")[0] for name in gone} >= {"settle", "push", "hold"}
        running.prefill.faults.resume()


async def test_connect_makes_the_pair_known() -> None:
    async with cluster() as running, decode_twin(running) as twin:
        request = pb.ConnectRequest(endpoint=endpoint_to_message(twin.transfers.endpoint))
        with translated():
            reply = await running.channels.prefill(running.prefill.address).Connect(request)
        assert reply.member_id == running.prefill.node.member_id


async def test_a_large_push_does_not_stop_the_event_loop() -> None:
    """48 MiB in blocks of 1 MiB: while they are sealed, copied and checked, the loop goes on."""
    slot_bytes = (1 << 20) // BLOCK_SIZE
    shape = Shape(num_blocks=52, layout=layout("large", slot_bytes), slot_bytes=slot_bytes, max_step_tokens=512)
    async with cluster(shape=shape) as running:
        running.prefill.faults.plan = scripted(pushes={0: Action.STALL})
        call = begin(running, prompt(192), replace(GREEDY, max_tokens=2))
        await call.read_tokens(1)
        await until(lambda: running.prefill.faults.injected[Action.STALL] == 1)
        ticks = 0
        running.prefill.faults.resume()
        arrival = next(iter(running.decode.arrivals._open.values()))
        while arrival.num_arrived < 48:
            await asyncio.sleep(0)
            ticks += 1
        assert ticks > 10
        await call.finish()
        await running.settled()
