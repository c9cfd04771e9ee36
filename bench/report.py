"""The table, as Markdown and as JSON."""

import os
import platform
import statistics
import time
from collections.abc import Collection, Sequence
from typing import Any

from bench.catalog import DIFFERENCES, ROWS, TANDEM
from bench.row import Figures, Results, Row


def add_differences(results: Results) -> None:
    """Compute what follows from the medians."""
    for difference in DIFFERENCES:
        values = [results.median(system, row) for system, row in difference.needs]
        if None not in values:
            results.add(TANDEM, {difference.row.name: difference.compute(*values)})


def table(results: Results, names: Collection[str]) -> str:
    """Return a Markdown table of medians, with least and most; what was not measured is an empty cell."""
    systems = [TANDEM, *(system for system in results.systems if system != TANDEM)]
    lines = ["| row | unit | goal | met | " + " | ".join(systems) + " |", "|---|---|---|---|" + "---|" * len(systems)]
    for row in ROWS:
        cells = [_cell(results.values(system, row.name)) for system in systems]
        if row.name in names and any(cells):
            goals = "; ".join(map(str, row.goals))
            lines.append(f"| {row.what} | {row.unit} | {goals} | {_met(results, row)} | " + " | ".join(cells) + " |")
    if results.failures:
        lines.append("| failed | | | | " + " | ".join(results.failures.get(system, "") for system in systems) + " |")
    return "\n".join(lines)


def to_json(results: Results, names: Collection[str]) -> dict[str, Any]:
    """Return everything that was measured, where and when."""
    return {
        "host": {"platform": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rows": [{"name": row.name, "what": row.what, "unit": row.unit} for row in ROWS if row.name in names],
        "values": results.to_json(),
        "failures": results.failures,
    }


def _met(results: Results, row: Row) -> str:
    value = results.median(TANDEM, row.name)
    if value is None:
        return ""
    peers: Figures = {
        system: peer for system in results.systems if (peer := results.median(system, row.name)) is not None
    }
    return "; ".join(goal.answer(value, peers) for goal in row.goals)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    median = _figure(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({_figure(min(values))}-{_figure(max(values))})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
