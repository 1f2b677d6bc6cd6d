"""scripts/agree.py: which cases it pairs, and what it says of them."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

import agree  # noqa: E402

NAME = "pooling/hard_topk/forward/2x500to33x64/float32/cpu"


def record(time: float, **changes: Any) -> dict[str, Any]:
    configuration = {"level": "operator", "device": "cpu", "operator": "pooling", "pooling": {"name": "hard_topk"}, "batch": 2,
                     "source_length": 500, "pooled_length": 33, "width": 64, "heads": 8, "dtype": "float32", "pass": "forward",
                     "scores": "uniform", "lengths": "full", "causal": False, "timing.graph": False,
                     "timing.head_start": True, **changes}
    return {"axes": {"pooling": "hard_topk"}, "status": "ok", "configuration": configuration,
            "summaries": [{"name": "time", "unit": "ms", "value": time}]}


class Agree(unittest.TestCase):
    def compare(self, records: list[dict[str, Any]], median: float, *more: str, host_bound: float = 0) -> tuple[int, str]:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as out, \
                contextlib.redirect_stderr(io.StringIO()):
            report, benchmark = Path(folder) / "report.json", Path(folder) / "benchmark.json"
            report.write_text(json.dumps({"experiment": {"fixed": {}}, "records": records}))
            benchmark.write_text(json.dumps({"benchmarks": [{"name": NAME + "/manual_time", "run_type": "iteration",
                                                             "real_time": 9.0, "median_ms": median,
                                                             "host_bound": host_bound}]}))
            code = agree.main([str(report), str(benchmark), *more])
        return code, out.getvalue()

    def test_within_three_percent(self) -> None:
        code, out = self.compare([record(1.0)], 1.029)
        self.assertEqual(code, 0)
        self.assertIn(NAME, out)
        self.assertIn("+2.90 %", out)

    def test_further_apart_in_either_direction(self) -> None:
        for median in (1.031, 0.969):
            code, out = self.compare([record(1.0)], median)
            self.assertEqual(code, 1)
            self.assertIn("apart", out)
        self.assertEqual(self.compare([record(1.0)], 1.031, "--within", "5")[0], 0)

    def test_what_waits_for_the_host_is_not_judged(self) -> None:
        bound, free = record(1.0), record(2.0, batch=3)
        bound["details"] = {"timing": {"host_bound": 0.9}}
        self.assertEqual(self.compare([bound], 2.0)[0], 2)
        self.assertEqual(self.compare([record(1.0)], 2.0, host_bound=1.0)[0], 2)
        bound["details"]["timing"]["host_bound"] = 0.1
        self.assertEqual(self.compare([bound, free], 2.0, host_bound=0.1)[0], 1)

    def test_other_inputs_and_options_are_no_pair(self) -> None:
        for changes in ({"scores": "gaussian"}, {"lengths": "random"}, {"timing.graph": True}, {"timing.head_start": False}, {"dtype": "bfloat16"}, {"batch": 3}):
            self.assertEqual(self.compare([record(1.0, **changes)], 1.0)[0], 2, changes)
        other = record(1.0)
        other["axes"]["pooling"] = {"name": "hard_topk", "gradient": "none"}
        self.assertEqual(self.compare([other], 1.0)[0], 2)

    def test_a_wrong_file_is_named(self) -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as err:
            with self.assertRaises(SystemExit) as stopped:
                agree.main([folder, folder])
        self.assertEqual(stopped.exception.code, 2)
        self.assertIn("report.json", err.getvalue())


if __name__ == "__main__":
    unittest.main()
