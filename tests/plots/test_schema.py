"""The sample reports and every report that is committed under results/ are valid by the schema, and the schema is strict."""

from __future__ import annotations

import copy
import json
import unittest
from pathlib import Path
from typing import Any

import jsonschema

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "runners" / "golden" / "report"


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class Schema(unittest.TestCase):
    def setUp(self) -> None:
        schema = load(ROOT / "results" / "schema" / "report.schema.json")
        jsonschema.Draft202012Validator.check_schema(schema)
        self.validator = jsonschema.Draft202012Validator(schema)
        self.sample = load(SAMPLES / "quickstart.json")

    def rejects(self, report: Any) -> None:
        self.assertFalse(self.validator.is_valid(report))

    def test_samples_and_committed_reports_are_valid(self) -> None:
        paths = sorted(SAMPLES.glob("*.json")) + sorted((ROOT / "results").rglob("report.json"))
        self.assertGreaterEqual(len(paths), 2)
        for path in paths:
            with self.subTest(path=path.relative_to(ROOT)):
                errors = self.validator.iter_errors(load(path))
                problems = [f"/{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in errors]
                self.assertEqual(problems[:5], [])

    def test_every_key_of_ours_is_required(self) -> None:
        for key in self.sample:
            self.rejects({name: value for name, value in self.sample.items() if name != key})
        for key in self.sample["records"][0]:
            report = copy.deepcopy(self.sample)
            del report["records"][0][key]
            self.rejects(report)
        for key in self.sample["records"][0]["summaries"][0]:
            report = copy.deepcopy(self.sample)
            del report["records"][0]["summaries"][0][key]
            self.rejects(report)

    def test_unknown_keys_are_rejected(self) -> None:
        for part in (lambda r: r, lambda r: r["records"][0], lambda r: r["records"][0]["summaries"][0]):
            report = copy.deepcopy(self.sample)
            part(report)["surprise"] = 1
            self.rejects(report)

    def test_a_status_other_than_ok_needs_a_reason(self) -> None:
        record = self.sample["records"][0]
        self.assertEqual((record["status"], record["reason"]), ("ok", ""))
        record["status"] = "crashed"
        self.rejects(self.sample)
        record["reason"] = "signal 9"
        self.assertTrue(self.validator.is_valid(self.sample))
        record["status"] = "lost"
        self.rejects(self.sample)

    def test_a_value_that_is_not_finite_is_null(self) -> None:
        summary = self.sample["records"][0]["summaries"][0]
        summary["value"], summary["samples"], summary["interval"] = None, [1.0, None], [None, 2.0]
        self.assertTrue(self.validator.is_valid(self.sample))
        summary["interval"] = [1.0]
        self.rejects(self.sample)

    def test_an_environment_names_no_host_and_no_user(self) -> None:
        self.sample["environment"]["hostname"] = "somewhere"
        self.rejects(self.sample)


if __name__ == "__main__":
    unittest.main()
