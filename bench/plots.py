"""The table as pictures: one bar per system and row (SVG); needs the extra ``bench``."""

from pathlib import Path
from typing import Any

from bench.catalog import ROWS, TANDEM
from bench.row import Results, Row

COLUMNS = 3


def draw(results: Results, folder: Path) -> list[Path]:
    """Write ``systems.svg`` (rows that peers have, too) and ``goals.svg`` (figures beside fixed goals).

    Raises:
        SystemExit: matplotlib is missing.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit("plots need matplotlib: pip install 'tandem-serve[bench]'") from None
    matplotlib.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    measured = [row for row in ROWS if results.median(TANDEM, row.name) is not None]
    fixed = [row for row in measured if row.goals and all(goal.peer is None for goal in row.goals)]
    others = [row for row in measured if row not in fixed]
    pictures = (("systems.svg", others), ("goals.svg", fixed))
    return [_draw(results, rows, folder / name) for name, rows in pictures if rows]


def _draw(results: Results, rows: list[Row], path: Path) -> Path:
    from matplotlib import pyplot

    num_lines = -(-len(rows) // COLUMNS)
    figure, axes = pyplot.subplots(num_lines, COLUMNS, figsize=(4.6 * COLUMNS, 2.1 * num_lines), squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, row in zip(axes.flat, rows, strict=False):
        _bars(axis, results, row)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _bars(axis: Any, results: Results, row: Row) -> None:
    known = [(system, value) for system in results.systems if (value := results.median(system, row.name)) is not None]
    colours = ["#1f6f8b" if system == TANDEM else "#b0b7bf" for system, _ in known]
    bars = axis.barh([system for system, _ in known], [value for _, value in known], color=colours)
    axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_title(f"{row.what} ({row.unit})" if row.unit else row.what, fontsize=8)
    axis.tick_params(labelsize=8)
    for goal in row.goals:
        if goal.peer is None:
            axis.axvline(goal.limit, color="#c0392b", linestyle="--", linewidth=1, label=f"goal {goal}")
            axis.legend(fontsize=7, loc="lower right")
