"""A worker that has blocks, as those who ask for them see it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from services.errors import IncompatiblePeer, InvalidRequest, Overloaded, PeerGone, StaleEpoch
from services.faults.plan import Action
from services.kv.digests import payload_digest
from services.kv.hashes import block_hashes, cache_seed
from services.rpc import tandem_pb2 as pb
from services.rpc.errors import translated
from services.worker.convert import endpoint_to_message
from tests.inprocess.client import begin, generate, prompt
from tests.inprocess.cluster import Cluster, Shape, Worker, cluster, until
from tests.inprocess.faults import scripted
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S, layout
from tests.prefill.decode_twin import NUM_BLOCKS, DecodeTwin, decode_twin

ALL_STALLED = scripted(pushes=dict.fromkeys(range(99), Action.STALL))
LARGE = Shape(num_blocks=128, max_step_tokens=64)
"""Room for a prompt that moves in several pushes."""


def names(token_ids: Sequence[int], project: str = "") -> list[bytes]:
    return block_hashes(cache_seed(layout().fingerprint, project), token_ids, BLOCK_SIZE)


class FetchCall:
    """One Fetch call, into the blocks of the same index at the twin."""

    def __init__(self, twin: DecodeTwin, worker: Worker, hashes: Sequence[bytes], **fields: Any) -> None:
        target = pb.KVTarget(
            endpoint=endpoint_to_message(twin.transfers.endpoint),
            epoch=fields.pop("epoch", 1),
            first_block=fields.pop("first_block", 0),
            block_ids=range(len(hashes)),
        )
        target.endpoint.fingerprint = fields.pop("fingerprint", target.endpoint.fingerprint)
        values: dict[str, Any] = {
            "request_id": "request",
            "member_id": worker.node.member_id,
            "block_hashes": hashes,
            "target": target,
            **fields,
        }
        self.request = pb.FetchRequest(**values)
        self.events: list[pb.FetchEvent] = []
        self.call = twin.cluster.channels.kv(worker.address).Fetch(self.request, timeout=DEADLINE_S)

    async def finish(self) -> list[tuple[str, int]]:
        """Read to the end; return the kind of each event and its number of blocks."""
        with translated():
            async for event in self.call:
                self.events.append(event)
        kinds = [str(event.WhichOneof("event")) for event in self.events]
        return [(kind, getattr(event, kind).blocks) for kind, event in zip(kinds, self.events, strict=True)]


async def settle(twin: DecodeTwin, worker: Worker, call: FetchCall) -> pb.SettleReply:
    request = pb.SettleRequest(
        request_id=call.request.request_id, epoch=call.request.target.epoch, member_id=worker.node.member_id
    )
    with translated():
        return await twin.cluster.channels.kv(worker.address).Settle(request, timeout=DEADLINE_S)


async def num_leased(running: Cluster) -> int:
    return (await running.decode.ledger()).leased


class TestFetch:
    async def test_the_longest_run_that_is_here_is_pushed_with_tokens_and_bytes_named(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            await generate(running, prompt(30))
            wanted = names([*prompt(28), *prompt(12, seed=9)])
            assert await FetchCall(twin, running.decode, wanted).finish() == [("found", 7), ("pushed", 7)]
            await until(lambda: len(twin.notices) == 1)
            [notice] = twin.notices
            assert (notice.first_block, list(notice.token_digests)) == (0, wanted[:7])
            assert list(notice.payload_digests) == [payload_digest(twin.memory.block(index)) for index in range(7)]
            await running.settled()

    async def test_a_part_of_a_sequence_lands_where_it_belongs(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            await generate(running, prompt(30))
            call = FetchCall(twin, running.decode, names(prompt(30))[3:], first_block=3)
            assert await call.finish() == [("found", 4), ("pushed", 4)]
            await until(lambda: twin.ranges == [(3, 7)])

    async def test_many_blocks_go_out_in_several_pushes(self) -> None:
        async with cluster(shape=LARGE) as running, decode_twin(running) as twin:
            token_ids = prompt(BLOCK_SIZE * NUM_BLOCKS)
            await generate(running, token_ids)
            call = FetchCall(twin, running.decode, names(token_ids))
            assert await call.finish() == [("found", 64), ("progress", 32), ("pushed", 64)]
            await until(lambda: twin.ranges == [(0, 32), (32, 64)])
            await running.settled()

    async def test_blocks_that_a_running_sequence_uses_are_pushed_too(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            running.decode.model.gate.close()
            call = begin(running, prompt(30))
            await call.read_tokens(1)
            running.decode.model.gate.allow(6)
            await call.read_tokens(7)
            known = [*prompt(30), *call.answer.ids]
            await until(lambda: running.decode.model.gate.holds_a_step)
            fetching = asyncio.create_task(FetchCall(twin, running.decode, names(known)).finish())
            await until(lambda: running.decode.node.engine._inbox.qsize())
            running.decode.model.gate.open()
            assert await fetching == [("found", 9), ("pushed", 9)]
            await call.finish()
            await running.settled()

    async def test_calls_beyond_those_that_may_run_and_wait_are_refused_before_anything_is_posted(self) -> None:
        async with (
            cluster(shape=Shape(max_running=1), decode={"max_waiting": 1}) as running,
            decode_twin(running) as twin,
        ):
            await generate(running, prompt(30))
            running.decode.faults.plan = ALL_STALLED
            before = running.decode.faults.num_pushes
            calls = [
                asyncio.create_task(FetchCall(twin, running.decode, names(prompt(30)), epoch=epoch).finish())
                for epoch in (1, 2)
            ]
            await until(lambda: running.decode.faults.num_pushes == before + 2)
            third = FetchCall(twin, running.decode, names(prompt(30)), epoch=3)
            with pytest.raises(Overloaded) as refused:
                await third.finish()
            assert refused.value.retry_after_s == 1.0
            assert not (await settle(twin, running.decode, third)).anything_posted
            running.decode.faults.resume()
            await asyncio.gather(*calls)
            await running.settled()

    @pytest.mark.parametrize("hashes", [names(prompt(30, seed=5)), names(prompt(30), "other"), [b"?"], []])
    async def test_what_is_not_here_is_said_and_nothing_posted(self, hashes: list[bytes]) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            await generate(running, prompt(30))
            call = FetchCall(twin, running.decode, hashes)
            assert await call.finish() == [("found", 0), ("pushed", 0)]
            assert not (await settle(twin, running.decode, call)).anything_posted
            assert not twin.notices

    async def test_a_worker_that_leaves_still_answers(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            await generate(running, prompt(30))
            running.decode.node.is_draining = True
            assert await FetchCall(twin, running.decode, names(prompt(30))).finish() == [("found", 7), ("pushed", 7)]

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"member_id": "decode-earlier"}, IncompatiblePeer),
            ({"block_hashes": [b"1", b"2"]}, InvalidRequest),
        ],
    )
    async def test_a_wrong_request_is_refused(self, fields: dict[str, Any], error: type[Exception]) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            with pytest.raises(error):
                await FetchCall(twin, running.decode, names(prompt(30)), **fields).finish()
            await running.settled()

    async def test_another_layout_is_refused_before_any_byte(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            await generate(running, prompt(30))
            call = FetchCall(twin, running.decode, names(prompt(30)), fingerprint="another")
            with pytest.raises(IncompatiblePeer):
                await call.finish()
            assert not running.decode.faults.num_pushes

    async def test_a_peer_that_is_gone_fails_it_and_leaves_nothing(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            await generate(running, prompt(30))
            await twin.transfers.close(DEADLINE_S)
            with pytest.raises(PeerGone):
                await FetchCall(twin, running.decode, names(prompt(30))).finish()
            await running.settled()


class TestLeaving:
    async def test_cancelling_gives_back_what_no_push_reads(self) -> None:
        async with cluster(shape=LARGE) as running, decode_twin(running) as twin:
            token_ids = prompt(BLOCK_SIZE * NUM_BLOCKS)
            await generate(running, token_ids)
            running.decode.faults.plan = ALL_STALLED
            call = FetchCall(twin, running.decode, names(token_ids))
            await until(lambda: running.decode.faults.injected[Action.STALL] == 1)
            assert await num_leased(running) == 64
            call.call.cancel()
            await until(lambda: not running.decode.node.engine._streams)
            assert await num_leased(running) == 32  # the push that was posted cannot be called back
            running.decode.faults.resume()
            await running.settled()

    async def test_settling_waits_for_what_is_outstanding_and_lets_nothing_more_be_posted(self) -> None:
        async with cluster(shape=LARGE) as running, decode_twin(running) as twin:
            token_ids = prompt(BLOCK_SIZE * NUM_BLOCKS)
            await generate(running, token_ids)
            running.decode.faults.plan = ALL_STALLED
            call = FetchCall(twin, running.decode, names(token_ids))
            await until(lambda: running.decode.faults.injected[Action.STALL] == 1)
            settling = asyncio.create_task(settle(twin, running.decode, call))
            [outgoing] = running.decode.moving.exporter._live.values()
            await until(lambda: outgoing._is_closed)  # the question has arrived
            assert not settling.done() and not twin.notices
            running.decode.faults.resume()
            assert (await settling).anything_posted
            with pytest.raises(StaleEpoch):
                await call.finish()
            await until(lambda: twin.notices)
            assert twin.ranges == [(0, 32)]
            await running.settled()

    async def test_an_attempt_that_is_over_does_not_begin_again(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            await generate(running, prompt(30))
            call = FetchCall(twin, running.decode, names(prompt(30)))
            await call.finish()
            assert (await settle(twin, running.decode, call)).anything_posted
            with pytest.raises(StaleEpoch):
                await FetchCall(twin, running.decode, names(prompt(30))).finish()
            assert not (await settle(twin, running.decode, FetchCall(twin, running.decode, [], epoch=5))).push_failed

    async def test_a_failed_push_is_told(self) -> None:
        async with cluster() as running, decode_twin(running) as twin:
            await generate(running, prompt(30))
            running.decode.faults.plan = scripted(pushes={0: Action.DROP})
            call = FetchCall(twin, running.decode, names(prompt(30)))
            with pytest.raises(PeerGone):
                await call.finish()
            assert (await settle(twin, running.decode, call)).push_failed
            await running.settled()
