"""Variants side by side where there is no numeric axis: one panel a metric, one row a variant."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from . import marks
from .cells import Cell, Figure, Metric, Sweep
from .display import Quantity, show_figure
from .style import INK, MUTED, RULE, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 6
_PANELS_IN_A_ROW = 3


def _is_score(metric: Metric) -> bool:
    """Scores differ by little of their size, so they are dots on an axis of their own and not bars from zero."""
    return metric.quantity is Quantity.OTHER and metric.higher_is_better


def _draw_figure(axes: Axes, row: int, cell: Cell, metric: Metric, figure: Figure, look: Look, tips: marks.Tooltips) -> None:
    if _is_score(metric):
        (mark,) = axes.plot([figure.value], [row], marker="o", markersize=8, color=look.colour, linestyle="none", zorder=3)
    else:
        (mark,) = axes.barh([row], [figure.value], height=0.62, color=look.colour, alpha=0.85, zorder=2)
    tips.add(mark, cell, metric, figure)
    end = figure.value
    if figure.low is not None and figure.high is not None and figure.high > figure.low:
        error = [[max(0.0, figure.value - figure.low)], [max(0.0, figure.high - figure.value)]]
        axes.errorbar([figure.value], [row], xerr=error, color=INK if not _is_score(metric) else look.colour,
                      elinewidth=1.1, capsize=2.5, linestyle="none", zorder=4)
        end = figure.high
    axes.annotate(show_figure(figure.value, figure.low, figure.high), (end, row), xytext=(5, 0),
                  textcoords="offset points", fontsize=7.5, va="center", ha="left", color=INK, zorder=5,
                  bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8})


def _draw_panel(axes: Axes, cells: list[Cell], metric: Metric, looks: dict[str, Look], tips: marks.Tooltips) -> None:
    lows, highs = [], []
    for row, cell in enumerate(cells):
        figure = cell.figure(metric)
        if figure is None:
            text = axes.annotate(cell.status if cell.status != "ok" else "not measured", (0.02, row), fontsize=8,
                                 xycoords=axes.get_yaxis_transform(), va="center", color=MUTED, style="italic")
            tips.add(text, cell, metric, None)
            continue
        _draw_figure(axes, row, cell, metric, figure, looks[cell.variant], tips)
        lows.append(figure.value if figure.low is None else figure.low)
        highs.append(figure.value if figure.high is None else figure.high)
    base = next((f for cell in cells if cell.baseline and (f := cell.figure(metric)) is not None), None)
    if base is not None:
        axes.axvline(base.value, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    if lows:
        _limit(axes, metric, min(lows), max(highs))
    axes.set_title(marks.axis_title(metric), pad=6)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.spines["left"].set_color(RULE)
    axes.tick_params(axis="y", length=0)


def _limit(axes: Axes, metric: Metric, low: float, high: float) -> None:
    """Leaves room for the figures that stand to the right of the bars."""
    if _is_score(metric):
        span = (high - low) or abs(high) or 1.0
        axes.set_xlim(low - 0.15 * span, high + 0.6 * span)
    else:
        axes.set_xlim(min(0.0, low), 1.42 * high if high > 0 else 1.0)


def metrics_of(sweep: Sweep) -> list[Metric]:
    """One metric of each kind, then a second of each, until the panels are full."""
    kinds: dict[tuple[Quantity, bool], list[Metric]] = {}
    for metric in sweep.metrics:
        kinds.setdefault(metric.kind, []).append(metric)
    rounds = [members[i] for i in range(len(sweep.metrics)) for members in kinds.values() if i < len(members)]
    chosen = rounds[:MOST_PANELS]
    return [metric for metric in sweep.metrics if metric in chosen]


def draw(sweep: Sweep, looks: dict[str, Look]) -> tuple[Canvas, marks.Tooltips]:
    metrics = metrics_of(sweep)
    cells = sweep.cells
    columns = 2 if len(metrics) in (2, 4) else min(len(metrics), _PANELS_IN_A_ROW)
    rows = math.ceil(len(metrics) / columns)
    name_width = marks.label_width(sweep)
    height = 0.75 + 0.32 * len(cells)
    canvas = Canvas(figsize=(name_width + 2.75 * columns, rows * height + 0.3))
    grid = canvas.subplots(rows, columns, squeeze=False, sharey=True)
    tips = marks.Tooltips()
    for axes, metric in zip(grid.flat, metrics):
        _draw_panel(axes, cells, metric, looks, tips)
    for axes in list(grid.flat)[len(metrics):]:
        axes.set_visible(False)
    names = [cell.variant + (" (baseline)" if cell.baseline else "") for cell in cells]
    grid[0, 0].set_yticks(range(len(cells)), names)
    grid[0, 0].set_ylim(len(cells) - 0.4, -0.6)
    width, whole = canvas.get_figwidth(), canvas.get_figheight()
    canvas.subplots_adjust(left=name_width / width, right=1 - 0.1 / width, top=1 - 0.35 / whole, bottom=0.5 / whole,
                           wspace=0.12, hspace=0.72 / (height - 0.72))
    marks.footnote(canvas, "dashed line: baseline; error bars: 95 % interval; scores have an axis of their own")
    return canvas, tips
