"""Marks in a text that comes piece by piece."""

from typing import Any, SupportsIndex

from services.gateway.runs.citations import mark, new_citations

SOURCES = {mark(0, 0): "file-a", mark(0, 12): "file-b"}
ANSWER = f"Paris{mark(0, 0)}, and{mark(0, 12)}{mark(0, 0)} but not {mark(3, 3)} or \u3010broken{mark(0, 12)}."


class Watched(str):
    """A text that notes how much of it was read."""

    num_read = 0

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        found = super().__getitem__(key)
        self.num_read += len(found)
        return found


def test_each_mark_is_told_once_however_the_text_is_cut() -> None:
    for size in range(1, len(ANSWER) + 1):
        known, told = "", list[Any]()
        for start in range(0, len(ANSWER), size):
            added = ANSWER[start : start + size]
            told += new_citations(known, added, SOURCES, after=told[-1]["start_index"] if told else -1)
            known += added
        assert [each["file_citation"]["file_id"] for each in told] == ["file-a", "file-b", "file-a", "file-b"]
        assert all(ANSWER[each["start_index"] : each["end_index"]] == each["text"] for each in told)


def test_only_the_end_of_a_text_is_read_again() -> None:
    known = Watched("hello " * 1000 + mark(0, 12)[:-1])

    assert [each["text"] for each in new_citations(known, "\u3011.", SOURCES, after=-1)] == [mark(0, 12)]
    assert known.num_read <= max(map(len, SOURCES))
