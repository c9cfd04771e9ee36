"""A prefill worker that lacks the beginning of a prompt gets it from the decode worker that has it."""

from dataclasses import replace

from services.faults.plan import Action
from tests.inprocess.client import GREEDY, begin, expected, generate, prompt
from tests.inprocess.cluster import Cluster, Shape, cluster, until
from tests.inprocess.faults import scripted

FIRST = prompt(40)
SECOND = [*FIRST, *prompt(30, seed=3)]


async def first_turn(running: Cluster) -> None:
    """Let the decode worker have ``FIRST`` in its cache, and no prefill worker any of it."""
    await begin(running, FIRST, replace(GREEDY, max_tokens=2), candidates=[]).finish()


async def test_what_the_decode_worker_has_is_fetched_and_not_computed_again() -> None:
    async with cluster() as running:
        await first_turn(running)
        answer = await generate(running, SECOND)
        assert answer.tokens == expected(SECOND)
        assert (answer.proof.path, answer.proof.cached_tokens, answer.proof.prefill_cached_tokens) == ("pd", 40, 40)
        assert running.prefill.model.num_computed_tokens == 30
        assert running.prefill.counted("kv_fetches", outcome="arrived") == 1
        await running.settled()


async def test_what_is_here_already_is_not_fetched() -> None:
    async with cluster() as running:
        await generate(running, FIRST, replace(GREEDY, max_tokens=2))
        answer = await generate(running, SECOND)
        assert answer.tokens == expected(SECOND)
        assert answer.proof.prefill_cached_tokens == 40
        assert running.decode.counted("transferred_blocks", transport="inproc", direction="sent") == 0
        await running.settled()


async def test_little_is_not_worth_the_way() -> None:
    async with cluster(prefill={"min_fetch_tokens": 41}) as running:
        await first_turn(running)
        answer = await generate(running, SECOND)
        assert answer.tokens == expected(SECOND)
        assert running.prefill.model.num_computed_tokens == 70
        await running.settled()


async def test_a_push_that_fails_costs_only_time() -> None:
    async with cluster() as running:
        await first_turn(running)
        running.decode.faults.plan = scripted(pushes={0: Action.DROP})
        answer = await generate(running, SECOND)
        assert answer.tokens == expected(SECOND)
        assert (answer.proof.path, answer.proof.prefill_cached_tokens) == ("pd", 0)
        assert running.prefill.model.num_computed_tokens == 70
        await running.settled()


async def test_a_corrupt_block_is_never_used() -> None:
    async with cluster() as running:
        await first_turn(running)
        running.decode.faults.plan = scripted(pushes={0: Action.CORRUPT})
        answer = await generate(running, SECOND)
        assert answer.tokens == expected(SECOND)
        assert running.prefill.model.num_computed_tokens == 70
        assert running.prefill.counted("integrity_failures", kind="payload_digest_mismatch") == 1
        await running.settled()


async def test_without_room_the_prompt_is_computed_as_if_nobody_had_anything() -> None:
    async with cluster() as running:
        await first_turn(running)
        small = await running.add_prefill(Shape(num_blocks=24, max_running=1))
        small.model.gate.close()
        held = begin(running, prompt(40, seed=9), candidates=[small])
        await held.read_until("accepted")
        asked = begin(running, SECOND, candidates=[small])
        await asked.read_until("accepted")
        small.model.gate.open()
        assert (await asked.finish()).tokens == expected(SECOND)
        assert (await held.finish()).tokens == expected(prompt(40, seed=9))
        await running.settled()


async def test_a_cancel_while_blocks_are_reserved_leaves_none_of_them() -> None:
    async with cluster() as running:
        await first_turn(running)
        running.prefill.model.gate.close()
        held = begin(running, prompt(30, seed=9))
        await held.read_until("accepted")
        await until(lambda: running.prefill.model.gate.num_waiting)
        asked = begin(running, SECOND)
        await asked.read_until("accepted")
        await until(lambda: running.prefill.servicer.num_live == 2)
        await until(lambda: len(running.prefill.node.engine._pending) == 1)
        asked.cancel()
        await until(lambda: not running.prefill.node.engine._pending)
        running.prefill.model.gate.open()
        assert (await held.finish()).tokens == expected(prompt(30, seed=9))
        await running.settled()
