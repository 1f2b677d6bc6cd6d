"""Which figures a report gives, and how they are written."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Iterator

from . import bars, lines, marks, pareto, roofline, style
from .cells import Sweep
from .display import Quantity, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Drawing:
    """One finished figure: its files' name, what it shows in words, and both formats."""

    name: str
    caption: str
    svg: str
    png: bytes
    wide: bool  # needs the whole width of a page


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")


def _svg(canvas: Canvas, tips: marks.Tooltips, name: str, caption: str) -> str:
    """The figure as SVG, in which every point carries its tooltip and every id is unique among all figures of a page."""
    stream = io.StringIO()
    canvas.savefig(stream, format="svg", metadata={"Date": None, "Creator": "transpool"})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(stream.getvalue())
    for element in root.iter():
        own = element.get("id")
        if own in tips.texts:
            tip = ElementTree.Element(f"{{{_SVG}}}title")
            tip.text = tips.texts[own]
            element.insert(0, tip)
            element.set("class", "point")
            element.set("data-records", tips.records[own])
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}.{value}")
            elif value.startswith("#"):
                element.set(key, f"#{name}.{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}."))
    root.set("role", "img")
    root.set("aria-label", caption)
    return ElementTree.tostring(root, encoding="unicode")


def _finish(name: str, caption: str, drawn: tuple[Canvas, marks.Tooltips]) -> Drawing:
    canvas, tips = drawn
    picture = io.BytesIO()
    canvas.savefig(picture, format="png", metadata={"Software": "transpool"})
    slug = _slug(name)
    return Drawing(slug, caption, _svg(canvas, tips, slug, caption), picture.getvalue(),
                   canvas.get_figwidth() > 8.5)


def _against_axes(sweep: Sweep, looks: dict[str, style.Look]) -> Iterator[Drawing]:
    for axis in sweep.numeric_axes:
        for metric in sweep.leading_metrics():
            name = f"{sweep.name}-{metric.name}-by-{axis}"
            caption = f"{marks.sentence(marks.axis_title(metric))} by {words(axis)}. {metric.meaning}".strip()
            yield _finish(name, caption, lines.draw(sweep, axis, metric, looks))


def _against_time(sweep: Sweep, looks: dict[str, style.Look]) -> Iterator[Drawing]:
    cost = next((metric for metric in sweep.metrics if metric.quantity is Quantity.TIME), None)
    # A share of the bound is made of the time: it is no quality that time is spent on.
    scores = [metric for metric in sweep.metrics
              if metric.quantity is Quantity.OTHER and metric.higher_is_better and metric.name != "bound_share"]
    if cost is None or not scores or len(pareto.points_of(sweep, cost, scores[0])) < 2:
        return
    caption = f"{marks.sentence(words(scores[0].name))} against {words(cost.name)}, with the Pareto front"
    yield _finish(f"{sweep.name}-{scores[0].name}-against-{cost.name}", caption, pareto.draw(sweep, cost, scores[0], looks))


def _under_roofline(sweep: Sweep, looks: dict[str, style.Look]) -> Iterator[Drawing]:
    metric = roofline.time_of(sweep)
    points = roofline.points_of(sweep, metric) if metric is not None else []
    if points:
        caption = "Roofline: what each record achieved, under the copy bandwidth and matrix product measured in its run"
        yield _finish(f"{sweep.name}-roofline", caption, roofline.draw(sweep, metric, points, looks))


def draw_sweep(sweep: Sweep) -> list[Drawing]:
    """All figures that the cells of a sweep can fill; none where nothing was measured."""
    if not sweep.metrics:
        return []
    looks = style.looks(sweep.variants, sweep.baseline)
    drawings = list(_against_axes(sweep, looks))
    if not sweep.numeric_axes:
        caption = "All variants side by side: " + ", ".join(words(metric.name) for metric in bars.metrics_of(sweep))
        drawings.append(_finish(f"{sweep.name}-variants", caption, bars.draw(sweep, looks)))
    return drawings + list(_against_time(sweep, looks)) + list(_under_roofline(sweep, looks))


def write(drawing: Drawing, folder: Path) -> list[Path]:
    svg, png = folder / f"{drawing.name}.svg", folder / f"{drawing.name}.png"
    svg.write_text('<?xml version="1.0" encoding="utf-8"?>\n' + drawing.svg + "\n", encoding="utf-8")
    png.write_bytes(drawing.png)
    return [png, svg]
