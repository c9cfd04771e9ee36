from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.text.stop import StopStrings

PIECES = st.lists(st.text("abc", max_size=4), max_size=12)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


def shown(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    strings, text = StopStrings(stops), ""
    for piece in pieces:
        result = strings.push(piece)
        text += result.text
        if result.hit:
            return text, True
    return text + strings.flush(), False


@settings(deadline=None)
@given(STOPS, PIECES)
def test_the_way_a_text_is_cut_into_pieces_changes_nothing(stops: list[str], pieces: list[str]) -> None:
    assert shown(stops, pieces) == shown(stops, list("".join(pieces)))


@settings(deadline=None)
@given(STOPS, PIECES)
def test_no_stop_string_is_ever_shown(stops: list[str], pieces: list[str]) -> None:
    text, _ = shown(stops, pieces)

    assert not any(stop in text for stop in stops)


@settings(deadline=None)
@given(STOPS, PIECES)
def test_without_a_stop_string_nothing_is_lost(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    text, hit = shown(stops, pieces)

    assert hit == any(stop in whole for stop in stops)
    assert hit or text == whole


def test_what_may_become_a_stop_string_is_held_back_and_then_shown() -> None:
    strings = StopStrings(["END"])

    assert strings.push("the E").text == "the "
    assert strings.push("N").text == ""
    assert strings.push("d").text == "ENd"


def test_text_is_cut_before_the_stop_string_across_pieces() -> None:
    assert shown(["\n\n"], ["one\n", "\ntwo"]) == ("one", True)
