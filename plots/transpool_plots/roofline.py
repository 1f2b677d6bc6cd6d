"""Achieved against reachable: one point a record, under the copy bandwidth and the matrix product that its run measured."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

from . import marks
from .cells import Cell, Figure, Metric, Sweep
from .reports import Record
from .style import INK, MUTED, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUMBERS = ("bytes", "flops", "copy_bytes_per_second", "product_flops_per_second")


@dataclass(frozen=True)
class Point:
    """What one record moved and computed, and in which time."""

    cell: Cell
    figure: Figure  # its time
    bytes: float
    flops: float
    copy: float  # measured bytes/s
    product: float  # measured FLOP/s
    dtype: str

    @property
    def seconds(self) -> float:
        return self.figure.value / 1e3

    @property
    def intensity(self) -> float:
        return self.flops / self.bytes


def _point(cell: Cell, record: Record, metric: Metric) -> Point | None:
    time, found = record.summaries.get(metric.name), record.details.get("roofline")
    if not record.ok or time is None or not isinstance(found, dict) or not time.value > 0:
        return None
    numbers = [found.get(key) for key in _NUMBERS]
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers) or not numbers[0] > 0:
        return None
    figure = Figure(time.value, time.low, time.high, (record.id,))
    return Point(cell, figure, *map(float, numbers), dtype=str(record.configuration.get("dtype", "")))


def time_of(sweep: Sweep) -> Metric | None:
    """The metric that the roofline's records are timed in."""
    for cell in sweep.cells:
        for record in cell.records:
            time = record.summaries.get("time")
            if time is not None and time.unit == "ms" and "roofline" in record.details:
                return Metric(time.name, time.unit, time.higher_is_better, time.meaning)
    return None


def points_of(sweep: Sweep, metric: Metric) -> list[Point]:
    found = [_point(cell, record, metric) for cell in sweep.cells for record in cell.records]
    return [point for point in found if point is not None]


def _rate(value: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _draw_ceilings(axes: Axes, points: list[Point]) -> None:
    """The copy bandwidth rises with the intensity until it meets the matrix product of the dtype."""
    copy = statistics.median(point.copy for point in points)
    products = {dtype: statistics.median(p.product for p in points if p.dtype == dtype)
                for dtype in dict.fromkeys(point.dtype for point in points)}
    left = min(point.intensity for point in points) / 4
    right = max(max(point.intensity for point in points) * 4, 4 * max(products.values()) / copy)
    ridge = max(products.values()) / copy
    axes.plot([left, ridge], [left * copy, ridge * copy], color=INK, linewidth=1.2, zorder=1)
    middle = math.sqrt(left * ridge)
    axes.annotate(f"copy {_rate(copy, 'B/s')}", (middle, middle * copy), xytext=(-6, 3), textcoords="offset points",
                  fontsize=7.5, color=MUTED, ha="right", va="bottom")
    for dtype, product in products.items():
        axes.plot([product / copy, right], [product, product], color=INK, linewidth=1.2, zorder=1)
        axes.annotate(f"matrix product {dtype} {_rate(product, 'FLOP/s')}", (right, product), xytext=(0, 3),
                      textcoords="offset points", fontsize=7.5, color=MUTED, ha="right", va="bottom")


def _draw_copies(axes: Axes, points: list[Point], looks: dict[str, Look], metric: Metric, tips: marks.Tooltips) -> None:
    """What computes nothing that counts as FLOPs has no intensity: its bytes alone, under the copy bandwidth."""
    copy = statistics.median(point.copy for point in points)
    axes.axhline(copy, color=INK, linewidth=1.2, zorder=1)
    axes.annotate(_rate(copy, "B/s"), (0.5, copy), xycoords=axes.get_yaxis_transform(), xytext=(0, 3), fontsize=7.5,
                  textcoords="offset points", color=MUTED, ha="center", va="bottom")
    for place, point in enumerate(points):
        x = (place + 1) / (len(points) + 1)
        _draw_point(axes, x, point.bytes / point.seconds, point, looks, metric, tips)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_locator(NullLocator())
    axes.set_yscale("log")
    axes.set_xlabel("no FLOPs")
    axes.set_ylabel("achieved bytes/s")


def _draw_point(axes: Axes, x: float, y: float, point: Point, looks: dict[str, Look], metric: Metric,
                tips: marks.Tooltips) -> None:
    look = looks[point.cell.variant]
    (dot,) = axes.plot([x], [y], marker=look.marker, color=look.colour, linestyle="none", zorder=3, markersize=6,
                       markeredgecolor="white", markeredgewidth=0.7)
    tips.add(dot, point.cell, metric, point.figure)


def _draw_roofline(axes: Axes, points: list[Point], looks: dict[str, Look], metric: Metric, tips: marks.Tooltips) -> None:
    _draw_ceilings(axes, points)
    for point in points:
        _draw_point(axes, point.intensity, point.flops / point.seconds, point, looks, metric, tips)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("arithmetic intensity (FLOP per byte that must be moved)")
    axes.set_ylabel("achieved FLOP/s")


def _legend(canvas: Canvas, sweep: Sweep, points: list[Point], looks: dict[str, Look], left: float) -> None:
    drawn = {point.cell.variant for point in points}
    named = [variant for variant in sweep.variants if variant in drawn]
    handles = [Line2D([], [], marker=looks[v].marker, color=looks[v].colour, linestyle="none",
                      label=marks.variant_label(sweep, v)) for v in named]
    canvas.legend(handles=handles, loc="upper left", bbox_to_anchor=(left, 0.93), frameon=False, fontsize=8, handletextpad=0.2)


def draw(sweep: Sweep, metric: Metric, points: list[Point], looks: dict[str, Look]) -> tuple[Canvas, marks.Tooltips]:
    copies, others = [p for p in points if p.flops == 0], [p for p in points if p.flops > 0]
    panels = [1.0] * bool(copies) + [3.0] * bool(others)
    label_width = marks.label_width(sweep) + 0.3
    height = max(4.2, 1 + 0.19 * len({point.cell.variant for point in points}))
    canvas = Canvas(figsize=(1.0 + 1.9 * sum(panels) + 0.5 * (len(panels) - 1) + label_width, height))
    grid = canvas.subplots(1, len(panels), squeeze=False, width_ratios=panels)[0]
    tips = marks.Tooltips()
    if copies:
        _draw_copies(grid[0], copies, looks, metric, tips)
    if others:
        _draw_roofline(grid[-1], others, looks, metric, tips)
    grid[0].set_title("Roofline", pad=12)
    width = canvas.get_figwidth()
    right = 1 - label_width / width
    canvas.subplots_adjust(left=0.8 / width, right=right, bottom=0.55 / height, top=1 - 0.4 / height, wspace=0.42)
    _legend(canvas, sweep, points, looks, right + 0.01)
    marks.footnote(canvas, "lines: ceilings measured in the same run")
    return canvas, tips
