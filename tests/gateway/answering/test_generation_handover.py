"""A sequence that its worker hands over, gives up or loses goes on elsewhere."""

import pytest

from services.cluster.registry import Role
from services.errors import (
    Overloaded,
    PeerGone,
)
from services.gateway.answering.sequence import Accepted, Ended
from tests.gateway.answering.generating import D1, D2, OUTPUT, Cluster, heard, token_ids
from tests.gateway.twins import Script, member


@pytest.mark.parametrize("hand_over_after", range(len(OUTPUT)))
async def test_a_sequence_that_is_handed_over_goes_on_elsewhere_with_its_kv(hand_over_after: int) -> None:
    cluster = Cluster(member("d1"), member("d2"), max_replays=0)
    cluster.decode.first = [Script(OUTPUT, hand_over_after=hand_over_after, kept_as="req_1")]
    generation = cluster.generation()

    events = await heard(generation)

    assert token_ids(events) == OUTPUT
    assert events.count(Accepted()) == 1
    assert events[-1] == Ended("stop")
    first, second = cluster.decode.addresses
    assert {first, second} == {D1, D2}
    request = cluster.decode.requests[1]
    assert list(request.resumed_output_token_ids) == OUTPUT[:hand_over_after]
    assert (request.kv_source.address, request.kv_source.kept_as) == (first, "req_1")
    assert (generation.num_handovers, generation.replay_codes) == (1, [])
    assert (generation.proof.handovers, generation.proof.replays) == (1, 0)


async def test_a_worker_that_hands_over_is_avoided_but_not_suspected() -> None:
    cluster = Cluster(member("d1"), member("d2"))
    cluster.decode.first = [Script(OUTPUT, hand_over_after=2, kept_as="req_1")]
    await heard(cluster.generation())
    gone = cluster.decode.addresses[0]
    cluster.listed = [each for each in cluster.listed if each.address == gone]

    await heard(cluster.generation())

    assert cluster.services.router._suspects.now() == frozenset()


async def test_the_source_is_named_until_a_worker_takes_the_sequence() -> None:
    cluster = Cluster(member("d1"), member("d2"), member("d3"), member("d4"))
    cluster.decode.first = [
        Script(OUTPUT, hand_over_after=2, kept_as="req_1"),
        Script(refuse=PeerGone("x")),
        Script(OUTPUT, error=PeerGone("x"), fail_after=3),
    ]
    generation = cluster.generation()

    assert token_ids(await heard(generation)) == OUTPUT
    sources = [request.kv_source.address for request in cluster.decode.requests]
    first = cluster.decode.addresses[0]
    assert sources == ["", first, first, ""]
    assert (generation.proof.handovers, generation.proof.replays) == (1, 2)


async def test_without_kept_blocks_it_is_an_ordinary_beginning() -> None:
    cluster = Cluster(member("d1"), member("d2"))
    cluster.decode.first = [Script(OUTPUT, hand_over_after=0)]

    assert token_ids(await heard(cluster.generation())) == OUTPUT
    assert not cluster.decode.requests[1].HasField("kv_source")


async def test_a_sequence_that_was_handed_over_waits_for_a_worker_to_come() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.scripts = {D1: [Script(OUTPUT, hand_over_after=0)]}
    cluster.listed_next = [[member("d1")], *[[]] * 4]
    cluster.listed = [member("d9")]

    assert token_ids(await heard(cluster.generation())) == OUTPUT
    assert cluster.decode.addresses == [D1, "d9:1"]


async def test_a_sequence_handed_over_after_its_last_token_is_over() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.scripts = {D1: [Script(OUTPUT, hand_over_after=5)]}

    events = await heard(cluster.generation())

    assert (token_ids(events), events[-1]) == (OUTPUT, Ended("stop"))
    assert len(cluster.decode.requests) == 1


async def test_a_stream_that_was_given_up_because_its_reader_was_slow_goes_on() -> None:
    cluster = Cluster(member("d1"))
    cluster.decode.first = [Script(OUTPUT, error=Overloaded("too far behind"), fail_after=2)]
    events = await heard(cluster.generation())
    assert token_ids(events) == OUTPUT
    assert [list(request.resumed_output_token_ids) for request in cluster.decode.requests] == [[], [10, 11]]
    assert cluster.services.router._suspects.now() == frozenset()


async def test_a_stream_that_is_given_up_again_and_again_uses_up_its_attempts() -> None:
    cluster = Cluster(member("d1"), max_replays=1)
    cluster.decode.first = [Script(OUTPUT, error=Overloaded("too far behind"), fail_after=count) for count in (1, 2)]
    with pytest.raises(Overloaded, match="too far behind"):
        await heard(cluster.generation())
    assert len(cluster.decode.requests) == 2


@pytest.mark.parametrize(("path", "num_failed"), [("pd", 0), ("pd", 1), ("fallback", 2)])
async def test_prefill_workers_that_failed_are_avoided_at_once(path: str, num_failed: int) -> None:
    cluster = Cluster(member("d1"), *(member(f"p{number}", Role.PREFILL) for number in range(3)))
    cluster.decode.first = [Script(OUTPUT, tell_path=True, path=path, num_failed_prefill=num_failed)]
    await heard(cluster.generation())
    await heard(cluster.generation())

    first, second = ([each.member_id for each in request.prefill_candidates] for request in cluster.decode.requests)
    assert set(first) - set(second) == set(first[:num_failed])
