import asyncio
from contextlib import aclosing

import pytest

from services.cluster.registry import MemberLoad, Role
from services.errors import (
    DeadlineExceeded,
    Draining,
    IncompatiblePeer,
    IntegrityError,
    InternalError,
    InvalidRequest,
    NoDecodeWorker,
    NoPrefillWorker,
    Overloaded,
    PeerGone,
    PeerStalled,
    TandemError,
    TokenDivergence,
)
from services.gateway.answering.sequence import Accepted, Ended, NewTokens
from services.kv.hashes import block_hashes, cache_seed
from services.rpc import tandem_pb2 as pb
from tests.gateway.answering.generating import D1, D2, OUTPUT, Cluster, heard, token_ids
from tests.gateway.twins import Script, member


async def test_tokens_come_in_order_between_acceptance_and_end() -> None:
    cluster = Cluster(member("d1"), member("p1", Role.PREFILL))
    generation = cluster.generation()

    events = await heard(generation)

    assert events[0] == Accepted()
    assert token_ids(events) == OUTPUT
    assert events[-1] == Ended("stop")


async def test_the_decode_worker_is_told_everything() -> None:
    cluster = Cluster(member("d1"), member("p1", Role.PREFILL), require_prefill=True)

    await heard(cluster.generation())

    [request] = cluster.decode.requests
    assert list(request.prompt_token_ids) == [1, 2, 3]
    assert list(request.resumed_output_token_ids) == []
    assert [each.member_id for each in request.prefill_candidates] == ["p1"]
    assert (request.project, request.sampling.seed, request.require_prefill) == ("team", 7, True)
    assert request.fingerprint == "f" * 64
    assert 0 < request.timeout_s <= 60


async def test_the_proof_has_the_gateways_own_times() -> None:
    generation = Cluster(member("d1")).generation()
    await heard(generation)

    assert generation.proof.path == "pd"
    assert list(generation.proof.to_json()["timings_ms"]) == ["gateway", "route", "reserve", "prefill", "first_token"]


@pytest.mark.parametrize("error", [PeerGone("x"), PeerStalled("x"), InternalError("x"), IncompatiblePeer("x")])
@pytest.mark.parametrize("fail_after", range(len(OUTPUT) + 1))
async def test_a_lost_worker_is_replaced_wherever_it_is_lost(error: TandemError, fail_after: int) -> None:
    cluster = Cluster(member("d1"), member("d2"))
    cluster.decode.first = [Script(OUTPUT, error=error, fail_after=fail_after)]
    generation = cluster.generation()

    events = await heard(generation)

    assert token_ids(events) == OUTPUT
    assert events.count(Accepted()) == 1
    assert events[-1] == Ended("stop")
    assert [list(request.resumed_output_token_ids) for request in cluster.decode.requests[1:]] in (
        [OUTPUT[:fail_after]],
        [],  # the worker was lost after its last token
    )
    assert len(set(cluster.decode.addresses)) == len(cluster.decode.addresses)
    assert generation.proof.replays == 1
    assert generation.replay_codes == [error.code]


async def test_each_attempt_has_its_own_name() -> None:
    cluster = Cluster(member("d1"), member("d2"))
    cluster.decode.scripts = {D1: [Script(refuse=PeerGone("x"))], D2: [Script(refuse=PeerGone("x"))]}
    cluster.listed = [*cluster.listed, member("d3")]

    await heard(cluster.generation())

    names = [request.request_id for request in cluster.decode.requests]
    assert len(set(names)) == len(names)


async def test_the_end_is_known_even_if_the_worker_is_lost_before_saying_it() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.scripts = {D1: [Script(OUTPUT, error=PeerGone("x"), fail_after=3)]}

    events = await heard(cluster.generation(max_tokens=3))

    assert events[-1] == Ended("length")
    assert len(cluster.decode.requests) == 1


async def test_a_stalled_worker_is_replaced() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.scripts = {D1: [Script(OUTPUT, hang_after=2)]}
    cluster.listed = [member("d1")]

    events = await heard(cluster.generation())

    assert token_ids(events) == OUTPUT
    assert cluster.decode.num_closed == 2


async def test_a_stream_that_began_waits_for_a_new_worker() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.scripts = {D1: [Script(OUTPUT, error=PeerGone("x"), fail_after=2)]}
    cluster.listed_next = [[member("d1")], *[[]] * 4]
    cluster.listed = [member("d9")]

    assert token_ids(await heard(cluster.generation())) == OUTPUT
    assert cluster.decode.addresses == [D1, "d9:1"]


async def test_a_request_without_any_token_is_told_at_once_that_nobody_is_left() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.scripts = {D1: [Script(refuse=PeerGone("x"))]}

    with pytest.raises(NoDecodeWorker):
        await heard(cluster.generation())
    assert len(cluster.decode.requests) == 1


async def test_replays_are_bounded() -> None:
    cluster = Cluster(member("d1"), member("d2"), max_replays=2)
    cluster.decode.default = Script(OUTPUT, error=PeerGone("again"), fail_after=1)

    with pytest.raises(PeerGone):
        await heard(cluster.generation())
    assert len(cluster.decode.requests) == 3


async def test_a_full_worker_refuses_and_the_next_is_taken() -> None:
    cluster = Cluster(member("d1"), member("d2"))
    cluster.decode.scripts = {D1: [Script(refuse=Overloaded("full"))], D2: [Script(refuse=Draining("leaving"))]}
    cluster.listed = [*cluster.listed, member("d3")]
    generation = cluster.generation()

    assert token_ids(await heard(generation)) == OUTPUT
    assert generation.proof.replays == 0


async def test_a_leaving_worker_is_not_suspected_and_gives_what_it_has_cached() -> None:
    cluster = Cluster(member("d1"), member("d2"))
    prompt = range(160)
    names = block_hashes(cache_seed("f" * 64, "team"), prompt, 16)
    cluster.prefixes.update("d1", added=names, removed=())
    cluster.decode.scripts = {D1: [Script(refuse=Draining("leaving"))]}

    assert token_ids(await heard(cluster.generation(prompt=prompt))) == OUTPUT
    refused, taken = cluster.decode.requests
    assert (refused.HasField("kv_source"), taken.kv_source.member_id) == (False, "d1")
    assert cluster.services.router._suspects.now() == frozenset()


async def test_when_all_are_full_the_request_waits_for_room() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.scripts = {D1: [Script(refuse=Overloaded("full"))] * 4}

    assert token_ids(await heard(cluster.generation())) == OUTPUT
    assert len(cluster.decode.requests) == 5


async def test_waiting_for_room_is_bounded() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.default = Script(refuse=Overloaded("full", retry_after_s=3))
    started_s = cluster.clock.now()

    with pytest.raises(Overloaded) as caught:
        await heard(cluster.generation())

    assert caught.value.retry_after_s == 3
    assert cluster.clock.now() - started_s <= 20


@pytest.mark.parametrize("position", range(len(OUTPUT)))
async def test_a_lost_message_is_noticed_and_the_sequence_replayed(position: int) -> None:
    cluster = Cluster(member("d1"), member("d2"))
    cluster.decode.first = [Script(OUTPUT, lost=frozenset({position}))]
    generation = cluster.generation()

    assert token_ids(await heard(generation)) == OUTPUT
    assert generation.replay_codes == [IntegrityError.code]


@pytest.mark.parametrize("step", [1, 2])
async def test_a_message_that_comes_twice_is_heard_once(step: int) -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.first = [Script(OUTPUT, step=step, repeated=frozenset(range(len(OUTPUT))))]
    generation = cluster.generation()

    assert token_ids(await heard(generation)) == OUTPUT
    assert generation.proof.replays == 0


async def test_what_is_in_doubt_is_not_continued() -> None:
    cluster = Cluster(member("d1"), member("d2"))
    cluster.decode.first = [Script(OUTPUT, error=TokenDivergence("another token"), fail_after=1)]

    with pytest.raises(TokenDivergence):
        await heard(cluster.generation())
    assert len(cluster.decode.requests) == 1


@pytest.mark.parametrize("error", [InvalidRequest("bad"), NoPrefillWorker("none"), DeadlineExceeded("late")])
async def test_what_another_worker_would_say_too_is_final(error: TandemError) -> None:
    cluster = Cluster(member("d1"), member("d2"))
    cluster.decode.default = Script(refuse=error)

    with pytest.raises(type(error)):
        await heard(cluster.generation())
    assert len(cluster.decode.requests) == 1


async def test_the_deadline_of_the_request_ends_it() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.default = Script(OUTPUT, hang_after=1)

    with pytest.raises(DeadlineExceeded):
        await heard(cluster.generation(timeout_s=0.01))
    assert len(cluster.decode.requests) == 1


async def test_closing_cancels_the_sequence_on_the_worker() -> None:
    cluster = Cluster(member("d1"))
    generation = cluster.generation()
    async with aclosing(generation.events()) as events:
        async for event in events:
            if isinstance(event, NewTokens):
                break

    assert cluster.decode.num_closed == 1
    assert generation.proof.path == "unknown"


async def test_an_answer_that_ends_early_has_its_proof_if_the_worker_told_the_way() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.default = Script(OUTPUT, tell_path=True)
    generation = cluster.generation()
    async with aclosing(generation.events()) as events:
        async for event in events:
            if isinstance(event, NewTokens):
                break

    assert (generation.proof.path, generation.proof.kv_bytes) == ("pd", 4096)


async def test_cancelling_the_caller_ends_the_call() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.default = Script(OUTPUT, hang_after=1)
    task = asyncio.create_task(heard(cluster.generation()))
    await cluster.decode.hanging.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert cluster.decode.num_closed == 1


async def test_an_end_without_a_reason_is_a_defect() -> None:
    cluster = Cluster(member("d1"), max_replays=0)
    cluster.decode.default = Script([10], reason=pb.FINISH_REASON_UNSPECIFIED)

    with pytest.raises(InternalError):
        await heard(cluster.generation())


async def test_the_decode_worker_is_told_how_busy_and_how_fast_each_prefill_worker_is() -> None:
    load = MemberLoad(queued_tokens=700, prefill_tokens_per_s=1234.5)
    cluster = Cluster(member("d1"), member("p1", Role.PREFILL, load=load))
    await heard(cluster.generation())

    [candidate] = cluster.decode.requests[0].prefill_candidates
    assert (candidate.member_id, candidate.address) == ("p1", "p1:1")
    assert candidate.queued_tokens >= 700
    assert candidate.prefill_tokens_per_s == 1234.5
