"""Cells, metrics and variants: what the records of one experiment say, averaged over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .display import Quantity, quantity_of, show_value
from .reports import Record, Report

# 97.5 % points of Student's t for 1, 2, ... degrees of freedom.
_STUDENT_T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
              2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]


@dataclass(frozen=True)
class Metric:
    name: str
    unit: str
    higher_is_better: bool
    meaning: str

    @property
    def quantity(self) -> Quantity:
        return quantity_of(self.unit)

    @property
    def kind(self) -> tuple[Quantity, bool]:
        return self.quantity, self.higher_is_better


@dataclass(frozen=True)
class Figure:
    """A value with its interval, and the records it came from."""

    value: float
    low: float | None
    high: float | None
    ids: tuple[str, ...]


@dataclass
class Cell:
    """Records that differ in their seed alone."""

    axes: dict[str, Any]
    variant: str
    records: list[Record] = field(default_factory=list)
    baseline: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(record.id for record in self.records)

    @property
    def status(self) -> str:
        """Of the first record that is not ok, else ok."""
        return next((record.status for record in self.records if not record.ok), "ok")

    def figure(self, metric: Metric) -> Figure | None:
        """The mean over seeds with its interval; for one seed the record's own. None where nothing was measured."""
        found = [(record.id, record.summaries[metric.name]) for record in self.records
                 if record.ok and metric.name in record.summaries]
        found = [(id, s) for id, s in found if s.unit == metric.unit and math.isfinite(s.value)]
        if not found:
            return None
        ids = tuple(id for id, _ in found)
        if len(found) == 1:
            only = found[0][1]
            return Figure(only.value, only.low, only.high, ids)
        values = [summary.value for _, summary in found]
        count = len(values)
        mean = sum(values) / count
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
        t = _STUDENT_T[count - 2] if count - 2 < len(_STUDENT_T) else 1.95996 + 2.3724 / (count - 1)
        half = t * deviation / math.sqrt(count)
        return Figure(mean, mean - half, mean + half, ids)


@dataclass
class Sweep:
    """All cells of one experiment, from one report or from several that ran the same."""

    name: str
    reports: list[Report]
    cells: list[Cell]
    numeric_axes: list[str]  # those that vary; the others are part of the variant
    variants: list[str]  # in the order of the records
    baseline: str | None  # the variant that the others are compared with
    metrics: list[Metric]  # those that vary, in the order readers look for them

    def leading_metrics(self) -> list[Metric]:
        """The first metric of each kind of quantity."""
        kinds: dict[tuple[Quantity, bool], Metric] = {}
        for metric in self.metrics:
            kinds.setdefault(metric.kind, metric)
        return list(kinds.values())

    def dependent_on(self, axis: str) -> set[str]:
        """Numeric axes whose value follows from that of `axis`, because they move together."""
        followers = set()
        for other in self.numeric_axes:
            values: dict[str, set[str]] = {}
            for cell in self.cells:
                values.setdefault(show_value(cell.axes.get(axis)), set()).add(show_value(cell.axes.get(other)))
            if other != axis and all(len(found) == 1 for found in values.values()):
                followers.add(other)
        return followers


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _axis_values(records: list[Record]) -> dict[str, list[Any]]:
    """Axis name to its different values, in the order of the records. Seeds are averaged over, so they are no axis."""
    axes: dict[str, dict[str, Any]] = {}
    for record in records:
        for axis, value in record.axes.items():
            if axis != "seed":
                axes.setdefault(axis, {}).setdefault(show_value(value), value)
    return {axis: list(values.values()) for axis, values in axes.items()}


def _metrics(records: list[Record]) -> list[Metric]:
    values: dict[Metric, set[float]] = {}
    counts: dict[Metric, int] = {}
    for record in records:
        for summary in record.summaries.values() if record.ok else ():
            if math.isfinite(summary.value):
                metric = Metric(summary.name, summary.unit, summary.higher_is_better, summary.meaning)
                values.setdefault(metric, set()).add(summary.value)
                counts[metric] = counts.get(metric, 0) + 1
    # A metric that is the same in every record tells nothing, unless there is but one record.
    varying = [metric for metric in values if len(values[metric]) > 1 or counts[metric] == 1]
    return sorted(varying, key=lambda metric: metric.quantity)


def _sweep(name: str, reports: list[Report]) -> Sweep:
    records = [record for report in reports for record in report.records]
    axes = _axis_values(records)
    varying = [axis for axis, values in axes.items() if len(values) > 1]
    numeric = [axis for axis in varying if all(map(_is_number, axes[axis]))]
    naming = [axis for axis in varying if axis not in numeric] or [axis for axis in axes if axis not in numeric]
    compared = {record.baseline for record in records if record.baseline}
    cells: dict[tuple[str, ...], Cell] = {}
    for record in records:
        parts = [show_value(record.axes[axis]) for axis in naming if axis in record.axes]
        variant = " · ".join(parts + ([record.report] if len(reports) > 1 else [])) or name
        key = (variant, *(show_value(record.axes.get(axis)) for axis in axes))
        cell = cells.setdefault(key, Cell(record.axes, variant))
        cell.records.append(record)
        cell.baseline = cell.baseline or record.id in compared
    variants = list(dict.fromkeys(cell.variant for cell in cells.values()))
    # Only a variant that is the baseline wherever it occurs can stand for the baseline in a whole figure.
    bases = [v for v in variants if compared and all(cell.baseline for cell in cells.values() if cell.variant == v)]
    return Sweep(name, reports, list(cells.values()), numeric, variants, bases[0] if len(bases) == 1 else None,
                 _metrics(records))


def sweeps_of(reports: list[Report]) -> list[Sweep]:
    """Reports of one experiment are drawn together; different experiments apart."""
    groups: dict[str, list[Report]] = {}
    for report in reports:
        groups.setdefault(str(report.experiment.get("name") or report.name), []).append(report)
    return [_sweep(name, group) for name, group in groups.items()]
