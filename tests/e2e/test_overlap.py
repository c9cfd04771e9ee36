"""KV moves while the next chunk computes, and moving it does not keep anybody waiting."""

import asyncio
import time
from collections.abc import Sequence

import pytest

from services.transfer.loop import TransferThread
from services.transfer.transport import BlockPair, Endpoint, PushId, TransferEvent, Transport
from tests.e2e.conftest import MAX_STEP_TOKENS
from tests.e2e.harness import Ask, Pair, greedy
from tests.e2e.processes import attempt_at
from tests.transfer.harness import harness

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(900)]
NUM_CHUNKS = 6
NUM_PUSHES = 8
NUM_BLOCKS, BLOCK_BYTES = 128, 384 << 10
"""48 MiB: about 2,000 tokens of the default model."""
TIMEOUT_S = 60.0


async def test_a_chunk_is_computed_while_the_one_before_is_on_its_way(bfloat16_pair: Pair) -> None:
    prompts = await bfloat16_pair.cluster.prompts()
    ask = Ask(prompts.ids(NUM_CHUNKS * MAX_STEP_TOKENS, seed=77), greedy(1), request_id="overlap", project="overlap")
    answer = await bfloat16_pair.away(ask)
    assert answer.proof.transferred_tokens == len(ask.prompt)
    settled = await bfloat16_pair.prefill.wait_event("prefill.settled", request_id=attempt_at(ask.request_id))
    assert settled["pushes"] == NUM_CHUNKS
    assert settled["blocks"] == len(ask.prompt) // 16
    assert settled["failed"] is False
    assert settled["overlapped"] > 0, settled


class TimedTransport:
    """Notes when each post began and ended; its time is spent on the transfer thread."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.posts: list[tuple[float, float]] = []

    def endpoint(self) -> Endpoint:
        return self._transport.endpoint()

    def connect(self, peer: Endpoint) -> None:
        self._transport.connect(peer)

    def push(self, agent: str, blocks: Sequence[BlockPair], notice: bytes) -> PushId:
        began_s = time.monotonic()
        push = self._transport.push(agent, blocks, notice)
        self.posts.append((began_s, time.monotonic()))
        return push

    def poll(self) -> Sequence[TransferEvent]:
        return self._transport.poll()

    def close(self) -> None:
        self._transport.close()


async def test_a_push_of_48_mib_does_not_stop_the_event_loop() -> None:
    """On one host the bytes are copied inside the posting call: the loop has to turn during that call."""
    with harness("nixl") as opened:
        side = opened.open(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)
        peer = opened.peer(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)
        timed = TimedTransport(side.transport)
        transfers = TransferThread(timed, on_notice=lambda agent, notice: None)
        transfers.start()
        try:
            await transfers.connect(peer.endpoint, TIMEOUT_S)
            turns = [turn for _ in range(NUM_PUSHES) for turn in await _turns_during_push(transfers, peer.endpoint)]
        finally:
            await transfers.close(TIMEOUT_S)
    during = [sum(began_s < turn < ended_s for turn in turns) for began_s, ended_s in timed.posts]
    assert len(during) == NUM_PUSHES
    assert sum(turns > 0 for turns in during) > NUM_PUSHES // 2


async def _turns_during_push(transfers: TransferThread, peer: Endpoint) -> list[float]:
    pairs = [BlockPair(index, index) for index in range(NUM_BLOCKS)]
    pushing = asyncio.create_task(transfers.push(peer.agent, pairs, b"48 MiB", key="push", timeout_s=TIMEOUT_S))
    turns = []
    while not pushing.done():
        turns.append(time.monotonic())
        await asyncio.sleep(0)
    await pushing
    return turns
