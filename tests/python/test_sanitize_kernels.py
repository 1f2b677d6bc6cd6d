"""scripts/sanitize_kernels.py without a GPU: what it reads off the tools' output, and the table."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import sanitize_kernels  # noqa: E402


class Verdict(unittest.TestCase):
    def test_a_summary_without_a_count_over_zero_is_clean(self) -> None:
        for text in ("========= ERROR SUMMARY: 0 errors", "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"):
            self.assertEqual(sanitize_kernels.verdict_of(text, 0), "clean")

    def test_anything_that_was_counted_is_told(self) -> None:
        for text in ("3 errors", "1 hazard displayed (0 errors, 1 warning)", "118684 errors were not printed. Use --print-limit"):
            self.assertIn(text, sanitize_kernels.verdict_of(f"========= ERROR SUMMARY: {text}", 9))

    def test_reads_in_others_kernels_of_what_none_has_written_are_told_apart(self) -> None:
        read = "========= Uninitialized __global__ memory read of size 2 bytes\n=========     at void {}::copy_kernel()+0x870\n"
        summary = "========= ERROR SUMMARY: 2 errors"
        others = read.format("at::native") * 2 + summary
        self.assertEqual(sanitize_kernels.verdict_of(others, 9), "clean, but for 2 reads in kernels of others")
        ours = read.format("at::native") + read.format("transpool::<unnamed>") + summary
        self.assertEqual(sanitize_kernels.verdict_of(ours, 9), "2 errors")
        self.assertEqual(sanitize_kernels.verdict_of(read.format("at::native") + summary, 9), "2 errors")

    def test_a_program_that_fails_or_is_ended_is_not_clean(self) -> None:
        self.assertIn("exit code 1", sanitize_kernels.verdict_of("========= ERROR SUMMARY: 0 errors", 1))
        self.assertIn("did not end", sanitize_kernels.verdict_of("========= COMPUTE-SANITIZER", 124))


class Table(unittest.TestCase):
    def test_a_line_a_case_and_a_log_of_what_is_not_clean(self) -> None:
        outcome = sanitize_kernels.Outcome
        outcomes = [outcome("a, b", "memcheck", "clean", 3.2, ""), outcome("a, b", "synccheck", "2 errors", 4.0, "here")]
        lines = sanitize_kernels.table(outcomes).splitlines()
        self.assertEqual(lines[0], "| case | memcheck | synccheck |")
        self.assertEqual(lines[2], "| a, b | clean, 3 s | 2 errors, 4 s |")
        with tempfile.TemporaryDirectory() as folder:
            sanitize_kernels.write(Path(folder), outcomes)
            self.assertEqual({file.name for file in Path(folder).iterdir()}, {"table.md", "a-b-synccheck.log"})

    def test_unknown_cases_and_programs_are_named(self) -> None:
        for arguments in (["--cases", "hard_topq"], ["--sanitizer", "/nowhere/compute-sanitizer"]):
            sys.argv = ["sanitize_kernels.py", *arguments]
            with contextlib.redirect_stderr(io.StringIO()) as err, self.assertRaises(SystemExit) as stopped:
                sanitize_kernels.main()
            self.assertEqual(stopped.exception.code, 2)
            self.assertIn(arguments[1], err.getvalue())


if __name__ == "__main__":
    unittest.main()
