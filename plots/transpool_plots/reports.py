"""Reports as the figures need them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1


class ReportError(Exception):
    """A file that is no report; the message names the file and the place."""


@dataclass(frozen=True)
class Summary:
    name: str
    unit: str
    value: float  # NaN where the report has null
    low: float | None
    high: float | None
    higher_is_better: bool
    statistic: str
    meaning: str


@dataclass(frozen=True)
class Record:
    id: str
    report: str
    axes: dict[str, Any]
    seed: int
    status: str
    reason: str
    baseline: str
    environment: str
    summaries: dict[str, Summary]
    configuration: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.status == "ok"


@dataclass(frozen=True)
class Report:
    name: str
    path: Path
    experiment: dict[str, Any]
    environments: dict[str, Any]
    records: list[Record] = field(default_factory=list)


def _number(value: Any, place: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ReportError(f"{place}: must be a number or null, not {json.dumps(value)}")
    return float(value)


def _required(data: Any, key: str, kind: type, place: str) -> Any:
    if not isinstance(data, dict):
        raise ReportError(f"{place}: must be an object")
    if key not in data:
        raise ReportError(f'{place}: lacks the key "{key}"')
    if not isinstance(data[key], kind):
        raise ReportError(f"{place}/{key}: must be of type {kind.__name__}")
    return data[key]


def _summary(data: Any, place: str) -> Summary:
    name = _required(data, "name", str, place)
    interval = data.get("interval")
    low = high = None
    if isinstance(interval, list) and len(interval) == 2 and None not in interval:
        low, high = (_number(end, f"{place}/interval") for end in interval)
    return Summary(name, data.get("unit", ""), _number(data.get("value"), f"{place}/value"), low, high,
                   bool(data.get("higher_is_better", False)), data.get("statistic", "value"), data.get("meaning", ""))


def _record(data: Any, report: str, place: str) -> Record:
    summaries = _required(data, "summaries", list, place)
    read = [_summary(summary, f"{place}/summaries/{i}") for i, summary in enumerate(summaries)]
    return Record(
        id=_required(data, "id", str, place),
        report=report,
        axes=_required(data, "axes", dict, place),
        seed=data.get("seed", 0),
        status=_required(data, "status", str, place),
        reason=_required(data, "reason", str, place),
        baseline=data.get("baseline", ""),
        environment=data.get("environment", ""),
        summaries={summary.name: summary for summary in read},
        configuration=data.get("configuration") or {},
        details=data.get("details") or {},
    )


def read_report(path: Path, name: str) -> Report:
    file = path / "report.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise ReportError(f"{file}: is not JSON: {error}") from error
    version = _required(data, "schema_version", int, f"{file}: ")
    if version > SCHEMA_VERSION:
        raise ReportError(f"{file}: /schema_version is {version}, but these plots read schemas up to {SCHEMA_VERSION}")
    records = _required(data, "records", list, f"{file}: ")
    return Report(
        name=name,
        path=path,
        experiment=data.get("experiment", {}),
        environments=data.get("environments", {}),
        records=[_record(record, name, f"{file}: /records/{i}") for i, record in enumerate(records)],
    )


def read_reports(paths: list[Path]) -> list[Report]:
    """Each report is named by its file, or by its folder where the file is called report.json; names are unique."""
    names = []
    for path in paths:
        named = path.parent if path.name == "report.json" else path
        names.append((named.resolve().name if named.is_dir() else named.stem) or str(path))
    return [read_report(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names)]
