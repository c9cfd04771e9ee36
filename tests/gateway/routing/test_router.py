from collections.abc import Sequence
from contextlib import ExitStack
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cluster.registry import Member, MemberLoad, Role
from services.errors import NoDecodeWorker, NoPrefillWorker
from services.gateway.routing.candidates import Requirements
from services.gateway.routing.router import Router, RouteRequest
from services.gateway.routing.suspects import Suspects
from services.rpc.versions import PROTOCOL_VERSION
from services.telemetry.clock import ManualClock
from tests.gateway.twins import member

REQUEST = RouteRequest(Requirements("f" * 64, PROTOCOL_VERSION), num_tokens=100, num_blocks=8)


class Listed:
    def __init__(self, *members: Member) -> None:
        self.listed = members

    def members(self) -> Sequence[Member]:
        return self.listed


def router(*members: Member, clock: ManualClock | None = None, require_prefill: bool = False) -> Router:
    suspects = Suspects(clock or ManualClock(), 5.0)
    return Router(Listed(*members), suspects, Random(3), require_prefill=require_prefill)


def busy(running: int = 0, queued_tokens: int = 0, available: int = 100) -> MemberLoad:
    return MemberLoad(
        running=running,
        queued_tokens=queued_tokens,
        available_blocks=available,
        total_blocks=100,
        prefill_tokens_per_s=1000.0,
    )


def test_the_less_busy_decode_worker_is_taken() -> None:
    route = router(member("d1", load=busy(running=5)), member("d2", load=busy(running=1))).pick(REQUEST)

    assert route.decode.member_id == "d2"


def test_a_nearly_full_pool_weighs_more_than_a_few_sequences() -> None:
    route = router(member("d1", load=busy(running=4)), member("d2", load=busy(available=5))).pick(REQUEST)

    assert route.decode.member_id == "d1"


def test_prefill_workers_are_ranked_by_predicted_wait() -> None:
    workers = [member(f"p{index}", Role.PREFILL, load=busy(queued_tokens=1000 * index)) for index in (3, 1, 2, 0)]

    route = router(member("d1"), *workers).pick(REQUEST)

    assert [each.member_id for each in route.prefill] == ["p0", "p1", "p2"]


def test_requests_of_our_own_are_counted_before_the_worker_reports_them() -> None:
    balanced = router(member("d1"), member("d2"), member("p1", Role.PREFILL), member("p2", Role.PREFILL))
    with ExitStack() as flights:
        routes = []
        for _ in range(8):
            routes.append(balanced.pick(REQUEST))
            flights.enter_context(balanced.flight(routes[-1], 100))

    assert [sum(route.decode.member_id == name for route in routes) for name in ("d1", "d2")] == [4, 4]
    assert [sum(route.prefill[0].member_id == name for route in routes) for name in ("p1", "p2")] == [4, 4]


def test_the_first_token_ends_the_prefill_but_not_the_decode() -> None:
    prefill = member("p1", Role.PREFILL)
    one = router(member("d1"), prefill)
    with one.flight(one.pick(REQUEST), 100) as flight:
        assert one.queued_tokens(prefill) == 100
        flight.prefilled()
        assert one.queued_tokens(prefill) == 0
    assert one.queued_tokens(prefill) == 0


def test_load_from_a_reply_replaces_what_was_published() -> None:
    both = router(member("d1"), member("d2", load=busy(running=2)))
    with both.flight(both.pick(REQUEST), 100) as flight:
        flight.loaded(busy(running=50))

        assert both.pick(REQUEST).decode.member_id == "d2"


def test_a_suspect_is_avoided_until_it_is_trusted_again() -> None:
    clock = ManualClock()
    both = router(member("d1"), member("d2", load=busy(running=50)), clock=clock)
    both.suspect("d1")
    clock.advance(1000.0)
    assert both.pick(REQUEST).decode.member_id == "d2"

    both.trust("d1")

    assert both.pick(REQUEST).decode.member_id == "d1"


def test_nobody_left_is_said() -> None:
    with pytest.raises(NoDecodeWorker):
        router(member("p1", Role.PREFILL)).pick(REQUEST)
    with pytest.raises(NoDecodeWorker):
        router(member("d1")).pick(REQUEST, avoid={"d1"})


def test_prefill_workers_can_be_required() -> None:
    assert router(member("d1")).pick(REQUEST).prefill == ()
    with pytest.raises(NoPrefillWorker):
        router(member("d1"), require_prefill=True).pick(REQUEST)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(list(Role)), st.booleans(), st.booleans(), st.integers(0, 50)), max_size=8),
    st.sets(st.integers(0, 7)),
)
def test_whoever_is_picked_can_take_the_request(shapes: list[tuple[Role, bool, bool, int]], avoided: set[int]) -> None:
    members = [
        member(f"m{index}", role, draining=draining, fingerprint="f" * 64 if fits else "x", load=busy(running))
        for index, (role, draining, fits, running) in enumerate(shapes)
    ]
    avoid = {f"m{index}" for index in avoided}
    able = [
        each
        for each in members
        if each.role is Role.DECODE and not each.draining and each.fingerprint != "x" and each.member_id not in avoid
    ]
    if not able:
        with pytest.raises(NoDecodeWorker):
            router(*members).pick(REQUEST, avoid=avoid)
        return
    route = router(*members).pick(REQUEST, avoid=avoid)

    assert route.decode in able
    assert all(each.role is Role.PREFILL and not each.draining for each in route.prefill)
    assert len(set(route.prefill)) == len(route.prefill) <= 3
