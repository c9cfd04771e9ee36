from collections.abc import Sequence
from dataclasses import replace

import pytest

from services.cluster.registry import Member, MemberLoad, Role
from services.gateway.admission.capacity import MemberCapacity, PromptWindow
from tests.gateway.twins import member

POOL = "f" * 64


class Listed:
    def __init__(self, *members: Member) -> None:
        self._members = members

    def members(self) -> Sequence[Member]:
        return self._members


def decode(member_id: str, max_sequences: int = 8, **changes: object) -> Member:
    return replace(member(member_id, max_sequences=max_sequences), **changes)  # type: ignore[arg-type]


def prefill(member_id: str, tokens_per_s: float, **changes: object) -> Member:
    load = MemberLoad(prefill_tokens_per_s=tokens_per_s)
    return replace(member(member_id, Role.PREFILL), load=load, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([], 0),
        ([decode("d1"), decode("d2", 4)], 12),
        ([decode("d1"), decode("d2", draining=True)], 8),
        ([decode("d1"), decode("d2", fingerprint="another")], 8),
        ([decode("d1"), prefill("p1", 100.0)], 8),
        ([decode("d1"), decode("old", 0)], 0),
    ],
)
def test_what_decode_workers_run_at_once(members: list[Member], expected: int) -> None:
    assert MemberCapacity(Listed(*members), 2.0).num_sequences(POOL) == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([], PromptWindow()),
        ([decode("d1")], PromptWindow()),
        ([prefill("p1", 800.0)], PromptWindow(2048, 512)),
        ([prefill("p1", 1000.0)], PromptWindow(2048, 512)),
        ([prefill("p1", 1030.0)], PromptWindow(4096, 1024)),
        ([prefill("p1", 0.0)], PromptWindow(2048, 512)),
        ([prefill("p1", 500.0), prefill("p2", 500.0)], PromptWindow(2048, 256)),
        ([prefill("p1", 500.0), prefill("p2", 500.0, draining=True)], PromptWindow(1024, 256)),
        ([prefill("p1", 500.0, fingerprint="another")], PromptWindow()),
        ([prefill("p1", 0.1)], PromptWindow(4, 1)),
    ],
)
def test_what_prefill_workers_may_have_before_them(members: list[Member], expected: PromptWindow) -> None:
    assert MemberCapacity(Listed(*members), 2.0).prompt_window(POOL) == expected


def test_a_window_of_no_length_is_none() -> None:
    assert MemberCapacity(Listed(prefill("p1", 100.0)), 0.0).prompt_window(POOL) == PromptWindow()


def test_a_prompt_counts_for_a_part_of_the_window_at_most() -> None:
    window = PromptWindow(1024, 256)
    assert [window.cost(number) for number in (1, 256, 257, 10**6)] == [1, 256, 256, 256]
