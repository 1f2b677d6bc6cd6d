"""Figures and the page: what they show, what they name, and what becomes of a report that is wrong."""

from __future__ import annotations

import contextlib
import copy
import html.parser
import io
import json
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "tests" / "runners" / "golden" / "report"
sys.path.insert(0, str(ROOT / "plots"))

from transpool_plots import __main__ as program  # noqa: E402
from transpool_plots import bars, marks, pareto, roofline, style  # noqa: E402
from transpool_plots.cells import Sweep, sweeps_of  # noqa: E402
from transpool_plots.display import Quantity, quantity_of, show_figure, show_value  # noqa: E402
from transpool_plots.reports import read_reports  # noqa: E402

TITLE = "{http://www.w3.org/2000/svg}title"


def load(name: str) -> Any:
    return json.loads((SAMPLES / name).read_text(encoding="utf-8"))


def sweep(name: str) -> Sweep:
    return sweeps_of(read_reports([SAMPLES / name]))[0]


class Run(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.out = self.folder / "out"

    def plot(self, *reports: Path) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = program.main([*map(str, reports), "--out", str(self.out)])
        return code, out.getvalue(), err.getvalue()

    def report(self, data: Any, name: str = "report.json") -> Path:
        path = self.folder / name
        path.write_text(json.dumps(data), encoding="utf-8")
        return path


class Display(unittest.TestCase):
    """The same rules as `transpool table`, so the same cases as its tests."""

    def test_values(self) -> None:
        self.assertEqual(show_value({"name": "successive_halving", "base": 20}), "successive_halving(base=20)")
        self.assertEqual(show_value({"0": 2048, "1": 512}), "{0=2048, 1=512}")
        self.assertEqual(show_value({"name": "a", "b": True}), "a(b=true)")

    def test_figures(self) -> None:
        self.assertEqual(show_figure(12.34567, 12.3334, 12.358), "12.346 ± 0.012")
        self.assertEqual(show_figure(12.34567, 11.7, 12.9), "12.3 ± 0.6")
        self.assertEqual(show_figure(1234.5, 1034.5, 1434.5), "1234 ± 200")
        self.assertEqual(show_figure(12.34567, None, None), "12.35")
        self.assertEqual(show_figure(480, 480, 480), "480")

    def test_units_say_what_they_measure(self) -> None:
        quantities = {"ms": Quantity.TIME, "MiB": Quantity.MEMORY, "GB": Quantity.MEMORY, "GFLOP": Quantity.OPERATIONS,
                      "tokens/s": Quantity.RATE, "TFLOPS": Quantity.RATE, "%": Quantity.OTHER}
        for unit, quantity in quantities.items():
            self.assertIs(quantity_of(unit), quantity, unit)


class Cells(unittest.TestCase):
    def test_variants_and_axes(self) -> None:
        found = sweep("encoders.json")
        self.assertEqual(found.numeric_axes, ["source_length"])
        self.assertEqual(found.variants[-1], "deep_pyramidion(layers=12)")
        self.assertEqual(found.baseline, "vanilla")
        self.assertEqual(len(found.cells), 20)

    def test_a_constant_metric_is_left_out_and_kinds_come_in_order(self) -> None:
        names = [metric.name for metric in sweep("quickstart.json").metrics]
        self.assertEqual(names, ["time", "peak_memory", "flops_model", "flops_executed", "rouge1", "rouge2"])

    def test_seeds_are_averaged(self) -> None:
        found = sweep("quickstart.json")
        records = load("quickstart.json")["records"][:2]
        values = [record["summaries"][0]["value"] for record in records]
        figure = found.cells[0].figure(found.metrics[0])
        assert figure is not None and figure.low is not None
        self.assertAlmostEqual(figure.value, sum(values) / 2)
        self.assertAlmostEqual(figure.value - figure.low, 12.706 * abs(values[0] - values[1]) / 2)
        self.assertEqual(figure.ids, tuple(record["id"] for record in records))

    def test_axes_that_move_together(self) -> None:
        data = load("encoders.json")
        for record in data["records"]:
            record["axes"]["pooled_length"] = record["axes"]["source_length"] // 16
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "zipped.json"
            path.write_text(json.dumps(data), encoding="utf-8")
            self.assertEqual(sweeps_of(read_reports([path]))[0].dependent_on("source_length"), {"pooled_length"})

    def test_the_pareto_front_holds_what_nothing_beats(self) -> None:
        found = sweep("quickstart.json")
        metrics = {metric.name: metric for metric in found.metrics}
        points = pareto.points_of(found, metrics["time"], metrics["rouge1"])
        self.assertEqual([point[0].variant for point in pareto.front(points)], ["pyramidion", "deep_pyramidion(layers=12)"])

    def test_labels_move_apart_but_no_further(self) -> None:
        self.assertEqual(marks.spread([0.0, 10.0], 2.0), [0.0, 10.0])
        self.assertEqual(marks.spread([5.0, 5.0], 2.0), [4.0, 6.0])
        moved = sorted(marks.spread([1.0, 1.1, 1.2, 2.9, 9.0], 1.0))
        self.assertTrue(all(b - a >= 1.0 - 1e-9 for a, b in zip(moved, moved[1:])), moved)

    def test_every_variant_has_a_look_of_its_own(self) -> None:
        variants = [f"v{i}" for i in range(20)]
        looks = style.looks(variants, "v3")
        self.assertEqual(len(set(looks.values())), 20)

    def test_panels_are_few(self) -> None:
        self.assertLessEqual(len(bars.metrics_of(sweep("quickstart.json"))), bars.MOST_PANELS)


class Files(Run):
    def test_prints_the_paths_that_it_writes(self) -> None:
        code, out, err = self.plot(SAMPLES / "encoders.json", SAMPLES / "quickstart.json")
        self.assertEqual((code, err), (0, ""))
        printed = {Path(line) for line in out.splitlines()}
        self.assertEqual(printed, set(self.out.iterdir()))
        names = {path.name for path in printed}
        for name in ("encoders-time-by-source_length.png", "encoders-time-by-source_length.svg", "quickstart-variants.svg",
                     "encoders-rouge1-against-time.png", "encoders-peak_memory-by-source_length.png", "index.html"):
            self.assertIn(name, names)

    def test_every_point_names_its_records(self) -> None:
        self.plot(SAMPLES / "encoders.json")
        root = ElementTree.parse(self.out / "encoders-time-by-source_length.svg").getroot()
        named = {id for group in root.iter() if (ids := group.get("data-records")) for id in ids.split()}
        records = {record["id"]: record for record in load("encoders.json")["records"]}
        # A failed seed of a cell that has another has no point of its own: the point is not made from it.
        failed = {id for id, record in records.items() if record["status"] == "failed"}
        self.assertEqual(named, set(records) - failed)
        tips = [group.findtext(TITLE) or "" for group in root.iter() if group.get("data-records")]
        self.assertTrue(any("time: oom" in tip for tip in tips), tips)
        self.assertTrue(all("record " in tip for tip in tips))

    def test_the_same_report_gives_the_same_bytes(self) -> None:
        self.plot(SAMPLES / "quickstart.json")
        first = {path.name: path.read_bytes() for path in self.out.iterdir()}
        self.plot(SAMPLES / "quickstart.json")
        self.assertEqual({path.name: path.read_bytes() for path in self.out.iterdir()}, first)

    def test_a_report_of_failures_alone_still_gives_a_page(self) -> None:
        data = load("quickstart.json")
        for record in data["records"]:
            record.update(status="unsupported", reason="no such <device>", summaries=[])
        code, out, _ = self.plot(self.report(data))
        self.assertEqual((code, len(out.splitlines())), (0, 1))
        page = (self.out / "index.html").read_text(encoding="utf-8")
        self.assertIn("no such &lt;device&gt;", page)
        self.assertNotIn("<device>", page)

    def test_one_record_and_no_records(self) -> None:
        data = load("quickstart.json")
        for count in (1, 0):
            data["records"] = data["records"][:count]
            self.assertEqual(self.plot(self.report(data))[0], 0)

    def test_a_value_that_is_null_draws_no_point(self) -> None:
        data = load("encoders.json")
        data["records"][0]["summaries"][0]["value"] = None
        data["records"][1]["summaries"][0]["value"] = None
        self.assertEqual(self.plot(self.report(data))[0], 0)


class Roofline(Run):
    def rooflines(self) -> Any:
        """Operators of 1 GB and 2 GFLOP or none in their own times, where 4 GB/s and 100 GFLOP/s were measured."""
        data = load("quickstart.json")
        for i, record in enumerate(data["records"]):
            flops = 2e9 if i % 2 else 0.0
            record["details"] = {"roofline": {"bytes": 1e9, "flops": flops, "copy_bytes_per_second": 4e9,
                                              "product_flops_per_second": 1e11, "bound_ms": 250.0, "bound_by": "copy"}}
            record["configuration"]["dtype"] = "float32"
        return data

    def points(self, data: Any) -> list[roofline.Point]:
        found = sweeps_of(read_reports([self.report(data)]))[0]
        metric = roofline.time_of(found)
        return roofline.points_of(found, metric) if metric else []

    def test_a_point_is_what_the_record_achieved(self) -> None:
        data = self.rooflines()
        records = {record["id"]: record for record in data["records"] if record["status"] == "ok"}
        points = self.points(data)
        self.assertEqual({point.figure.ids[0] for point in points}, set(records))
        for point in points:
            time = next(s["value"] for s in records[point.figure.ids[0]]["summaries"] if s["name"] == "time")
            self.assertAlmostEqual(point.seconds, time / 1e3)
            self.assertIn(point.intensity, (0.0, 2.0))
            self.assertEqual((point.copy, point.product, point.dtype), (4e9, 1e11, "float32"))

    def test_every_record_has_its_point(self) -> None:
        data = self.rooflines()
        self.assertEqual(self.plot(self.report(data))[0], 0)
        root = ElementTree.parse(self.out / "quickstart-roofline.svg").getroot()
        named = [id for group in root.iter() if (ids := group.get("data-records")) for id in ids.split()]
        self.assertEqual(sorted(named), sorted(record["id"] for record in data["records"] if record["status"] == "ok"))

    def test_the_lines_are_the_measured_ceilings(self) -> None:
        found = sweeps_of(read_reports([self.report(self.rooflines())]))[0]
        metric = roofline.time_of(found)
        assert metric is not None
        canvas, _ = roofline.draw(found, metric, roofline.points_of(found, metric), style.looks(found.variants, None))
        copies, products = canvas.axes
        self.assertEqual([text.get_text() for text in copies.texts], ["4 GB/s"])
        self.assertEqual([text.get_text() for text in products.texts], ["copy 4 GB/s", "matrix product float32 100 GFLOP/s"])
        slope, flat = products.lines[:2]
        for x, y in zip(slope.get_xdata(), slope.get_ydata()):
            self.assertAlmostEqual(y / x, 4e9)
        self.assertEqual((flat.get_xdata()[0], set(flat.get_ydata())), (25.0, {1e11}))

    def test_records_without_a_bound_draw_none(self) -> None:
        self.assertEqual(self.points(load("quickstart.json")), [])
        data = self.rooflines()
        kept = next(record for record in data["records"] if record["status"] == "ok")
        for record in data["records"]:
            if record is not kept:
                record["details"]["roofline"]["bytes"] = None
        self.assertEqual([point.figure.ids for point in self.points(data)], [(kept["id"],)])
        self.plot(SAMPLES / "quickstart.json")
        self.assertFalse((self.out / "quickstart-roofline.svg").exists())

    def test_a_share_of_the_bound_is_no_quality_to_spend_time_on(self) -> None:
        data = self.rooflines()
        for record in data["records"]:
            times = [s for s in record["summaries"] if s["name"] == "time"]
            record["summaries"] = times + [{**s, "name": "bound_share", "unit": "%", "higher_is_better": True,
                                            "value": 1e4 / s["value"]} for s in times]
        self.plot(self.report(data))
        self.assertEqual([path.name for path in self.out.iterdir() if "against" in path.name], [])


class Page(Run):
    class Parser(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.ids: list[str] = []
            self.rows: list[str] = []
            self.links: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            values = {key: value or "" for key, value in attrs}
            if "id" in values:
                self.ids.append(values["id"])
            if "data-record" in values:
                self.rows.append(values["data-record"])
            self.links += [values[key] for key in ("src", "href", "xlink:href") if key in values]

    def parse(self, *names: str) -> Page.Parser:
        self.plot(*(SAMPLES / name for name in names))
        parser = Page.Parser()
        parser.feed((self.out / "index.html").read_text(encoding="utf-8"))
        return parser

    def test_holds_every_record_and_nothing_from_elsewhere(self) -> None:
        parser = self.parse("encoders.json", "quickstart.json")
        ids = [record["id"] for name in ("encoders.json", "quickstart.json") for record in load(name)["records"]]
        self.assertEqual(sorted(parser.rows), sorted(ids))
        self.assertEqual([link for link in parser.links if not link.startswith("#")], [])

    def test_ids_are_unique_and_references_lead_somewhere(self) -> None:
        parser = self.parse("encoders.json", "quickstart.json")
        self.assertEqual(len(parser.ids), len(set(parser.ids)))
        self.assertEqual({link[1:] for link in parser.links} - set(parser.ids), set())

    def test_statuses_reasons_and_environments_are_there(self) -> None:
        self.parse("encoders.json")
        page = (self.out / "index.html").read_text(encoding="utf-8")
        for part in ("tried to allocate 12.00 GiB", "the loss is not finite", "An invented accelerator",
                     "prefers-color-scheme"):
            self.assertIn(part, page)


class WrongReports(Run):
    def refuse(self, path: Path, message: str) -> None:
        code, out, err = self.plot(path)
        self.assertEqual((code, out), (2, ""))
        self.assertIn(message, err)
        self.assertFalse(self.out.exists(), "something was written")

    def test_missing_and_malformed_files(self) -> None:
        self.refuse(self.folder / "none.json", "No such file")
        path = self.folder / "cut.json"
        path.write_text('{"schema_version": 1,', encoding="utf-8")
        self.refuse(path, "is not JSON")
        self.refuse(self.report([]), "must be an object")

    def test_wrong_content_is_named_by_its_place(self) -> None:
        sample = load("quickstart.json")
        later = {**sample, "schema_version": 2}
        self.refuse(self.report(later), "read schemas up to 1")
        lacking = copy.deepcopy(sample)
        del lacking["records"][3]["status"]
        self.refuse(self.report(lacking), '/records/3: lacks the key "status"')
        textual = copy.deepcopy(sample)
        textual["records"][0]["summaries"][0]["value"] = "fast"
        self.refuse(self.report(textual), "/records/0/summaries/0/value: must be a number")


if __name__ == "__main__":
    unittest.main()
