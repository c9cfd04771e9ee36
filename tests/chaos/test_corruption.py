"""One flipped bit in any block, one stale epoch, one swapped block: never a wrong answer, always counted."""

import asyncio

import pytest

from services.engine.request import AttemptKey
from services.errors import PayloadDigestMismatch, TokenDigestMismatch
from services.faults.plan import Action
from services.kv.sampling import SamplingParams
from services.transfer.transport import BlockPair
from services.worker.notice import Notice
from tests.inprocess.client import GREEDY, SEEDED, begin, expected_ids, generate, prompt
from tests.inprocess.cluster import Cluster, Shape, cluster, until
from tests.inprocess.faults import scripted
from tests.inprocess.hash_model import BLOCK_SIZE, DEADLINE_S

PROMPT = prompt(30)
NUM_BLOCKS = -(-len(PROMPT) // BLOCK_SIZE)
ONE_BLOCK_A_PUSH = Shape(max_step_tokens=BLOCK_SIZE)
SAMPLINGS = pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])


def refused(running: Cluster) -> dict[str, int]:
    counted = running.decode.counted
    kinds = {
        kind.code: counted("integrity_failures", kind=kind.code)
        for kind in (PayloadDigestMismatch, TokenDigestMismatch)
    }
    return {**kinds, "stale": counted("stale_notices")}


def only(**counts: int) -> dict[str, int]:
    return {PayloadDigestMismatch.code: 0, TokenDigestMismatch.code: 0, "stale": 0, **counts}


@SAMPLINGS
@pytest.mark.parametrize("block", range(NUM_BLOCKS))
async def test_a_flipped_bit_in_any_block_is_computed_again(block: int, params: SamplingParams) -> None:
    async with cluster(shape=ONE_BLOCK_A_PUSH) as running:
        running.prefill.faults.plan = scripted(pushes={block: Action.CORRUPT})
        answer = await generate(running, PROMPT, params)
        assert running.prefill.faults.injected == {Action.CORRUPT: 1}
        assert (answer.proof.path, answer.proof.reason) == ("fallback", PayloadDigestMismatch.code)
        assert answer.ids == expected_ids(PROMPT, params)
        await running.settled()
        counts = refused(running)
        assert counts[PayloadDigestMismatch.code] == 1
        assert counts[TokenDigestMismatch.code] == 0


@SAMPLINGS
@pytest.mark.parametrize("push", range(3))
async def test_two_swapped_blocks_are_computed_by_the_next_candidate(push: int, params: SamplingParams) -> None:
    async with cluster(prefills=2) as running:
        running.prefill.faults.plan = scripted(pushes={push: Action.SWAP})
        answer = await generate(running, PROMPT, params)
        assert running.prefill.faults.injected == {Action.SWAP: 1}
        assert (answer.proof.path, answer.proof.prefill) == ("pd", running.prefills[1].node.member_id)
        assert answer.ids == expected_ids(PROMPT, params)
        await running.settled()
        assert refused(running)[PayloadDigestMismatch.code] == 1


@SAMPLINGS
async def test_a_stale_epoch_is_counted_and_the_attempt_goes_on(params: SamplingParams) -> None:
    async with cluster() as running:
        running.prefill.model.gate.close()
        call = begin(running, PROMPT, params)
        await until(lambda: running.prefill.model.gate.num_waiting)
        (attempt,) = running.decode.arrivals._open
        await push_a_lie(running, AttemptKey(attempt.request_id, attempt.epoch ^ 1), token_digest=bytes(16))
        await until(lambda: refused(running)["stale"])
        running.prefill.model.gate.open()
        answer = await call.finish()
        assert (answer.proof.path, answer.ids) == ("pd", expected_ids(PROMPT, params))
        await running.settled()
        assert refused(running) == only(stale=1)


async def test_blocks_of_other_tokens_are_refused_and_computed_here() -> None:
    async with cluster() as running:
        running.prefill.model.gate.close()
        call = begin(running, PROMPT)
        await until(lambda: running.prefill.model.gate.num_waiting)
        (attempt,) = running.decode.arrivals._open
        await push_a_lie(running, attempt, token_digest=bytes(16))
        await until(lambda: refused(running)[TokenDigestMismatch.code])
        running.prefill.model.gate.open()
        answer = await call.finish()
        assert (answer.proof.path, answer.proof.reason) == ("fallback", TokenDigestMismatch.code)
        assert answer.ids == expected_ids(PROMPT)
        await running.settled()
        assert refused(running)[TokenDigestMismatch.code] == 1


async def push_a_lie(running: Cluster, attempt: AttemptKey, *, token_digest: bytes) -> None:
    """Let the prefill worker write a block to a place that no request uses, and say that it is ``attempt``'s."""
    sender, receiver = running.prefill.node, running.decode.node
    notice = Notice(attempt, 0, (token_digest,), sender.sealer.digests([0]))
    unused = Shape().num_blocks
    async with asyncio.timeout(DEADLINE_S):
        await sender.transfers.connect(receiver.transfers.endpoint, timeout_s=DEADLINE_S)
        await sender.transfers.push(
            receiver.transfers.endpoint.agent,
            [BlockPair(0, unused)],
            notice.to_bytes(),
            key="a lie",
            timeout_s=DEADLINE_S,
        )
