from dataclasses import replace

import pytest

from services.cluster.registry import Member, Role
from services.gateway.routing.candidates import Requirements, decode_candidates, without
from services.gateway.routing.roster import Roster
from services.rpc.versions import PROTOCOL_VERSION
from tests.gateway.twins import member

WANTED = Requirements("f" * 64, PROTOCOL_VERSION)
DECODE, PREFILL = member("d1"), member("p1", Role.PREFILL)


def test_roles_are_kept_apart() -> None:
    roster = Roster([DECODE, PREFILL])

    assert roster.fitting(Role.DECODE, WANTED) == [DECODE]
    assert roster.fitting(Role.PREFILL, WANTED) == [PREFILL]


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
    roster = Roster([unfit, replace(unfit, role=Role.PREFILL)])

    assert roster.fitting(Role.DECODE, WANTED) == []
    assert roster.fitting(Role.PREFILL, WANTED) == []


def test_suspects_are_taken_only_where_nobody_else_is_left() -> None:
    other = member("d2")

    assert decode_candidates([DECODE, other], avoid=(), suspects={"d1"}) == [other]
    assert decode_candidates([DECODE], avoid=(), suspects={"d1"}) == [DECODE]
    assert without([PREFILL], {"p1"}) == []


def test_who_failed_this_request_is_not_asked_again() -> None:
    assert decode_candidates([DECODE], avoid={"d1"}, suspects=()) == []


@pytest.mark.parametrize("difference", [-1, 0, 1])
def test_workers_of_a_neighbouring_version_are_served(difference: int) -> None:
    older = [replace(each, protocol_version=PROTOCOL_VERSION + difference) for each in (DECODE, PREFILL)]
    roster = Roster(older)

    assert roster.fitting(Role.DECODE, WANTED) == older[:1]
    assert roster.fitting(Role.PREFILL, WANTED) == older[1:]
