"""Writes the sample reports that the tests of tables, figures and the schema read.

All figures are invented; only their shape is that of a real run: two seeds, intervals, a cell that ran out of memory and
one that failed.

    python make_reports.py
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "compiler": "GCC 12.2.0",
    "flags": "-O3",
    "libtorch": "2.11.0",
    "cpu": "An invented processor",
    "threads": 16,
    "gpu": {"name": "An invented accelerator", "memory": "80 GiB"},
}

# name: (cost in ms at 1024 tokens, growth of time with length, MiB at 1024, growth of memory, GFLOP at 1024, ROUGE-1)
ENCODERS: dict[str, tuple[float, float, float, float, float, float]] = {
    "vanilla": (3.1, 1.9, 210.0, 1.9, 61.0, 46.3),
    "blockwise": (3.4, 1.02, 240.0, 1.0, 55.0, 45.4),
    "transpooler": (3.0, 1.0, 215.0, 0.98, 50.0, 46.6),
    "pyramidion": (2.1, 0.97, 150.0, 0.95, 31.0, 46.8),
    "deep_pyramidion": (2.9, 0.96, 170.0, 0.94, 38.0, 47.2),
}


def axis_value(encoder: str) -> Any:
    return {"name": "deep_pyramidion", "layers": 12} if encoder == "deep_pyramidion" else encoder


def summary(name: str, unit: str, samples: list[float], statistic: str, meaning: str, better: bool = False,
            half: float | None = None) -> dict[str, Any]:
    ordered = sorted(samples)
    value = ordered[len(ordered) // 2]
    interval = None if half is None else [round(value - half, 6), round(value + half, 6)]
    return {"name": name, "unit": unit, "value": value, "statistic": statistic, "higher_is_better": better,
            "interval": interval, "samples": samples if len(samples) > 1 else [], "meaning": meaning}


def summaries(encoder: str, length: int, draw: random.Random) -> list[dict[str, Any]]:
    time, time_growth, memory, memory_growth, flops, rouge = ENCODERS[encoder]
    scale = length / 1024
    median = time * scale**time_growth * draw.uniform(0.995, 1.005)
    times = [round(median * (1 + abs(draw.gauss(0, 0.006))), 5) for _ in range(11)]
    model = round(flops * scale ** (1 + (time_growth - 1) / 2), 3)
    quality = rouge + 0.35 * int(scale).bit_length() + draw.gauss(0, 0.04)
    return [
        summary("time", "ms", times, "median", "Wall time of one forward and backward pass", half=0.004 * median),
        summary("peak_memory", "MiB", [round(memory * scale**memory_growth, 2)], "max", "Peak of allocated memory"),
        summary("flops_model", "GFLOP", [model], "value", "Declared floating-point operations"),
        summary("flops_executed", "GFLOP", [round(model * 1.04, 3)], "value", "Observed floating-point operations"),
        summary("batch", "1", [4], "value", "Documents in one batch"),
        summary("rouge1", "%", [round(quality, 3)], "mean", "ROUGE-1 F-measure", True, 0.35),
        summary("rouge2", "%", [round(0.43 * quality, 3)], "mean", "ROUGE-2 F-measure", True, 0.3),
    ]


def record(name: str, encoder: str, length: int | None, seed: int, draw: random.Random) -> dict[str, Any]:
    axes: dict[str, Any] = {"encoder": axis_value(encoder)}
    if length is not None:
        axes["source_length"] = length
    configuration = {"level": "model", **axes, "batch": 4, "dtype": "float32", "seed": seed}
    text = json.dumps([name, configuration], sort_keys=True)
    status, reason = "ok", ""
    if encoder == "vanilla" and (length == 8192):
        status, reason = "oom", "tried to allocate 12.00 GiB; 3.51 GiB of 79.10 GiB are free"
    if encoder == "blockwise" and seed == 1 and length in (4096, None):
        status, reason = "failed", "the loss is not finite after step 3"
    return {
        "id": hashlib.sha256(text.encode()).hexdigest()[:16],
        "axes": axes,
        "seed": seed,
        "configuration": configuration,
        "status": status,
        "reason": reason,
        "baseline": "",
        "environment": "invented",
        "started": f"2026-01-02T03:04:{seed:02d}Z",
        "seconds": 12.5,
        "summaries": summaries(encoder, length or 2048, draw) if status == "ok" else [],
        "details": {"attention_backend": "blockwise" if encoder != "vanilla" else "full"},
    }


def report(name: str, lengths: list[int | None]) -> dict[str, Any]:
    draw = random.Random(name)
    records = [record(name, encoder, length, seed, draw) for encoder in ENCODERS for length in lengths for seed in (0, 1)]
    baselines = {(r["axes"].get("source_length"), r["seed"]): r["id"] for r in records if r["axes"]["encoder"] == "vanilla"}
    for one in records:
        one["baseline"] = baselines[(one["axes"].get("source_length"), one["seed"])]
    axes: dict[str, Any] = {"encoder": [axis_value(encoder) for encoder in ENCODERS]}
    if lengths != [None]:
        axes["source_length"] = lengths
    experiment = {"name": name, "level": "model", "measure": ["time", "memory", "flops", "rouge"],
                  "fixed": {"batch": 4, "dtype": "float32"}, "axes": axes, "baseline": {"encoder": "vanilla"},
                  "seeds": [0, 1]}
    return {"schema_version": 1, "experiment": experiment, "environment": ENVIRONMENT,
            "environments": {"invented": ENVIRONMENT}, "records": records}


def main() -> None:
    folder = Path(__file__).parent
    for name, lengths in (("encoders", [1024, 2048, 4096, 8192]), ("quickstart", [None])):
        text = json.dumps(report(name, lengths), indent=1)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
