"""Our cosines beside those that the authors of Successive Halving published: a table and a figure.

    python -m transpool_plots.authors REPORT [--published CSV] --out DIR

REPORT is the report of experiments/operator-quality-paper.json; CSV is results/reference/topk_authors.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from matplotlib.figure import Figure as Canvas

from . import style
from .display import show_value

_METRIC = "selection_cosine"
# The authors give means over 15 runs without a spread; ours have one. Theirs is taken to be as wide for as many draws.
_INTERVALS = 3
_ROUNDING = 0.003


def _published(path: Path) -> dict[tuple[str, int, int], float]:
    with path.open(newline="") as file:
        return {(row["method"], int(row["n"]), int(row["k"])): float(row["cosine_rowwise_mean"]) for row in csv.DictReader(file)}


def _rows(report: dict, published: dict[tuple[str, int, int], float]) -> list[dict]:
    rows = []
    for record in report["records"]:
        pooling, n, k = (record["axes"][axis] for axis in ("pooling", "source_length", "pooled_length"))
        name = pooling if isinstance(pooling, str) else pooling["name"]
        summary = next((s for s in record["summaries"] if s["name"] == _METRIC), None)
        if summary is None or (name, n, k) not in published:
            continue
        low, high = summary.get("ci") or summary.get("interval") or (summary["value"], summary["value"])
        theirs = published[name, n, k]
        allowed = _INTERVALS * (high - low) / 2 + _ROUNDING
        rows.append({"label": show_value(pooling), "n": n, "k": k, "ours": summary["value"], "theirs": theirs,
                     "agrees": abs(summary["value"] - theirs) <= allowed, "record": record["id"]})
    return rows


def table(rows: list[dict]) -> str:
    """One line a method, then one a cell."""
    lines = ["| operator | cells | agree | largest difference | mean of ours | mean of theirs |", "|---|---:|---:|---:|---:|---:|"]
    for label in dict.fromkeys(row["label"] for row in rows):
        mine = [row for row in rows if row["label"] == label]
        worst = max(mine, key=lambda row: abs(row["ours"] - row["theirs"]))
        lines.append(f"| {label} | {len(mine)} | {sum(row['agrees'] for row in mine)} | "
                     f"{worst['ours'] - worst['theirs']:+.4f} at {worst['n']} -> {worst['k']} | "
                     f"{sum(row['ours'] for row in mine) / len(mine):.4f} | {sum(row['theirs'] for row in mine) / len(mine):.4f} |")
    lines += ["", "| operator | n | k | ours | theirs | difference | record |", "|---|---:|---:|---:|---:|---:|---|"]
    lines += [f"| {row['label']} | {row['n']} | {row['k']} | {row['ours']:.4f} | {row['theirs']:.4f} | "
              f"{row['ours'] - row['theirs']:+.4f} | {row['record'][:8]} |" for row in rows]
    return "\n".join(lines) + "\n"


def figure(rows: list[dict]) -> Canvas:
    """Ours against theirs: what agrees lies on the diagonal."""
    style.apply()
    labels = list(dict.fromkeys(row["label"] for row in rows))
    looks = style.looks(labels, None)
    canvas = Canvas(figsize=(4.6, 4.2), layout="constrained")
    axes = canvas.add_subplot()
    axes.axline((0, 0), slope=1, color=style.MUTED, linewidth=0.8)
    for label in labels:
        mine = [row for row in rows if row["label"] == label]
        axes.plot([row["theirs"] for row in mine], [row["ours"] for row in mine], looks[label].marker, markersize=4,
                  color=looks[label].colour, alpha=0.7, label=label)
    axes.set(xlabel="published cosine with the hard rows", ylabel="ours", xlim=(0, 1.02), ylim=(0, 1.02),
             title="85 sizes of the authors' benchmark")
    axes.legend(frameon=False, fontsize=7)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--published", type=Path, default=Path("results/reference/topk_authors.csv"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    path = arguments.report / "report.json" if arguments.report.is_dir() else arguments.report
    rows = _rows(json.loads(path.read_text()), _published(arguments.published))
    if not rows:
        parser.error(f"{path}: no record has {_METRIC} at a published size")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "authors.md").write_text(table(rows))
    figure(rows).savefig(arguments.out / "authors.png")
    print(table(rows).split("\n\n")[0])


if __name__ == "__main__":
    main()
