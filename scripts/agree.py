#!/usr/bin/env python3
"""Whether a report and Google Benchmark give the same times: prints both, and fails where they differ by more than 3 %.

    transpool run experiments/operator-speed-successive-halving.json --device cuda --out out/speed
    transpool_benchmark --benchmark_filter='/16x8192to512x512/.*/cuda' --benchmark_out=out/benchmark.json
    python scripts/agree.py out/speed out/benchmark.json

Compared are the medians of operators with their default options at the sizes that both hold. A pass for which the device waited
for the host is shown, but not judged: its time is the host's, which differs from one process to the next. Exit code 0: they
agree; 1: some differ; 2: a file is wrong, or nothing can be judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple


def read(path: Path) -> Any:
    file = path / "report.json" if path.is_dir() else path
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"agree: {file}: {error}", file=sys.stderr)
        sys.exit(2)


def benchmark_name(record: dict[str, Any], experiment: dict[str, Any]) -> str | None:
    """What transpool_benchmark calls the same case; None where it has none: other options, lengths, scores."""
    c = record["configuration"]
    kind = c.get("operator")
    written = record["axes"].get(kind, experiment.get("fixed", {}).get(kind))
    plain = c.get("timing.head_start") and not c.get("timing.graph") and not c.get("causal") and c.get("lengths") == "full" and c.get("scores") == "uniform"
    if c.get("level") != "operator" or not isinstance(written, str) or not plain:
        return None
    if kind == "pooling":
        shape = f"{c['batch']}x{c['source_length']}to{c['pooled_length']}x{c['width']}"
    else:
        shape = f"{c['batch']}x{c['heads']}x{c['source_length']}x{c['width'] // c['heads']}"
    return f"{kind}/{written}/{c['pass']}/{shape}/{c['dtype']}/{c['device']}"


class Time(NamedTuple):
    ms: float
    host_bound: bool  # of most passes


def report_times(report: Any) -> dict[str, Time]:
    times = {}
    for record in report["records"]:
        name = benchmark_name(record, report["experiment"]) if record["status"] == "ok" else None
        time = next((s["value"] for s in record["summaries"] if s["name"] == "time" and s["unit"] == "ms"), None)
        if name is not None and time is not None:
            times[name] = Time(time, record.get("details", {}).get("timing", {}).get("host_bound", 0) > 0.5)
    return times


def benchmark_times(benchmark: Any) -> dict[str, Time]:
    """By name without what Google Benchmark appends to it (/manual_time)."""
    found = [run for run in benchmark["benchmarks"] if "median_ms" in run and run.get("run_type") != "aggregate"]
    return {run["name"].removesuffix("/manual_time"): Time(run["median_ms"], run.get("host_bound", 0) > 0.5) for run in found}


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.json, or the folder that holds it")
    parser.add_argument("benchmark", type=Path, help="what --benchmark_out wrote")
    parser.add_argument("--within", type=float, default=3.0, metavar="PERCENT", help="largest difference (default: %(default)s)")
    arguments = parser.parse_args(given)
    try:
        ours, theirs = report_times(read(arguments.report)), benchmark_times(read(arguments.benchmark))
    except (KeyError, TypeError) as error:
        print(f"agree: {arguments.report} or {arguments.benchmark}: no report or no Google Benchmark output: {error!r}", file=sys.stderr)
        return 2
    both = [name for name in ours if name in theirs]
    judged = [name for name in both if not (ours[name].host_bound or theirs[name].host_bound)]
    if not judged:
        print(f"agree: no operator and size is in both files{', but for what waits for the host' if both else ''}", file=sys.stderr)
        return 2
    width, apart = max(map(len, both)), 0
    print(f"{'':{width}}  {'report (ms)':>12}  {'benchmark (ms)':>14}  difference")
    for name in both:
        difference = 100 * (theirs[name].ms / ours[name].ms - 1)
        far = name in judged and abs(difference) > arguments.within
        apart += far
        mark = "  <-- apart" if far else "" if name in judged else "  waits for the host"
        print(f"{name:{width}}  {ours[name].ms:12.5f}  {theirs[name].ms:14.5f}  {difference:+9.2f} %{mark}")
    print(f"{len(judged) - apart} of {len(judged)} within {arguments.within:g} %")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
