"""One HTML page with all figures, every record and every environment, that needs nothing but itself."""

from __future__ import annotations

import json
import math
from html import escape
from pathlib import Path
from typing import Any

from .cells import Sweep
from .display import show_figure, show_value, words
from .figures import Drawing
from .reports import Record, Report

_ASSETS = Path(__file__).parent / "assets"


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in data.items():
        if isinstance(value, dict) and value and "name" not in value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, show_value(value)))
    return rows


def _unique_length(ids: list[str]) -> int:
    """Leading characters of ids, 8 or more, that tell them all apart."""
    length = 8
    while length < 64 and len({id[:length] for id in ids}) < len(set(ids)):
        length += 1
    return length


def _cell(text: str, key: float | str | None = None, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    order = "" if key is None else f' data-key="{escape(str(key))}"'
    return f"<td{kind}{order}>{escape(text)}</td>"


class _Table:
    """All records of one sweep. Columns: id, axes, status, the metrics, environment."""

    def __init__(self, sweep: Sweep) -> None:
        self.records = [(report, record) for report in sweep.reports for record in report.records]
        self.length = _unique_length([record.id for _, record in self.records])
        self.several = len(sweep.reports) > 1
        self.reasons = any(record.reason for _, record in self.records)
        self.axes = list(dict.fromkeys(axis for _, record in self.records for axis in record.axes if axis != "seed"))
        found = {(s.name, s.unit): s for _, record in self.records for s in record.summaries.values()}
        order = {metric.name: i for i, metric in enumerate(sweep.metrics)}
        self.metrics = sorted(found.values(), key=lambda s: order.get(s.name, len(order)))

    def _head(self) -> str:
        reasons = ["reason"] if self.reasons else []
        names = ["record", *(["report"] if self.several else []), *self.axes, "seed", "status", *reasons]
        heads = [f'<th scope="col">{escape(words(name))}</th>' for name in names]
        for metric in self.metrics:
            unit = "" if metric.unit in {"", "1"} else f" <small>{escape(metric.unit)}</small>"
            name, meaning = escape(words(metric.name)), escape(metric.meaning)
            heads.append(f'<th scope="col" class="number" title="{meaning}">{name}{unit}</th>')
        return "".join(heads) + '<th scope="col">environment</th>'

    def _figure(self, record: Record, metric: Any) -> str:
        summary = record.summaries.get(metric.name)
        if summary is None or summary.unit != metric.unit:
            return _cell("", "", "number")
        key = "" if math.isnan(summary.value) else summary.value
        return _cell(show_figure(summary.value, summary.low, summary.high), key, "number")

    def _row(self, report: Report, record: Record) -> str:
        rerun = f"transpool rerun REPORT {record.id}"
        cells = [f'<td><code title="{escape(rerun)}">{escape(record.id[:self.length])}</code></td>']
        if self.several:
            cells.append(_cell(report.name))
        for axis in self.axes:
            value = record.axes.get(axis)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            text = "" if value is None else show_value(value)
            cells.append(_cell(text, value, "number") if number else _cell(text))
        cells.append(_cell(str(record.seed), record.seed, "number"))
        cells.append(f'<td><span class="status {"ok" if record.ok else "bad"}">{escape(record.status)}</span></td>')
        if self.reasons:
            cells.append(f'<td class="reason" title="{escape(record.reason)}">{escape(record.reason)}</td>')
        cells += [*(self._figure(record, metric) for metric in self.metrics), _cell(record.environment)]
        return f'<tr data-record="{escape(record.id)}">{"".join(cells)}</tr>'

    def html(self) -> str:
        rows = "\n".join(self._row(report, record) for report, record in self.records)
        return (f'<div class="scroll"><table class="records"><thead><tr>{self._head()}</tr></thead>\n'
                f"<tbody>\n{rows}\n</tbody></table></div>")


def _counts(sweep: Sweep) -> str:
    records = [record for report in sweep.reports for record in report.records]
    statuses: dict[str, int] = {}
    for record in records:
        statuses[record.status] = statuses.get(record.status, 0) + 1
    parts = ", ".join(f"{count} {status}" for status, count in statuses.items())
    return f"{len(records)} records: {parts}" if records else "no records"


def _environments(sweep: Sweep) -> str:
    parts = []
    for report in sweep.reports:
        for key, environment in report.environments.items():
            rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in _flat(environment))
            label = key + (f" ({report.name})" if len(sweep.reports) > 1 else "")
            table = f'<table class="plain">{rows}</table>'
            parts.append(f"<details><summary>Environment {escape(label)}</summary>{table}</details>")
    for report in sweep.reports:
        text = escape(json.dumps(report.experiment, indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>Experiment of {escape(report.name)}</summary><pre>{text}</pre></details>")
    return "\n".join(parts)


def _figures(drawings: list[Drawing]) -> str:
    parts = []
    for drawing in drawings:
        size = ' class="wide"' if drawing.wide else ""
        parts.append(f"<figure{size}>{drawing.svg}<figcaption>{escape(drawing.caption)}</figcaption></figure>")
    return f'<div class="figures">{"".join(parts)}</div>' if parts else "<p>No record holds a figure to draw.</p>"


def _section(sweep: Sweep, drawings: list[Drawing]) -> str:
    level = sweep.reports[0].experiment.get("level")
    kind = f"Level: {escape(str(level))}. " if level else ""
    baseline = f"Baseline: {escape(sweep.baseline)}. " if sweep.baseline else ""
    return f"""<section>
<h2>{escape(sweep.name)}</h2>
<p class="lead">{kind}{baseline}{escape(_counts(sweep))}.</p>
{_figures(drawings)}
<h3>Records</h3>
<p class="hint">Click a heading to sort. A point of a figure leads to its record. An id's tooltip is the command that
measures it again. <input type="search" class="filter" placeholder="filter rows" aria-label="filter rows"></p>
{_Table(sweep).html()}
{_environments(sweep)}
</section>"""


def page(sections: list[tuple[Sweep, list[Drawing]]]) -> str:
    title = "Transpool: " + ", ".join(sweep.name for sweep, _ in sections)
    style = (_ASSETS / "page.css").read_text(encoding="utf-8")
    script = (_ASSETS / "page.js").read_text(encoding="utf-8")
    body = "\n".join(_section(sweep, drawings) for sweep, drawings in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""
