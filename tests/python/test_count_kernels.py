"""scripts/count_kernels.py without a GPU: names, numbers and the table."""

from __future__ import annotations

import contextlib
import io
import sys
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import count_kernels  # noqa: E402


class Counters(unittest.TestCase):
    def test_names_keep_what_tells_kernels_apart(self) -> None:
        name = "void transpool::(anonymous namespace)::gather_kernel<float, (int)4>(transpool::SuccessiveHalvingArguments)"
        self.assertEqual(count_kernels.short_name(name), "gather_kernel<float, 4>")
        self.assertEqual(count_kernels.short_name("void transpool::wide_kernel<" + "float, " * 20 + "int>(int)"), "wide_kernel")

    def test_numbers_come_in_one_unit(self) -> None:
        for text, value in (("1,024 Kbyte", 1.024e6), ("2.5 us", 2.5e-6), ("73 %", 73.0), ("12", 12.0), ("1.5 Gbyte", 1.5e9)):
            self.assertAlmostEqual(count_kernels.number(text), value)

    def test_the_longest_waits_are_named_first(self) -> None:
        row = {"case": "c", "kernel": "k", **{counter: "1 us" if "time" in counter else "1" for counter in count_kernels.COUNTERS.values()}}
        row[count_kernels.STALL.format("barrier")] = "3.25"
        row[count_kernels.STALL.format("wait")] = "1"
        line = count_kernels.table([row]).splitlines()[-1]
        self.assertIn("barrier 3.2, latency 1.0", line)
        self.assertIn("| 1.0 |", line)

    def test_unknown_cases_and_a_missing_ncu_are_refused(self) -> None:
        for arguments in (["--cases", "nothing"], ["--ncu", "/nowhere/ncu"]):
            with self.subTest(arguments), contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit):
                sys.argv = ["count_kernels.py", *arguments]
                count_kernels.main()


if __name__ == "__main__":
    unittest.main()
