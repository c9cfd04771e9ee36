from hypothesis import given
from hypothesis import strategies as st

from services.gateway.admission.ranking import Ranking

ACTIONS = st.lists(st.tuples(st.sampled_from(["put", "discard", "pop"]), st.integers(0, 9), st.integers(0, 5)))


@given(ACTIONS)
def test_it_is_a_sorted_list_whatever_happened_before(actions: list[tuple[str, int, int]]) -> None:
    ranking: Ranking[int, int] = Ranking()
    model: dict[int, tuple[int, int]] = {}
    for number, (action, item, rank) in enumerate(actions):
        if action == "put":
            ranking.put(item, rank)
            model[item] = (rank, number)
        elif action == "discard":
            ranking.discard(item)
            model.pop(item, None)
        elif model:
            first = min(model, key=lambda each: model[each])
            assert ranking.first() == (first, model.pop(first)[0])
            ranking.discard(first)
        assert len(ranking) == len(model)
        assert all((each in ranking) == (each in model) for each in range(10))
    for first in sorted(model, key=lambda each: model[each]):
        assert ranking.first() == (first, model[first][0])
        ranking.discard(first)
    assert ranking.first() is None


def test_what_left_takes_no_room() -> None:
    ranking: Ranking[int, int] = Ranking()
    ranking.put(-1, -1)
    for item in range(10_000):
        ranking.put(item, item)
        ranking.discard(item)
    assert (len(ranking), ranking.num_entries < 32) == (1, True)


def test_what_changes_its_rank_is_there_once() -> None:
    ranking: Ranking[str, int] = Ranking()
    for rank in range(10_000):
        ranking.put("a", rank)
    assert (len(ranking), ranking.first(), ranking.num_entries < 32) == (1, ("a", 9_999), True)
