"""scripts/measure_peers.py on the CPU: its report is valid, its check finds wrong results, its statistics are those of reports."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

import jsonschema
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "scripts"), str(ROOT / "plots")]

import measure_peers  # noqa: E402
import torch_peers  # noqa: E402
from transpool_plots.reports import read_reports  # noqa: E402

POOLING = "pooling:2x64:16x8:float32"
ATTENTION = "attention:1x2x32x8:float32"


def measured(*arguments: str) -> tuple[int, Any]:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()), \
            contextlib.redirect_stdout(io.StringIO()):
        code = measure_peers.main(["--device", "cpu", "--samples", "3", "--out", folder, *arguments])
        read_reports([Path(folder)])
        return code, json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))


def run() -> measure_peers.Run:
    return measure_peers.Run(torch.device("cpu"), 3, random.Random(0), 16, copy_rate=1e9, product_rates={torch.float32: 1e9})


class Report(unittest.TestCase):
    def test_is_valid_and_holds_every_implementation_in_every_pass(self) -> None:
        code, report = measured("--shapes", POOLING, ATTENTION, "--chunk", "16")
        schema = json.loads((ROOT / "results" / "schema" / "report.schema.json").read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator(schema).validate(report)
        self.assertEqual(code, 0, [record["reason"] for record in report["records"]])
        names = {(r["axes"]["operator"], measure_peers.Implementation(r["axes"]["implementation"], "", None, None).name)
                 for r in report["records"]}
        self.assertLessEqual({("pooling", "successive_halving"), ("pooling", "torch_per_row_loop"), ("pooling", "torch_vectorised"),
                              ("pooling", "torch_topk_gather"), ("attention", "blockwise"), ("attention", "lsh"),
                              ("attention", "sdpa_math"), ("attention", "blockwise_sdpa_math")}, names)
        self.assertEqual(len({record["id"] for record in report["records"]}), len(report["records"]))
        for record in report["records"]:
            self.assertIn("backend", record["details"])
            skips = "skip" in record["axes"]["implementation"]  # how much it reads is not known
            self.assertEqual([s["name"] for s in record["summaries"]], ["time"] if skips else ["time", "bound_share"])
        self.assertGreater(report["environment"]["ceilings"]["copy_bytes_per_second"], 0)

    def test_a_size_that_a_peer_cannot_do_keeps_its_record(self) -> None:
        code, report = measured("--shapes", "pooling:2x50:7x8:float32", "--passes", "forward")
        statuses = {str(record["axes"]["implementation"]): record["status"] for record in report["records"]}
        self.assertEqual((code, statuses["successive_halving"], statuses["torch_vectorised"]), (0, "ok", "unsupported"))

    def test_options_and_a_choice_of_implementations(self) -> None:
        _, report = measured("--shapes", POOLING, "--passes", "forward", "--pooling", 'successive_halving {"base": 3}',
                             "--only", "halving")
        self.assertEqual([r["axes"]["implementation"] for r in report["records"]], [{"name": "successive_halving", "base": 3}])

    def test_each_is_compared_with_the_fastest_form_of_its_family(self) -> None:
        _, report = measured("--shapes", POOLING, "--passes", "forward")
        by_id = {record["id"]: record for record in report["records"]}
        ours = next(r for r in report["records"] if r["axes"]["implementation"] == "successive_halving")
        self.assertIn(by_id[ours["baseline"]]["axes"]["implementation"], {"torch_vectorised", "torch_per_row_loop"})

    def test_padded_batch_rows_are_measured_with_lengths_and_a_mask_of_keys(self) -> None:
        code, report = measured("--shapes", "attention:2x2x32x8:float32:padded", "--chunk", "16")
        found = {(str(r["axes"]["implementation"]), r["axes"]["pass"]): r["status"] for r in report["records"]}
        ours = str({"name": "blockwise", "chunk": 16})
        self.assertEqual(code, 0)
        self.assertEqual(found, {(name, pass_): "ok" for name in (ours, "blockwise_sdpa_math") for pass_ in measure_peers.PASSES})

    def test_wrong_shapes_are_refused(self) -> None:
        for text in ("pooling:2x64:16x8", "pooling:2x64:65x8:float32", "attention:1x2x32x8:int8", "16"):
            with self.subTest(text), contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
                measure_peers.parse(["--shapes", text])


class Check(unittest.TestCase):
    def test_a_wrong_result_or_gradient_gets_no_time(self) -> None:
        shape = measure_peers.Shape.parse(POOLING)

        def right(x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch_peers.topk_gather(x, scores, 16)

        def late(x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch_peers.rows_at(x, scores.topk(17, dim=1).indices[:, 1:])

        def deaf(x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            out = right(x, scores)
            return torch.cat([out[:, :8], out[:, 8:].detach()], 1)

        all_ = [measure_peers.Implementation(call.__name__, "hard_topk", call, right) for call in (right, late, deaf)]
        with contextlib.redirect_stderr(io.StringIO()):
            records = measure_peers.measure_group(shape, "forward+backward", all_, run())
        self.assertEqual([record["status"] for record in records], ["ok", "incorrect", "incorrect"])
        self.assertIn("values", records[1]["reason"])
        self.assertIn("x: ", records[2]["reason"])
        self.assertEqual(records[1]["summaries"], [])

    def test_one_that_throws_costs_its_record_alone(self) -> None:
        def broken(x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such kernel")

        one = measure_peers.Implementation("broken", "hard_topk", broken, broken)
        with contextlib.redirect_stderr(io.StringIO()):
            records = measure_peers.measure_group(measure_peers.Shape.parse(POOLING), "forward", [one], run())
        self.assertEqual((records[0]["status"], records[0]["reason"]), ("failed", "RuntimeError: no such kernel"))


class Forms(unittest.TestCase):
    def test_padded_rows_weigh_nothing(self) -> None:
        torch.manual_seed(1)
        x, scores = torch.randn(2, 11, 4, dtype=torch.float64), torch.rand(2, 11, dtype=torch.float64)
        found = torch_peers.successive_halving_form(torch.ones_like(x), scores, 3, 20.0, True)
        torch.testing.assert_close(found, torch.ones_like(found))
        same = torch_peers.successive_halving_form(x, scores, 11, 20.0, True)
        torch.testing.assert_close(same, x)

    def test_chunks_see_only_themselves_and_a_shorter_last_one_is_a_chunk(self) -> None:
        torch.manual_seed(1)
        q, k, v = (torch.randn(2, 11, 3, 4, dtype=torch.float64).transpose(1, 2) for _ in range(3))
        found = torch_peers.chunked(torch_peers.attention_form, 4)(q, k, v)
        for begin in (0, 4, 8):
            part = slice(begin, min(begin + 4, 11))
            expected = torch.nn.functional.scaled_dot_product_attention(q[:, :, part], k[:, :, part], v[:, :, part])
            torch.testing.assert_close(found[:, :, part], expected)
        short = torch_peers.chunked(torch_peers.attention_form, 16)(q, k, v)
        torch.testing.assert_close(short, torch.nn.functional.scaled_dot_product_attention(q, k, v))

    def test_the_median_and_its_interval_are_order_statistics(self) -> None:
        self.assertEqual(measure_peers.median_of([3.0, 1.0, 2.0]), (2.0, 1.0, 3.0))
        middle, low, high = measure_peers.median_of([float(i) for i in range(100)])
        self.assertEqual((middle, low, high), (49.5, 39.0, 60.0))


if __name__ == "__main__":
    unittest.main()
