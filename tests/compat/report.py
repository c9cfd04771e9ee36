"""What a run of the official SDK's tests showed, by file."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.compat.gw_seed import Expected

_COLUMNS = ("passed", "failed", "xfailed", "xpassed", "skipped")
_WEIGHT = {"passed": 0, "skipped": 1, "xpassed": 2, "xfailed": 3, "failed": 4}


@dataclass(frozen=True)
class Report:
    """Outcomes by test."""

    outcomes: Mapping[str, str]
    expected: Sequence[Expected]

    @property
    def failed(self) -> list[str]:
        """Tests that failed although nobody expected it."""
        return self._with("failed")

    def text(self) -> str:
        """Return a table of counts and what has to be looked at."""
        lines = [f"{'file':<58}" + "".join(f"{column:>9}" for column in _COLUMNS)]
        for name, counts in self._by_file().items():
            lines.append(f"{name:<58}" + "".join(f"{counts[column]:>9}" for column in _COLUMNS))
        lines += [f"expected to fail, but passed: {test}" for test in self._with("xpassed")]
        lines += [f"expected to fail, but fits no test: {each.pattern}" for each in self._unused()]
        return "\n".join([*lines, *(f"FAILED: {test}" for test in self.failed)])

    def _by_file(self) -> dict[str, Counter[str]]:
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for test, outcome in self.outcomes.items():
            counts[test.partition("::")[0]][outcome] += 1
        total = sum(counts.values(), Counter[str]())
        return {**dict(sorted(counts.items())), "total": total}

    def _with(self, outcome: str) -> list[str]:
        return [test for test, each in self.outcomes.items() if each == outcome]

    def _unused(self) -> list[Expected]:
        return [each for each in self.expected if not any(map(each.fits, self.outcomes))]


def read_report(results: Path, expected: Sequence[Expected]) -> Report:
    """Return the report of a file that ``gw_seed`` wrote; the worst phase of a test counts."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return Report(_worst(json.loads(line) for line in lines), expected)


def _worst(entries: Iterable[Mapping[str, str]]) -> dict[str, str]:
    outcomes: dict[str, str] = {}
    for entry in entries:
        known = outcomes.get(entry["test"], "passed")
        outcomes[entry["test"]] = max(known, entry["outcome"], key=_WEIGHT.__getitem__)
    return outcomes
