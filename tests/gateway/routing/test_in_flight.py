from hypothesis import given, settings
from hypothesis import strategies as st

from services.cluster.registry import MemberLoad
from services.gateway.routing.in_flight import InFlight


def test_a_report_includes_what_was_sent_before_it() -> None:
    accounts = InFlight()
    accounts.started("d1", 10)
    accounts.reported("d1", MemberLoad(running=4, queued_tokens=10))
    assert accounts.estimate("d1").requests == 4

    accounts.started("d1", 10)

    assert (accounts.estimate("d1").requests, accounts.estimate("d1").queued_tokens) == (5, 20)


def test_the_same_publication_again_says_nothing_new() -> None:
    accounts = InFlight()
    load = MemberLoad(running=1)
    accounts.published("d1", load)
    accounts.reported("d1", MemberLoad(running=9))
    accounts.published("d1", load)

    assert accounts.estimate("d1").requests == 9


def test_members_with_open_requests_are_not_forgotten() -> None:
    accounts = InFlight()
    accounts.started("d1", 0)
    accounts.keep_only(set())
    assert accounts.estimate("d1").requests == 1

    accounts.ended("d1")
    accounts.keep_only(set())

    assert accounts.estimate("d1").requests == 0


@settings(deadline=None)
@given(st.lists(st.one_of(st.just("start"), st.just("end"), st.integers(0, 9)), max_size=30))
def test_an_estimate_is_never_less_than_our_own(actions: list[str | int]) -> None:
    accounts, own = InFlight(), 0
    for action in actions:
        if action == "start":
            accounts.started("d1", 1)
            own += 1
        elif action == "end" and own:
            accounts.ended("d1")
            own -= 1
        elif isinstance(action, int):
            accounts.reported("d1", MemberLoad(running=action))

        assert accounts.estimate("d1").requests >= own
