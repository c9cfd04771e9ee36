from dataclasses import replace

import pytest

from services.cluster.registry import Member, Role
from services.gateway.routing.candidates import Requirements, decode_candidates, prefill_candidates
from services.rpc.versions import PROTOCOL_VERSION
from tests.gateway.twins import member

WANTED = Requirements("f" * 64, PROTOCOL_VERSION)
DECODE, PREFILL = member("d1"), member("p1", Role.PREFILL)


def test_roles_are_kept_apart() -> None:
    assert decode_candidates([DECODE, PREFILL], WANTED, avoid=(), suspects=()) == [DECODE]
    assert prefill_candidates([DECODE, PREFILL], WANTED, suspects=()) == [PREFILL]


@pytest.mark.parametrize(
    "unfit",
    [
        replace(DECODE, draining=True),
        replace(DECODE, fingerprint="other"),
        replace(DECODE, protocol_version=PROTOCOL_VERSION + 2),
        replace(DECODE, protocol_version=PROTOCOL_VERSION - 2),
    ],
)
def test_members_that_cannot_take_the_request_are_left_out(unfit: Member) -> None:
    assert decode_candidates([unfit], WANTED, avoid=(), suspects=()) == []
    assert prefill_candidates([replace(unfit, role=Role.PREFILL)], WANTED, suspects=()) == []


def test_suspects_are_taken_only_where_nobody_else_is_left() -> None:
    other = member("d2")

    assert decode_candidates([DECODE, other], WANTED, avoid=(), suspects={"d1"}) == [other]
    assert decode_candidates([DECODE], WANTED, avoid=(), suspects={"d1"}) == [DECODE]
    assert prefill_candidates([PREFILL], WANTED, suspects={"p1"}) == []


def test_who_failed_this_request_is_not_asked_again() -> None:
    assert decode_candidates([DECODE], WANTED, avoid={"d1"}, suspects=()) == []


@pytest.mark.parametrize("difference", [-1, 0, 1])
def test_workers_of_a_neighbouring_version_are_served(difference: int) -> None:
    older = [replace(each, protocol_version=PROTOCOL_VERSION + difference) for each in (DECODE, PREFILL)]
    assert decode_candidates(older, WANTED, avoid=(), suspects=()) == older[:1]
    assert prefill_candidates(older, WANTED, suspects=()) == older[1:]
