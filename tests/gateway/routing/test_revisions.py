from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cluster.registry import Member, Role
from services.gateway.routing.revisions import Revision, drawn, heaviest, revisions_of, weights
from services.kv.card import ModelCard
from services.rpc.versions import PROTOCOL_VERSION
from tests.gateway.twins import MODEL, card, member

OLD, NEW = card(fingerprint="a" * 64), card(fingerprint="b" * 64)


def group(model: ModelCard, num_decode: int, num_prefill: int, **changes: Any) -> list[Member]:
    name = "old" if model is OLD else "new"
    decoders = [member(f"{name}-d{index}", Role.DECODE, model, **changes) for index in range(num_decode)]
    return decoders + [member(f"{name}-p{index}", Role.PREFILL, model, **changes) for index in range(num_prefill)]


def revisions(*members: Member) -> list[Revision]:
    return revisions_of(members, MODEL, PROTOCOL_VERSION)


@pytest.mark.parametrize(
    ("old", "new", "shares"),
    [
        ((2, 2), (0, 0), [2]),
        ((2, 2), (1, 0), [2, 0]),  # nobody could prefill for the new one
        ((2, 2), (0, 1), [2]),
        ((2, 2), (1, 1), [2, 1]),
        ((4, 2), (4, 1), [2, 1]),
        ((1, 3), (3, 1), [1, 1]),
        ((0, 2), (3, 3), [3]),
        ((2, 0), (1, 0), [2, 1]),  # nobody prefills at all
    ],
)
def test_shares_are_those_of_the_scarcer_role(old: tuple[int, int], new: tuple[int, int], shares: list[int]) -> None:
    assert weights(revisions(*group(OLD, *old), *group(NEW, *new))) == shares


def test_requests_are_drawn_in_proportion_to_the_shares() -> None:
    found = revisions(*group(OLD, 3, 3), *group(NEW, 2, 1))
    random = Random(5)
    counts = Counter(revision.fingerprint for _ in range(4000) if (revision := drawn(found, random)) is not None)
    assert 0.73 < counts[OLD.fingerprint] / 4000 < 0.77
    assert counts.total() == 4000


def test_a_revision_of_no_weight_is_never_drawn() -> None:
    found, random = revisions(*group(OLD, 1, 1), *group(NEW, 9, 0)), Random(5)
    assert {drawn(found, random) for _ in range(100)} == {found[0]}
    assert heaviest(found) == found[0]


def test_with_one_revision_no_luck_is_involved() -> None:
    random = Random(5)
    state = random.getstate()
    assert drawn(revisions(*group(OLD, 1, 1)), random) is not None
    assert drawn([], random) is None
    assert heaviest([]) is None
    assert random.getstate() == state


def test_members_that_leave_do_not_count_unless_nobody_else_decodes() -> None:
    leaving = group(OLD, 2, 2, draining=True)
    [both] = revisions(*leaving, *group(NEW, 1, 1))
    assert both.fingerprint == NEW.fingerprint
    [rest] = revisions(*leaving)
    assert (rest.num_decode, rest.num_prefill) == (2, 0)


def test_members_that_do_not_understand_us_or_serve_another_model_do_not_count() -> None:
    strangers = group(NEW, 2, 2, protocol_version=PROTOCOL_VERSION + 2) + group(NEW, 2, 2, model_name="other")
    older = group(OLD, 1, 1, protocol_version=PROTOCOL_VERSION - 1)
    assert [each.fingerprint for each in revisions(*strangers, *older)] == [OLD.fingerprint]


def test_of_two_cards_with_one_fingerprint_the_more_frequent_one_speaks_for_all() -> None:
    short = replace(OLD, context_length=64)
    members = [member("d1", model=OLD), member("d2", model=short), member("d3", model=short)]
    [revision] = revisions(*members)
    assert (revision.card_digest, revision.num_decode) == (short.digest, 3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(Role), st.booleans()), max_size=12), st.integers())
def test_whatever_is_drawn_has_a_decode_worker(shapes: list[tuple[bool, Role, bool]], seed: int) -> None:
    members = [
        member(f"m{index}", role, OLD if is_old else NEW, draining=draining)
        for index, (is_old, role, draining) in enumerate(shapes)
    ]
    revision = drawn(revisions(*members), Random(seed))
    assert (revision is None) == all(each.role is not Role.DECODE for each in members)
    if revision is not None:
        assert any(each.role is Role.DECODE and each.fingerprint == revision.fingerprint for each in members)
