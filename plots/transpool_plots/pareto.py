"""Quality against cost: which variants are worth their time, and which are beaten on both counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from . import marks
from .cells import Cell, Figure, Metric, Sweep
from .display import show_value
from .style import MUTED, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[Cell, Figure, Figure]  # cost, quality


def points_of(sweep: Sweep, cost: Metric, quality: Metric) -> list[Point]:
    found = [(cell, cell.figure(cost), cell.figure(quality)) for cell in sweep.cells]
    return [(cell, x, y) for cell, x, y in found if x is not None and y is not None]


def front(points: list[Point]) -> list[Point]:
    """Those that no other point beats in both cost and quality, by rising cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p[1].value, -p[2].value)):
        if not best or point[2].value > best[-1][2].value:
            best.append(point)
    return best


def _draw_front(axes: Axes, points: list[Point]) -> None:
    xs, ys = [p[1].value for p in points], [p[2].value for p in points]
    # Beyond its ends the front goes on: nothing cheaper reaches any quality, nothing dearer reaches more.
    xs = [xs[0], *xs, axes.get_xlim()[1]]
    ys = [axes.get_ylim()[0], *ys, ys[-1]]
    axes.plot(xs, ys, drawstyle="steps-post", color=MUTED, linewidth=1, linestyle=(0, (1, 2)), zorder=1, scalex=False,
              scaley=False)


def _error(value: Figure) -> list[list[float]] | None:
    if value.low is None or value.high is None:
        return None
    return [[max(0.0, value.value - value.low)], [max(0.0, value.high - value.value)]]


def _draw_point(axes: Axes, point: Point, look: Look, on_front: bool, quality: Metric, tips: marks.Tooltips) -> None:
    cell, x, y = point
    axes.errorbar([x.value], [y.value], xerr=_error(x), yerr=_error(y), color=look.colour, elinewidth=0.9, alpha=0.45,
                  linestyle="none", zorder=2)
    (dot,) = axes.plot([x.value], [y.value], marker=look.marker, color=look.colour, linestyle="none", zorder=4,
                       markersize=7, markeredgewidth=1.3, markerfacecolor=look.colour if on_front else "white")
    tips.add(dot, cell, quality, y)


def _label_points(axes: Axes, sweep: Sweep, points: list[Point], looks: dict[str, Look]) -> None:
    """Where a variant has several points, its name stands at its last one and the numeric axes at each."""
    for variant in sweep.variants:
        own = [point for point in points if point[0].variant == variant]
        own.sort(key=lambda p: p[1].value)
        if len(own) > 1:
            axes.plot([p[1].value for p in own], [p[2].value for p in own], color=looks[variant].colour, linewidth=0.8,
                      alpha=0.45, zorder=1)
        for cell, x, y in own if len(own) > 1 else []:
            axes.annotate(", ".join(show_value(cell.axes[axis]) for axis in sweep.numeric_axes if axis in cell.axes),
                          (x.value, y.value), xytext=(0, -7), textcoords="offset points", fontsize=6.5, color=MUTED,
                          ha="center", va="top")


def _name_variants(axes: Axes, sweep: Sweep, points: list[Point], looks: dict[str, Look]) -> None:
    """A variant of one point is named beside it; lines are named at their ends, clear of each other."""
    ends = []
    for variant in sweep.variants:
        own = [(p[1].value, p[2].value) for p in points if p[0].variant == variant]
        if own:
            ends.append((*max(own), marks.variant_label(sweep, variant), looks[variant]))
    if len(ends) == len(points):
        marks.label_points(axes, ends)
    else:
        marks.label_line_ends(axes, ends)


def _scale(axes: Axes, points: list[Point]) -> None:
    xs = [point[1].value for point in points]
    if min(xs) > 0 and max(xs) / min(xs) >= 4:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(0.1, 0.14)
    axes.autoscale_view()


def draw(sweep: Sweep, cost: Metric, quality: Metric, looks: dict[str, Look]) -> tuple[Canvas, marks.Tooltips]:
    points = points_of(sweep, cost, quality)
    best = front(points)
    label_width = marks.label_width(sweep)
    canvas = Canvas(figsize=(5.2 + label_width, 3.9))
    axes = canvas.subplots()
    tips = marks.Tooltips()
    for point in points:
        _draw_point(axes, point, looks[point[0].variant], point in best, quality, tips)
    _label_points(axes, sweep, points, looks)
    _scale(axes, points)
    _draw_front(axes, best)
    axes.set_title(f"{marks.sentence(marks.title(quality))} against {marks.title(cost)}", pad=12)
    axes.set_xlabel(f"{marks.axis_title(cost)}, lower is better")
    axes.set_ylabel(f"{marks.axis_title(quality)}, higher is better")
    width = canvas.get_figwidth()
    canvas.subplots_adjust(left=0.75 / width, right=1 - label_width / width, bottom=0.17, top=0.9)
    _name_variants(axes, sweep, points, looks)
    marks.footnote(canvas, "filled, dotted line: Pareto front; bars: 95 % interval")
    return canvas, tips
