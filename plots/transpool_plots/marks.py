"""What every figure is made of: points that name their records, labels that do not overlap, axes with units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from .cells import Cell, Figure, Metric, Sweep
from .display import show_figure, show_value, with_unit, words
from .style import MUTED, Look

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

POINT = "record-"  # the group of a point in the SVG is called this, then the ids of its records


class Tooltips:
    """Texts and record ids for the points of one figure, by the name of the point's group."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.records: dict[str, str] = {}

    def add(self, artist: Artist, cell: Cell, metric: Metric, figure: Figure | None) -> None:
        ids = figure.ids if figure else cell.ids
        group = f"{POINT}{'-'.join(ids)}-{metric.name}"
        artist.set_gid(group)
        axes = ", ".join(f"{axis}={show_value(value)}" for axis, value in cell.axes.items())
        shown = cell.status if figure is None else with_unit(show_figure(figure.value, figure.low, figure.high), metric.unit)
        self.records[group] = " ".join(ids)
        self.texts[group] = f"{axes or cell.variant}\n{words(metric.name)}: {shown}\nrecord {' '.join(ids)}"


def variant_label(sweep: Sweep, variant: str) -> str:
    return variant + (" (baseline)" if variant == sweep.baseline else "")


def label_width(sweep: Sweep) -> float:
    """Inches that the widest label of a variant takes beside the axes."""
    return 0.068 * max(len(variant_label(sweep, variant)) for variant in sweep.variants) + 0.35


def title(metric: Metric) -> str:
    return words(metric.name)


def sentence(text: str) -> str:
    """With a capital at its beginning; units within keep theirs."""
    return text[:1].upper() + text[1:]


def axis_title(metric: Metric) -> str:
    return title(metric) + ("" if metric.unit in {"", "1"} else f" ({metric.unit})")


def is_wide(values: list[float]) -> bool:
    """A range over which a linear axis would press the small values together."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= 8


def log_value_axis(axes: Axes) -> None:
    """Ticks at 1, 2 and 5, written out, since readers of times think in milliseconds and not in powers of ten."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if math.log10(high / low) < 3 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def sweep_axis(axes: Axes, values: list[float]) -> None:
    """Ticks where there are measurements, and nowhere else."""
    if is_wide(values):
        axes.set_xscale("log", base=2)
    shown = values if len(values) <= 10 else values[:: math.ceil(len(values) / 10)]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def spread(positions: list[float], gap: float) -> list[float]:
    """Moves positions apart until neighbours are `gap` apart, with as little movement as that takes."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    clusters: list[tuple[float, list[int]]] = []  # centre and members
    for i in order:
        centre, members = positions[i], [i]
        while clusters and centre - gap * len(members) / 2 < clusters[-1][0] + gap * len(clusters[-1][1]) / 2:
            other_centre, other = clusters.pop()
            centre = (other_centre * len(other) + centre * len(members)) / (len(other) + len(members))
            members = other + members
        clusters.append((centre, members))
    moved = list(positions)
    for centre, members in clusters:
        for place, i in enumerate(members):
            moved[i] = centre + gap * (place - (len(members) - 1) / 2)
    return moved


def label_line_ends(axes: Axes, ends: list[tuple[float, float, str, Look]], size: float = 8.5) -> None:
    """Writes each text beside the end of its line, to the right of all lines. Call it when the limits are final."""
    figure = axes.figure
    height = axes.get_position().height * figure.get_figheight() * 72
    if not ends or height <= 0:
        return
    to_axes = axes.transAxes.inverted()
    places = [to_axes.transform(axes.transData.transform((x, y))) for x, y, _, _ in ends]
    heights = spread([float(place[1]) for place in places], 1.35 * size / height)
    for (x, y, text, look), moved in zip(ends, heights):
        axes.annotate(text, (x, y), xycoords="data", xytext=(1.03, moved), textcoords="axes fraction", color=look.colour,
                      fontsize=size, va="center", ha="left", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": look.colour, "lw": 0.5, "alpha": 0.5, "shrinkA": 0,
                                  "shrinkB": 4, "relpos": (0, 0.5)})


def label_points(axes: Axes, points: list[tuple[float, float, str, Look]], size: float = 8.5) -> None:
    """Writes each text to the right of its point, moved up or down where two would touch."""
    to_points = 72 / axes.figure.dpi
    places = [axes.transData.transform((x, y)) * to_points for x, y, _, _ in points]
    heights = spread([float(place[1]) for place in places], 1.35 * size)
    for (x, y, text, look), place, moved in zip(points, places, heights):
        axes.annotate(text, (x, y), xytext=(8, moved - place[1]), textcoords="offset points", color=look.colour,
                      fontsize=size, va="center", ha="left", annotation_clip=False, zorder=5,
                      bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6})


def footnote(canvas: Canvas, text: str) -> None:
    canvas.text(0.1 / canvas.get_figwidth(), 0.05 / canvas.get_figheight(), text, fontsize=7, color=MUTED, ha="left",
                va="bottom")
