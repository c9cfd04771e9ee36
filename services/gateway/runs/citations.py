"""Marks by which an answer cites what a search of files found, and the annotations that they become."""

import re
from collections.abc import Mapping
from typing import Any

_MARK = re.compile(r"【(\d+):\d+†source】")


def mark(search: int, result: int) -> str:
    """Return the mark of one result of one search of a thread."""
    return f"【{search}:{result}†source】"


def next_search(sources: Mapping[str, str]) -> int:
    """Return the number of a thread's next search; ``sources`` are the files by their marks."""
    return 1 + max((int(found[1]) for each in sources if (found := _MARK.fullmatch(each))), default=-1)


def new_citations(known: str, added: str, sources: Mapping[str, str], *, after: int) -> list[Mapping[str, Any]]:
    """Return the annotations that a text gets by what is added to it; marks of nothing that was found are none.

    Only the end of the known text is read, where a mark may have begun. ``after`` is where its last annotation begins,
    -1 if it has none.
    """
    if not sources:
        return []
    start = max(after + 1, len(known) - max(map(len, sources)))
    return [
        {
            "type": "file_citation",
            "text": found[0],
            "start_index": start + found.start(),
            "end_index": start + found.end(),
            "file_citation": {"file_id": sources[found[0]]},
        }
        for found in _MARK.finditer(known[start:] + added)
        if found[0] in sources
    ]
