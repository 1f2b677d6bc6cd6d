"""A metric against a numeric axis: one line a variant, bands for intervals, one panel a value of the other axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.figure import Figure as Canvas

from . import marks
from .cells import Cell, Metric, Sweep
from .display import show_value, words
from .style import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS_IN_A_ROW = 3


def _panels(sweep: Sweep, axis: str) -> dict[str, list[Cell]]:
    """Cells by their values on the numeric axes that are neither drawn nor follow from the one that is."""
    others = [other for other in sweep.numeric_axes if other != axis and other not in sweep.dependent_on(axis)]
    panels: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        key = ", ".join(f"{words(other)} {show_value(cell.axes.get(other))}" for other in others)
        panels.setdefault(key, []).append(cell)
    return panels


def _position(cell: Cell, axis: str) -> float | None:
    value = cell.axes.get(axis)
    return float(value) if isinstance(value, (int, float)) else None


def _draw_line(axes: Axes, cells: list[Cell], axis: str, metric: Metric, look: Look, tips: marks.Tooltips) -> None:
    points = []
    for cell in cells:
        x, figure = _position(cell, axis), cell.figure(metric)
        if x is not None and figure is not None:
            points.append((x, figure, cell))
    points.sort(key=lambda point: point[0])
    xs, ys = [x for x, _, _ in points], [figure.value for _, figure, _ in points]
    axes.plot(xs, ys, color=look.colour, linestyle=look.dash, zorder=2)
    lows = [f.value if f.low is None else f.low for _, f, _ in points]
    highs = [f.value if f.high is None else f.high for _, f, _ in points]
    axes.fill_between(xs, lows, highs, color=look.colour, alpha=0.16, linewidth=0, zorder=1)
    for x, figure, cell in points:
        (dot,) = axes.plot([x], [figure.value], marker=look.marker, color=look.colour, linestyle="none", zorder=3,
                           markeredgecolor="white", markeredgewidth=0.7)
        tips.add(dot, cell, metric, figure)


def _draw_failures(axes: Axes, cells: list[Cell], axis: str, metric: Metric, looks: dict[str, Look],
                   tips: marks.Tooltips) -> None:
    """A cell without a figure is a cross on the upper edge, with its status: it must not look as if it was not run."""
    stacked: dict[float, int] = {}
    for cell in cells:
        x = _position(cell, axis)
        if x is None or cell.figure(metric) is not None or cell.status == "ok":
            continue
        level = stacked[x] = stacked.get(x, 0) + 1
        height = 1.0 - 0.055 * (level - 1)
        look = looks[cell.variant]
        (cross,) = axes.plot([x], [height], marker="x", markersize=6, markeredgewidth=1.6, color=look.colour,
                             transform=axes.get_xaxis_transform(), clip_on=False, zorder=4)
        axes.annotate(cell.status, (x, height), xycoords=axes.get_xaxis_transform(), xytext=(-6, 0), color=look.colour,
                      textcoords="offset points", fontsize=7.5, va="center", ha="right", annotation_clip=False)
        tips.add(cross, cell, metric, None)


def _ends(sweep: Sweep, cells: list[Cell], axis: str, metric: Metric, looks: dict[str, Look]) -> list:
    ends = []
    for variant in sweep.variants:
        drawn = [(_position(c, axis), c.figure(metric)) for c in cells if c.variant == variant]
        drawn = [(x, figure.value) for x, figure in drawn if x is not None and figure is not None]
        if drawn:
            ends.append((*max(drawn), marks.variant_label(sweep, variant), looks[variant]))
    return ends


def _scale(panels: list[Axes], sweep: Sweep, axis: str, metric: Metric) -> None:
    values = [figure.value for cell in sweep.cells if (figure := cell.figure(metric)) is not None]
    xs = sorted({x for cell in sweep.cells if (x := _position(cell, axis)) is not None})
    for axes in panels:
        marks.sweep_axis(axes, xs)
        if marks.is_wide(values):
            marks.log_value_axis(axes)
        elif metric.quantity.name != "OTHER":
            axes.set_ylim(bottom=0)


def draw(sweep: Sweep, axis: str, metric: Metric, looks: dict[str, Look]) -> tuple[Canvas, marks.Tooltips]:
    panels = _panels(sweep, axis)
    columns = 2 if len(panels) == 4 else min(len(panels), _PANELS_IN_A_ROW)
    rows = math.ceil(len(panels) / columns)
    label_width = marks.label_width(sweep)
    width = 0.8 + (4.2 if columns == 1 else 2.9) * columns + label_width
    canvas = Canvas(figsize=(width, 3.5 * rows))
    grid = canvas.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    tips = marks.Tooltips()
    used = list(zip(grid.flat, panels.items()))
    for axes, (key, cells) in used:
        for variant in sweep.variants:
            _draw_line(axes, [c for c in cells if c.variant == variant], axis, metric, looks[variant], tips)
        _draw_failures(axes, cells, axis, metric, looks, tips)
        axes.set_title(key or f"{marks.sentence(marks.title(metric))} by {words(axis)}", pad=12)
        axes.tick_params(labelbottom=True)
    for axes in list(grid.flat)[len(panels):]:
        axes.set_visible(False)
    _scale([axes for axes, _ in used], sweep, axis, metric)
    for axes in grid[:, 0]:
        axes.set_ylabel(marks.axis_title(metric))
    for axes, _ in used:
        axes.set_xlabel(words(axis))
    canvas.subplots_adjust(left=0.8 / width, right=1 - label_width / width, bottom=0.55 / (3.5 * rows),
                           top=1 - 0.42 / (3.5 * rows), wspace=0.16, hspace=0.42)
    for place, (axes, (_, cells)) in enumerate(used):
        if place % columns == columns - 1 or place == len(used) - 1:
            marks.label_line_ends(axes, _ends(sweep, cells, axis, metric, looks))
    if any(f.low is not None for c in sweep.cells if (f := c.figure(metric)) is not None):
        marks.footnote(canvas, "band: 95 % interval")
    return canvas, tips
